"""Numbers and mathematical answers: tables of (completion, reference, verdict), the agreement of
the fast path with the slow one, and hostile text.

`judge` runs here without a pool: the answers of the tables are harmless. What a hostile answer does
to a worker is the business of the pool's tests.
"""

import logging
import random
import subprocess
import sys
import time
from fractions import Fraction

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipo_jax.verify.answers.extract import final_answer, parts
from cipo_jax.verify.answers.judging import fast_path, judge
from cipo_jax.verify.answers.number import last_number, rational
from cipo_jax.verify.answers.units import has_unit, without_unit
from cipo_jax.verify.verdict import (
    MathReference,
    NumberReference,
    Status,
    StdioReference,
    TextReference,
)

RIGHT, WRONG, UNKNOWN = Status.RIGHT, Status.WRONG, Status.UNKNOWN


def boxed(answer: str) -> str:
    return f"So we are done.\n\n\\boxed{{{answer}}}."


def maths(*answers: str, **fields) -> MathReference:
    return MathReference(answers=answers, **fields)


# --- numbers ------------------------------------------------------------------------------------

NUMBERS = [
    ("3 + 4 = 7", "7"),
    ("12.", "12"),
    ("It is 12.", "12"),
    ("9 + 6 = 15\n\nSo ", "15"),
    ("11 + 10 equals 11.", "11"),
    ("1,234.5", "2469/2"),
    ("1{,}234", "1234"),
    ("1\\,234", "1234"),
    ("1,234,567 people", "1234567"),
    ("the list 3,4", "4"),
    ("1,23", "23"),
    (".5", "1/2"),
    ("4.0", "4"),
    ("00012", "12"),
    ("-3", "-3"),
    ("= -3", "-3"),
    ("x = - 3", "-3"),
    ("−3", "-3"),
    ("\\boxed{-3}", "-3"),
    ("-$5", "-5"),
    ("$1,234.", "1234"),
    ("5-3", "3"),
    ("5 - 3", "3"),
    ("pages 3–5", "5"),
    ("The items:\n- 3", "3"),
    ("3/4", "3/4"),
    ("3 / 4", "3/4"),
    ("\\frac{3}{4}", "3/4"),
    ("\\frac34", "3/4"),
    ("-\\dfrac{3}{4}", "-3/4"),
    ("1\\frac{1}{2}", "3/2"),
    ("2\\times 10^{-3}", "1/500"),
    ("1.5e3", "1500"),
    ("an area of 5 cm^2", "5"),
    ("12 for x2", "12"),
    ("5kg", "5"),
    ("50%", "50"),
    ("**42**", "42"),
    ("4２", "42"),
    ("the total is...18", "18"),
    ("10...18", "18"),
    ("version 1.8.18", "9/5"),
    ("0.\\dot{3}", "1/3"),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_last_number(text: str, value: str) -> None:
    found = last_number(text)
    assert found is not None
    assert rational(found) == Fraction(value)
    verdict = fast_path(text, NumberReference(answer=value))
    assert (verdict.status, verdict.reward, verdict.reason) == (RIGHT, 1.0, "ok")
    other = fast_path(text, NumberReference(answer=str(Fraction(value) + 1)))
    assert (other.status, other.reward, other.reason) == (WRONG, 0.0, "wrong_answer")


@pytest.mark.parametrize(
    "text", ["<think>1</think>", "", "none", "x2", "...", "-", "½", "٣", "\0", "\ud800"]
)
def test_no_number_is_no_answer(text: str) -> None:
    verdict = fast_path(text, NumberReference(answer="0"))
    assert (verdict.status, verdict.reason) == (WRONG, "no_answer")


@pytest.mark.parametrize("text", ["9" * 5000, "1e99999", "3/0", "1" * 401 + "/1"])
def test_a_number_that_is_none_is_bad_format(text: str) -> None:
    verdict = fast_path(text, NumberReference(answer="0"))
    assert (verdict.status, verdict.reason) == (WRONG, "bad_format")


def test_a_reference_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'seven'.*MathReference"):
        fast_path("7", NumberReference(answer="seven"))


def test_thinking_does_not_count() -> None:
    eighteen, yes = NumberReference(answer="18"), TextReference(answers=("yes",))
    assert fast_path("<think>12</think>It is 18.", eighteen).status is RIGHT
    assert fast_path("It is 18.\n<think>12", eighteen).status is RIGHT
    assert fast_path("<think>18</think>It is eighteen.", eighteen).reason == "no_answer"
    assert fast_path("<think>Is it so?</think>\n\nYes.", yes).status is RIGHT
    assert fast_path("<think>Yes.</think>\n\nNo.", yes).status is WRONG


@given(st.fractions())
def test_rational_reads_what_fractions_print(value: Fraction) -> None:
    assert rational(str(value)) == value


@given(st.integers(), st.text(alphabet="abc .,:=\n", max_size=20))
def test_a_number_at_the_end_is_found(value: int, prose: str) -> None:
    verdict = fast_path(f"{prose} {value}", NumberReference(answer=str(value)))
    assert verdict.status is RIGHT


# --- where the answer stands --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{5} no wait \\boxed{6}", "6"),
        ("\\boxed{5} and \\boxed{6}", "5, 6"),
        ("$x=\\boxed{3}$ or $x = \\boxed{5}$", "3, 5"),
        ("\\boxed{5}\n\n\\boxed{6}", "6"),
        ("\\boxed{5} \\boxed{5}", "5"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\frac{1}{2}} is below 3", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("first \\boxed{4}, then \\boxed{5", "4"),
        ("\\boxed{4} at first, but \\boxed{}", ""),
        ("The answer is 5.", "5"),
        ("The answer is $5$, not $6$.", "5"),
        ("The answer is $x=3$ or $x=4$", "x=3, x=4"),
        ("**Answer: 42**", "42"),
        ("Answer:\n\n42", "42"),
        ("The final answer to the problem is therefore 12 apples because 3 < 4", "12 apples"),
        ("The answer is 3 or 4", "3 or 4"),
        ("Final answer: (B)", "(B)"),
        ("What is the answer? I think it's 9.", "9"),
        ("so $x=3$ and 4", "4"),
        ("we get $x=3$.", "x=3"),
        ("The answer is not 5, it is 6", "6"),
        ("<think>\\boxed{3}</think>It is 5.", "5"),
        ("<think>\\boxed{3}", ""),
        ("It is 5. <think>\\boxed{3}", "5"),
        ("\\boxed{3}\n</think>", ""),
        ("so $\\boxed 5$.", "5"),
        ("$\\boxed \\frac12$, not $3$", "\\frac12"),
        ("\\boxed{4}, that is, \\boxed 5. Done.", "5"),
        ("so it is \\boxed{18", ""),
        ("The answer is 7, so \\boxed{18", "7"),
        ("", ""),
        ("I give up", ""),
    ],
)
def test_final_answer(completion: str, answer: str) -> None:
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1, 2 and 3", ["1", "2", "3"]),
        ("1,234", ["1,234"]),
        ("1000,200", ["1000", "200"]),
        ("(1,2); [0,1)", ["(1,2)", "[0,1)"]),
        ("\\{1,2\\}", ["\\{1,2\\}"]),
        ("x=1 \\text{ or } x=2", ["x=1", "x=2"]),
        ("\\text{this or that}", ["\\text{this or that}"]),
    ],
)
def test_parts(answer: str, expected: list[str]) -> None:
    assert parts(answer) == expected


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    ["5 cm", "5\\text{ cm}", "5\\,\\mathrm{cm}", "5cm", "5 centimeters", "5~\\mathrm{~cm}", "5"],
)
def test_the_units_own_forms(answer: str) -> None:
    assert without_unit(answer, "cm") == "5"
    assert not has_unit(without_unit(answer, "cm"))


