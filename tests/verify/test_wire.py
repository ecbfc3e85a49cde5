"""References and verdicts as text: what comes back is equal, and nothing else comes in."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipo_jax.verify import values
from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    MathReference,
    NumberReference,
    Status,
    StdioReference,
    TextReference,
    Verdict,
)
from cipo_jax.verify.wire import (
    decode_reference,
    decode_verdict,
    encode_reference,
    encode_verdict,
)

REFERENCES = [
    NumberReference(answer="-1/2"),
    MathReference(answers=("1", "\\frac{1}{2}"), all_of=True, tolerance=0.01, unit="cm"),
    TextReference(answers=("yes",)),
    StdioReference(cases=(("1 2\n", "3\n"), ("", "\ud800"))),
    CallsReference(function="f", cases=(((1, [2], {"a": (1,)}), {1, 2}), ((), math.inf))),
    AssertsReference(function="f", tests="assert f() == 1", prelude="import math"),
]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: type(r).__name__)
def test_references_come_back(reference) -> None:
    back = decode_reference(encode_reference(reference))
    assert back == reference
    assert repr(back) == repr(reference)  # == takes 1 for True and 1.0


@given(st.tuples(st.tuples(st.integers(), st.text()), st.one_of(st.floats(), st.booleans())))
def test_cases_keep_their_types(case) -> None:
    reference = CallsReference(function="f", cases=(case,))
    assert repr(decode_reference(encode_reference(reference))) == repr(reference)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        values.encode(("nope", {})),
        values.encode(("number", {})),
        values.encode(("number", {"answer": 1})),
        values.encode(("number", {"answer": "1", "more": "1"})),
        values.encode(("number", {1: "1"})),
        values.encode(("math", {"answers": ["1"]})),
        values.encode(("math", {"answers": ("1",), "all_of": 1})),
        values.encode(("math", {"answers": ()})),
        values.encode(("math", {"answers": ("1",), "tolerance": float("nan")})),
        values.encode(("math", {"answers": ("1",), "tolerance": -0.1})),
        values.encode(("stdio", {"cases": ()})),
        values.encode(("stdio", {"cases": (("", ""),), "case_s": float("inf")})),
        values.encode(("calls", {"function": "f", "cases": ()})),
        values.encode(("stdio", {"cases": (("", ""),), "language": "perl"})),
        values.encode(("calls", {"function": "f", "cases": ((1, 2),)})),
        values.encode({"number": {"answer": "1"}}),
        values.encode(("number", {"answer": 16**5000})),
        values.encode(("math", {"answers": ("1",), "tolerance": 16**5000})),
        values.encode(("number", {"answer": ("1",) * 100_000})),
        values.encode(("number", {"answer" * 1_000_000: "1"})),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - each says another thing
        decode_reference(text)
    assert len(str(refused.value)) < 1000  # it goes back over the wire


@pytest.mark.parametrize("status", Status)
def test_verdicts_come_back(status: Status) -> None:
    reward = {Status.RIGHT: 1.0, Status.WRONG: 0.0, Status.UNKNOWN: math.nan}[status]
    verdict = Verdict(
        status=status, reward=reward, reason="timeout", seconds=0.5, detail={"answer": "7"}
    )
    back = decode_verdict(json.loads(json.dumps(encode_verdict(verdict))))
    assert repr(back) == repr(verdict)


@pytest.mark.parametrize(
    "record", [None, [], {}, {"status": "great"}, {"status": "right", "reason": "luck",
                                                  "seconds": 0, "detail": {}}]
)  # fmt: skip
def test_what_is_no_verdict_is_refused(record) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_verdict(record)


def test_a_reward_cannot_be_sent() -> None:
    record = {"status": "wrong", "reason": "ok", "seconds": 0.0, "detail": {}, "reward": 1.0}
    assert decode_verdict(record).reward == 0.0
