"""What a reference may ask for beside its cases: given code, time for each case, texts."""

import pytest

from cipo_jax.config import Verify
from cipo_jax.verify import (
    CallsReference,
    NumberReference,
    Status,
    StdioReference,
    TextReference,
    VerifierPool,
)
from cipo_jax.verify.judge import InlineJudge
from cipo_jax.verify.opening import open_judge

SLOW_ONCE = """\
import time
def f(n):
    time.sleep(n)
    return n
"""


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(Verify(workers=1, deadline_s=2.0)) as pool:
        yield pool


def test_given_code_stands_before_the_models(pool) -> None:
    program = "print(int(sqrt(int(input()))))"
    cases = (("9", "3"),)
    given, none = (
        StdioReference(cases=cases, prelude="from math import *"),
        StdioReference(cases=cases),
    )
    assert [v.status for v in pool.map([(program, given), (program, none)])] == [
        Status.RIGHT,
        Status.WRONG,
    ]
    function = (
        "class Solution:\n    def half(self, n: Optional[int]) -> int:\n        return n // 2"
    )
    calls = [
        CallsReference(function="half", cases=(((8,), 4),), prelude=prelude)
        for prelude in ("from typing import *", "")
    ]
    assert [v.reason for v in pool.map((function, c) for c in calls)] == ["ok", "runtime_error"]


def test_time_for_each_case_by_itself(pool) -> None:
    def calls(case_s: float, *seconds: float) -> CallsReference:
        return CallsReference(function="f", cases=tuple(((s,), s) for s in seconds), case_s=case_s)

    # Three times 0.9 s: more than one judgement has, less than three cases have.
    reasons = [
        pool.submit(SLOW_ONCE, reference).result().reason
        for reference in (calls(0.0, 0.9, 0.9, 0.9), calls(1.5, 0.9, 0.9, 0.9), calls(0.5, 0, 1.0))
    ]
    assert reasons == ["timeout", "ok", "timeout"]
    sleepy = "import time\ntime.sleep(float(input()))\nprint('done')"
    cases = (("0.9", "done"),) * 3
    stdio = [StdioReference(cases=cases, case_s=case_s) for case_s in (0.0, 1.5, 0.5)]
    assert [v.reason for v in pool.map((sleepy, s) for s in stdio)] == ["timeout", "ok", "timeout"]


def test_which_case_of_several_failed(pool) -> None:
    cases = (((1,), 1), ((2,), 2), ((3,), 4))
    for case_s in (0.0, 1.0):
        verdict = pool.submit(
            "def f(n): return n", CallsReference(function="f", cases=cases, case_s=case_s)
        ).result()
        assert (verdict.reason, verdict.detail["case"]) == ("wrong_answer", 2)


def test_a_tuple_for_a_list_of_json(pool) -> None:
    program = "def f(n): return (n, [n])"
    strict, lenient = (
        CallsReference(function="f", cases=(((1,), [1, [1]]),), tuple_is_list=flag)
        for flag in (False, True)
    )
    assert [v.status for v in pool.map([(program, strict), (program, lenient)])] == [
        Status.WRONG,
        Status.RIGHT,
    ]


@pytest.mark.parametrize(
    ("completion", "answers", "is_right"),
    [
        ("B", ("b",), True),
        (" (B). ", ("B",), True),
        ("The answer: \\boxed{The Eiffel Tower!}", ("eiffel  tower",), True),
        ("Between B and C", ("B",), False),
        ("\\boxed{B} or \\boxed{yes}", ("yes",), False),  # two candidates are not one
        ("\\boxed{A}. No, that is wrong, it must be \\boxed{yes}", ("yes",), True),
        ("a", ("A",), True),  # an article that is the whole answer
        ("one two", ("three", "one, two"), True),
        ("", ("A",), False),
        ("x" * 5000, ("x",), False),
    ],
)
def test_texts(completion: str, answers: tuple[str, ...], is_right: bool) -> None:
    verdict = InlineJudge().submit(completion, TextReference(answers=answers)).result()
    assert verdict.status is (Status.RIGHT if is_right else Status.WRONG)


def test_texts_and_numbers_need_no_processes() -> None:
    references = [TextReference(answers=("A",)), NumberReference(answer="1")]
    assert isinstance(open_judge(Verify(), references), InlineJudge)
    with pytest.raises(TypeError, match="StdioReference"):
        InlineJudge().submit("1", StdioReference(cases=(("", "1"),)))