@pytest.mark.parametrize("answer", ["5 m", "5 mm", "5\\text{ km}", "5 cm^2", "5 m/s"])
def test_another_unit_stays(answer: str) -> None:
    assert without_unit(answer, "cm") == answer
    assert has_unit(answer)


def test_cm_is_not_read_as_c_meters() -> None:
    assert without_unit("5 cm", "m") == "5 cm"


# --- mathematics --------------------------------------------------------------------------------

EQUAL = [
    ("204", maths("204")),
    ("\\text{204}", maths("204")),
    ("0204", maths("204")),
    ("1,234", maths("1234")),
    ("5.", maths("5")),
    ("0.5", maths("1/2")),
    ("-1/2", maths("-\\frac{1}{2}")),
    ("\\frac{-1}{2}", maths("-0.5")),
    ("\\dfrac{1}{2}", maths("\\frac12")),
    ("1\\frac{1}{2}", maths("3/2")),
    ("10^2", maths("100")),
    ("4.49e33", maths("4.49\\times 10^{33}")),
    ("50\\%", maths("50")),
    ("50\\%", maths("0.5")),
    ("12.5", maths("12.5\\%")),
    ("12_{5}", maths("12_5")),
    ("x=5", maths("5")),
    ("5", maths("x=5")),
    ("2\\sqrt2", maths("\\sqrt8")),
    ("1.4142135624", maths("\\sqrt{2}")),
    ("x^2+2x+1", maths("(x+1)^2")),
    ("y=2x+1", maths("2x+1")),
    ("[0, 1)", maths("[0,1)")),
    ("\\left[0, 1\\right)", maths("[0,1)")),
    ("(2,3)\\cup[0,1]", maths("[0,1]\\cup(2,3)")),
    ("(-\\infty, 3)", maths("x<3")),
    ("(1,2)", maths("(1, 2)")),
    ("3,1,2", maths("\\{1,2,3\\}")),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", maths("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}")),
    ("Evelyn", maths("\\text{Evelyn}")),
    ("B", maths("\\text{(B)}")),
    ("i", maths("i")),
    ("\\infty", maths("\\infty")),
    ("7", maths("6", "7")),
    ("5 \\text{ cm}", maths("5")),
    ("5 \\text{ cm}", maths("5", unit="cm")),
    ("5 \\text{ cm}^2", maths("5", unit="cm^2")),
    ("3 \\mathrm{~m} / \\mathrm{s}", maths("3", unit="m/s")),
    ("90 degrees", maths("90", unit="^\\circ")),
    ("90^\\circ", maths("90", unit="degrees")),
    ("\\$12", maths("12", unit="\\$")),
    ("2\\pi \\text{ cm}", maths("2\\pi", unit="cm")),
    ("9.81", maths("9.8", tolerance=0.01)),
    ("\\frac{981}{100}", maths("9.8", tolerance=0.01)),
    ("3.14", maths("\\pi", tolerance=0.01)),
    ("\\pi", maths("3.14", tolerance=0.01)),
    ("2, 1", maths("1", "2", all_of=True)),
    ("x=1 \\text{ or } x=2", maths("1", "2", all_of=True)),
    ("\\pm 2", maths("2", "-2", all_of=True)),
    ("1\\pm\\sqrt{2}", maths("1-\\sqrt{2}", "1+\\sqrt{2}", all_of=True)),
    ("2,1", maths("1, 2", all_of=True)),
    ("2 \\text{ cm} \\text{ and } 1 \\text{ cm}", maths("1", "2", all_of=True, unit="cm")),
    ("2\\text{ cm}, 1\\text{ cm}", maths("1", "2", all_of=True, unit="cm")),
    ("\\{1, 2\\}", maths("1", "2", all_of=True)),
    # Odd spellings of right answers.
    ("0.\\overline{3}", maths("\\frac{1}{3}")),
    ("-1.1\\overline{6}", maths("-7/6")),
    ("1 000", maths("1000")),
    ("\\frac{1}{4}\\pi", maths("\\frac{\\pi}{4}")),
    ("1\\frac{1}{2}\\pi", maths("\\frac{3\\pi}{2}")),
    ("1{,}234\\pi", maths("1234\\pi")),
    ("\\emptyset", maths("\\varnothing")),
    ("5^{0.5}", maths("\\sqrt{5}")),
    ("e^{i\\pi}", maths("-1")),
    ("\\frac{1}{1+i}", maths("\\frac{1-i}{2}")),
    ("1 \\le x \\le 2", maths("[1,2]")),
    ("x<1 \\text{ or } x>2", maths("(-\\infty,1)\\cup(2,\\infty)")),
    ("\\approx 9.81", maths("9.8", tolerance=0.01)),
    ("√2", maths("\\sqrt{2}")),
    ("2√(x+1)", maths("2\\sqrt{1+x}")),
    ("5²", maths("25")),
    ("2½", maths("2.5")),
    ("45°", maths("45^\\circ")),
    ("∞", maths("\\infty")),
    ("1⁄2", maths("0.5")),
    ("\u200b5", maths("5")),
]

