r"""Numbers and mathematical answers: from a completion to a verdict.

`judge` says what is right; `fast_path` settles the common case of it in microseconds. Both find the
answer by the rules of `extract.py` and differ only in how two answers are compared: exactly, as
rational numbers or as the same text, or with computer algebra where that says nothing.

A verdict's `detail["answer"]` is the answer in canonical form (`1/2` for 0.5 and for
\frac{1}{2}), to vote by, and to see whether a correction only repeats its attempt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from cipo_jax.verify.answers import algebra
from cipo_jax.verify.answers.extract import (
    MAX_ANSWER_CHARS,
    final_answer,
    last_box,
    parts,
    said,
)
from cipo_jax.verify.answers.number import last_number, rational
from cipo_jax.verify.answers.spelling import formatless, unwrapped
from cipo_jax.verify.answers.units import has_unit, known_unit, without_unit
from cipo_jax.verify.verdict import (
    MathReference,
    NumberReference,
    Reference,
    TextReference,
    Verdict,
    right,
    unknown,
    wrong,
)

MAX_NESTING = 24
"""Brackets within brackets; a deeper answer is wrong, unread: it would keep the parser busy."""

_HAS_BASE = re.compile(r"[0-9][0-9A-Za-z.]*_\{?(?:\d{1,2}|\\text\{\w+\})\}?")
_MEMBER_OF = re.compile(r"^[A-Za-z]\\in(?=\\\{)")
_PLUS_MINUS = re.compile(r"\\pm|±")
_ABOUT = re.compile(r"^\s*(?:\\approx|\\simeq|\\sim|≈|~)\s*")
_OPENS_OR_CLOSES = re.compile(r"[{(\[]|[})\]]")
_HEDGE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s?\{(?!\s*(?:or|and)\s*\})"
    r"[^{}]*(?<![A-Za-z])(?:or|not|isn't|wrong|incorrect|alternatively|otherwise|maybe|perhaps)(?![A-Za-z])",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"(?:\\[cl]?dots|\.\.\.|…)\s*$|[,;]\s*(?:\\[cl]?dots|\.\.\.|…)")
_CAPITAL = re.compile("[A-Z]")
_CHOICE = re.compile(r"\(?([A-Z])\)?[.:]?")
_CHOICE_AND_TEXT = re.compile(
    r"\s*(?:\\[a-z]{2,6}\s?\{)?\(([A-Z])\)\}?[.:]?(?:\s|\\ |~|\\quad)+"
    r"(?![+*/=^,;|&]|-\s)(?!.*(?:\([A-Z]\)|\b(?:or|and)\b))"
)
_PUNCTUATION = re.compile(r"[^\w\s]|_")

Equal = Callable[[str, str, float], bool]
"""(answer, gold, relative tolerance) -> whether the two are equal."""


def fast_path(completion: str, reference: Reference) -> Verdict | None:
    """The verdict where exact arithmetic suffices, None where only `judge` can tell.

    For a number this is the whole judgement. For mathematics only *right* is settled here: the
    answer is the same rational number or the same text as the reference. Text is settled wholly,
    code never.
    Takes time linear in the completion, about 30 us for an ordinary one.

    Raises: ValueError if a number reference is no number.
    """
    if isinstance(reference, NumberReference):
        return _judge_number(completion, reference)
    if isinstance(reference, TextReference):
        return _judge_text(completion, reference)
    if isinstance(reference, MathReference):
        answer = final_answer(completion)
        if len(answer) <= MAX_ANSWER_CHARS and _is_right(answer, reference, _is_plainly_equal):
            return right(answer=_canonical(answer, reference.unit))
    return None


def judge(completion: str, reference: NumberReference | MathReference) -> Verdict:
    """The verdict on a completion that answers with a number or with mathematics.

    May take for ever and any memory on a hostile answer (see `algebra.py`): call it in a process
    that can be killed. `VerifierPool` keeps such.

    Returns: right or wrong; unknown (`infra`) if math-verify can't read the reference, which is not
      the model's fault.
    Raises: ValueError if a number reference is no number.
    """
    if isinstance(reference, NumberReference):
        return _judge_number(completion, reference)
    answer = final_answer(completion)
    if not answer:
        return wrong("no_answer")
    if len(answer) > MAX_ANSWER_CHARS or _nesting(answer) > MAX_NESTING:
        return wrong("bad_format", answer=answer[:200])
    read = _canonical(answer, reference.unit)
    try:
        is_right = _is_right(answer, reference, _is_equal)
    except RecursionError:  # of the reader: `3!!!!!!`
        return wrong("bad_format", answer=read)
    if is_right:
        return right(answer=read)
    if unreadable := [gold for gold in reference.answers if not algebra.is_readable(gold)]:
        return unknown("infra", answer=read, unreadable_reference=unreadable[0])
    return wrong("wrong_answer", answer=read)


def _judge_number(completion: str, reference: NumberReference) -> Verdict:
    gold = rational(reference.answer)
    if gold is None:
        raise ValueError(
            f"NumberReference.answer is {reference.answer[:50]!r}, which is no number such as 12, "
            "-0.5, 1,234 or 3/4; use MathReference for other answers."
        )
    number = last_number(said(completion))
    if number is None:
        return wrong("no_answer")
    value = rational(number)
    if value is None:
        return wrong("bad_format", answer=number[:200])
    if value == gold:
        return right(answer=str(value))
    return wrong("wrong_answer", answer=str(value))


def _judge_text(completion: str, reference: TextReference) -> Verdict:
    answer = _plain_text(last_box(completion) or said(completion))
    if not answer:
        return wrong("no_answer")
    if len(answer) > MAX_ANSWER_CHARS:
        return wrong("bad_format", answer=answer[:200])
    if answer in {_plain_text(gold) for gold in reference.answers}:
        return right(answer=answer)
    return wrong("wrong_answer", answer=answer)


def _plain_text(text: str) -> str:
    """Lower case, without articles and punctuation, words with one space between."""
    words = _PUNCTUATION.sub(" ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or " ".join(words)


# --- comparing ----------------------------------------------------------------------------------


def _is_right(answer: str, reference: MathReference, equal: Equal) -> bool:
    if not reference.all_of:
        return any(_is_same(answer, gold, reference, equal) for gold in reference.answers)
    given = _all_parts([answer])
    wanted = _all_parts(reference.answers)
    if len(given) != len(wanted):
        return False
    for gold in wanted:
        match = next((part for part in given if _is_same(part, gold, reference, equal)), None)
        if match is None:
            return False
        given.remove(match)
    return True


def _is_same(answer: str, gold: str, reference: MathReference, equal: Equal) -> bool:
    if _is_evasive(answer) and not _is_evasive(gold):
        return False
    if _is_same_choice(answer, gold):
        return True
    answer, gold = (without_unit(text, reference.unit) for text in (answer, gold))
    if reference.tolerance:
        answer = _ABOUT.sub("", answer)
    if reference.unit and has_unit(answer) and not has_unit(gold):
        return False  # another unit
    if not reference.unit and (unit := known_unit(gold)) and known_unit(answer) not in ("", unit):
        return False
    return equal(answer, gold, reference.tolerance)


def _is_evasive(answer: str) -> bool:
    """Whether words beside the answer take it back or offer another, or an ellipsis goes on."""
    return _HEDGE.search(answer) is not None or _GOES_ON.search(answer) is not None


def _is_same_choice(answer: str, gold: str) -> bool:
    r"""Whether both name the same letter: `(B)`, `B.`, `\textbf{(B)}\ 12`."""
    if (letter := _letter(gold)) is None:
        return False
    named = _CHOICE_AND_TEXT.match(answer)
    return letter == (named[1] if named else _letter(answer))


def _letter(text: str) -> str | None:
    """The letter of a choice, where the text is nothing else."""
    if len(text) > 30 or not _CAPITAL.search(text):
        return None
    found = _CHOICE.fullmatch(unwrapped(formatless(text)))
    return found[1] if found else None


def _all_parts(answers: Sequence[str]) -> list[str]:
    r"""Every listed answer on its own; `a \pm b` is two of them."""
    found = []
    for answer in answers:
        listed = _MEMBER_OF.sub("", formatless(answer))
        for part in parts(_without_braces(listed)):
            if len(_PLUS_MINUS.findall(part)) == 1:
                found += [_PLUS_MINUS.sub(sign, part).removeprefix("+") for sign in "+-"]
            else:
                found.append(part)
    return found


def _is_plainly_equal(answer: str, gold: str, tolerance: float) -> bool:
    return _compare_plainly(answer, gold, tolerance) is True


def _is_equal(answer: str, gold: str, tolerance: float) -> bool:
    plain = _compare_plainly(answer, gold, tolerance)
    return algebra.is_equal(answer, gold, tolerance) if plain is None else plain


def _compare_plainly(answer: str, gold: str, tolerance: float) -> bool | None:
    """Exact comparison; None where the answers are neither the same text nor both rational."""
    answer, gold = formatless(answer), formatless(gold)
    if answer == gold:
        return bool(answer)
    value, gold_value = rational(_percentless(answer)), rational(_percentless(gold))
    if value is None or gold_value is None:
        return _compare_as_texts(answer, gold)
    is_percent, is_gold_percent = answer.endswith("%"), gold.endswith("%")
    if is_percent == is_gold_percent:
        return _is_close(value, gold_value, Fraction(tolerance))
    # One of them says percent: the share itself, or its hundredfold where that is what was meant.
    scaled, bare = (value / 100, gold_value) if is_percent else (value, gold_value / 100)
    if _is_close(scaled, bare, Fraction(tolerance)):
        return True
    may_drop_sign = is_gold_percent or value.denominator == 1
    return may_drop_sign and _is_close(value, gold_value, Fraction(tolerance))


def _compare_as_texts(answer: str, gold: str) -> bool | None:
    """What can be said of answers that are no numbers without reading them as mathematics."""
    if (words := unwrapped(answer)) == unwrapped(gold):
        return bool(words)
    if answer.count(":") > 1 or gold.count(":") > 1:
        return _is_same_ratio(answer, gold)
    if _is_set_beside_tuple(answer, gold) or _is_set_beside_tuple(gold, answer):
        return False
    if _HAS_BASE.fullmatch(answer) or _HAS_BASE.fullmatch(gold):
        return False
    return None


def _is_set_beside_tuple(left: str, right: str) -> bool:
    r"""`\{1,2\}` beside `(1,2)`, which math-verify takes for one another."""
    is_list = "," in left and not re.search(r"\\mid|[|:]", left)
    return left.startswith("\\{") and is_list and right.startswith("(")


def _is_same_ratio(answer: str, gold: str) -> bool:
    """Ratios of three or more numbers, `1:2:3`: computer algebra would divide them."""
    terms, gold_terms = ([rational(term) for term in text.split(":")] for text in (answer, gold))
    if len(terms) != len(gold_terms):
        return False
    ratios = {a / b if a and b else None for a, b in zip(terms, gold_terms, strict=True)}
    return len(ratios) == 1 and None not in ratios


def _is_close(value: Fraction, gold: Fraction, tolerance: Fraction) -> bool:
    return abs(value - gold) <= tolerance * abs(gold)


def _without_braces(text: str) -> str:
    """The elements of a set, where the whole text is one set."""
    inner = text.removeprefix("\\{").removesuffix("\\}")
    return inner if len(text) - len(inner) == 4 and "\\{" not in inner else text


def _nesting(text: str) -> int:
    depth = deepest = 0
    for match in _OPENS_OR_CLOSES.finditer(text):
        depth += 1 if match[0] in "{([" else -1
        deepest = max(deepest, depth)
    return deepest


def _percentless(text: str) -> str:
    return text.removesuffix("%")


def _canonical(answer: str, unit: str) -> str:
    """The answer in a form in which equal answers are mostly the same text: rational numbers as
    `n/d`, other mathematics without its formatting, several parts in one order.
    """
    texts = [formatless(without_unit(part, unit)) for part in parts(answer)]
    values = [rational(_percentless(text)) for text in texts]
    return ", ".join(
        sorted(
            text if value is None else str(value) for text, value in zip(texts, values, strict=True)
        )
    )