DIFFERENT = [
    ("205", maths("204")),
    ("12", maths("12_5")),
    ("12_7", maths("12_5")),
    ("12_5", maths("12")),
    ("0.5\\%", maths("0.5")),
    ("0.333333", maths("1/3")),
    ("1.414214", maths("\\sqrt{2}")),
    ("2^{40}+1", maths("2^{40}")),
    # Small quantities, which rounding to decimals makes equal.
    ("0.0000002", maths("0.0000001")),
    ("1.0\\times 10^{-34}", maths("6.62\\times 10^{-34}")),
    ("e^{-200}", maths("e^{-100}")),
    ("[0,1]", maths("[0,1)")),
    ("(2,1)", maths("(1,2)")),
    ("5, 6", maths("5")),
    ("5 or 6", maths("6")),
    ("y^2+1", maths("x^2+1")),
    ("\\text{no}", maths("\\text{yes}")),
    ("5 \\text{ m}", maths("5", unit="cm")),
    ("5 cm", maths("5", unit="m")),
    ("9.0", maths("9.8", tolerance=0.01)),
    ("3.2", maths("\\pi", tolerance=0.01)),
    ("1", maths("1", "2", all_of=True)),
    ("1 m, 2 m", maths("1", "2", all_of=True, unit="cm")),
    ("1,1", maths("1", "2", all_of=True)),
    ("1,2,3", maths("1", "2", all_of=True)),
    ("\\frac{}", maths("5")),
    ("5=6", maths("6")),
    ("1 < x < 2", maths("(1,2]")),
    ("t<1", maths("x<1")),
    ("2i", maths("-2i")),
    ("\\approx 9.81", maths("9.8")),
    ("0.\\overline{3}", maths("0.3")),
    ("5\u202e6", maths("5")),
    ("e^{e^{e^{e^{10}}}}", maths("1")),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_equal_answers(answer: str, reference: MathReference) -> None:
    verdict = judge(boxed(answer), reference)
    assert (verdict.status, verdict.reward, verdict.reason) == (RIGHT, 1.0, "ok")
    assert judge(f"The answer is ${answer}$.", reference).status is RIGHT


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different_answers(answer: str, reference: MathReference) -> None:
    verdict = judge(boxed(answer), reference)
    assert (verdict.status, verdict.reward, verdict.reason) == (WRONG, 0.0, "wrong_answer")


@pytest.mark.parametrize("completion", ["", "I don't know", "\\boxed{}"])
def test_no_answer(completion: str) -> None:
    verdict = judge(completion, maths("5"))
    assert (verdict.status, verdict.reason) == (WRONG, "no_answer")


@pytest.mark.parametrize("depth", [5000, 200, 25])
def test_a_very_long_or_deep_answer_is_wrong_at_once(depth: int) -> None:
    verdict = judge(boxed("(" * depth + "1" + ")" * depth), maths("1"))
    assert (verdict.status, verdict.reason) == (WRONG, "bad_format")
    assert judge(boxed("(" * 8 + "1" + ")" * 8), maths("1")).status is RIGHT


def test_a_reference_that_cannot_be_read_is_the_graders_fault() -> None:
    verdict = judge(boxed("5"), maths("\\frac{"))
    assert (verdict.status, verdict.reason) == (UNKNOWN, "infra")
    assert verdict.reward != verdict.reward
    assert verdict.detail["unreadable_reference"] == "\\frac{"
    # The same text settles it all the same.
    assert judge(boxed("{}\\over"), maths("{}\\over")).status is RIGHT


# --- the fast path ------------------------------------------------------------------------------


def test_code_is_never_settled_here() -> None:
    assert fast_path("print(1)", StdioReference(cases=(("", "1"),))) is None


@pytest.mark.parametrize(("answer", "reference"), EQUAL + DIFFERENT)
def test_fast_path_settles_only_what_judge_says(answer: str, reference: MathReference) -> None:
    verdict = fast_path(boxed(answer), reference)
    if verdict is not None:
        assert verdict.status is RIGHT
        assert judge(boxed(answer), reference).status is RIGHT
    if (answer, reference) in DIFFERENT:
        assert verdict is None


def test_fast_path_settles_the_common_case() -> None:
    settled = [answer for answer, reference in EQUAL if fast_path(boxed(answer), reference)]
    assert len(settled) >= 25


def algebra_alone(answer: str, gold: str) -> bool:
    """math-verify's own opinion, with none of our rules before it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = [math_verify.LatexExtractionConfig()]
    gold_expr, expr = (
        math_verify.parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)
        for text in (gold, answer)
    )
    return math_verify.verify(gold_expr, expr, timeout_seconds=None)


def spellings(value: Fraction) -> st.SearchStrategy[str]:
    top, bottom = value.numerator, value.denominator
    forms = [f"\\frac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", f" \\dfrac{{{top}}}{{{bottom}}} "]
    if bottom == 1:
        forms += [f"{top}", f"{top}.0", f"{top:,}", f"\\left({top}\\right)"]
    if 10**6 % bottom == 0:
        forms += [str(float(value))]
    return st.sampled_from(forms)


values = st.builds(
    Fraction, st.integers(-9999, 9999), st.sampled_from([1, 1, 1, 2, 3, 4, 5, 7, 8, 16, 100])
)


@settings(max_examples=40, deadline=None)
@given(st.data(), values, values)
def test_fast_positives_are_positives_of_computer_algebra(data, value, other) -> None:
    gold = data.draw(spellings(value))
    answer = data.draw(st.one_of(spellings(value), spellings(other)))
    verdict = fast_path(boxed(answer), maths(gold))
    if verdict is not None:
        assert algebra_alone(answer, gold)


def test_the_agreement_check_can_fail() -> None:
    assert not algebra_alone("3", "4")
    assert algebra_alone("12_7", "12_5")  # where our rule is the stricter one
    assert fast_path(boxed("12_7"), maths("12_5")) is None


# --- hostile text -------------------------------------------------------------------------------

HOSTILE = [
    "9" * 64_000,
    "1," * 32_000,
    "1,111" * 13_000,
    "1,111," * 10_000,
    "-" * 64_000,
    "1/" * 32_000,
    "1e" * 32_000,
    "1." * 32_000,
    " " * 64_000 + "1",
    "\\frac{" * 10_000,
    "\\frac{1}{" * 7_000,
    "1\\frac" * 10_000,
    "1 \\times 10^" * 5_000,
    "\\boxed{" * 9_000,
    "\\boxed{" * 9_000 + "}" * 1_000,
    "\\boxed{" + "{" * 60_000,
    "\\boxed{" + "9" * 60_000 + "}",
    "\\boxed{9" + "}" * 60_000,
    "\\boxed{1}," * 6_000,
    "$" * 64_000,
    "$a" * 30_000,
    "\\(" * 30_000,
    "\\[ " * 20_000,
    "answer is" * 7_000,
    "answer " * 9_000,
    "the answer is " + "ab " * 20_000,
    "\\boxed{" + "1, " * 330 + "}",
    "\\boxed{" + "\\left(" * 160 + "}",
    "\\boxed{10^{10^{10^{10}}}}",
    "\\boxed{99999999!}",
    "\\boxed{9e999999999999999999}",
    "\\boxed{1.0e-400}",
]


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda text: text[:14])
def test_hostile_text_costs_no_time(completion: str) -> None:
    start = time.process_time()
    assert fast_path(completion, NumberReference(answer="7")).status is WRONG
    assert fast_path(completion, maths("7")) is None
    assert fast_path(completion, maths("7", "8", all_of=True, unit="cm")) is None
    assert time.process_time() - start < 3.0  # anything worse than linear takes minutes


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="\\{}boxedfrac$^_,.()[]0123456789 -%+=\n\0answeri", max_size=200))
def test_no_text_makes_the_fast_path_raise(text: str) -> None:
    fast_path(text, NumberReference(answer="7"))
    fast_path(text, maths("7", "x", all_of=True, tolerance=0.1, unit="cm"))


# --- votes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "reference", "canonical"),
    [
        (["0.5", "\\dfrac{1}{2}", "2/4"], maths("1"), "1/2"),
        (["3, 1", "1,3", "1 \\text{ and } 3"], maths("1"), "1, 3"),
        (["x^{2}", "$x^2$", "\\left x^2 \\right"], maths("x"), "x^2"),
        (["5 cm", "5\\text{ cm}", "5.0"], maths("6", unit="cm"), "5"),
        (["007", "7.0", "14/2"], NumberReference(answer="3"), "7"),
    ],
)
def test_equal_answers_have_one_canonical_form(answers, reference, canonical) -> None:
    found = {judge(boxed(answer), reference).detail["answer"] for answer in answers}
    assert found == {canonical}


def test_a_tail_is_read_of_an_endless_completion() -> None:
    words = random.Random(0).choices(["so", "then", "12", "\\boxed{3}"], k=200_000)
    assert fast_path(" ".join(words) + " \\boxed{4}", maths("4")).status is RIGHT


def test_jax_is_not_loaded() -> None:
    code = (
        "import sys, cipo_jax.verify.answers.judging\n"
        "print('jax' in sys.modules, 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # sympy neither: it takes seconds to import, and only workers need it.
    assert done.stdout.split() == ["False", "False"]
