"""The verdict on one completion, and the references that a completion is judged against."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class Status(enum.Enum):
    """RIGHT and WRONG are judgements. UNKNOWN is the verifier's own failure: such a sample is
    masked out of training and counted, never scored 0."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


MAX_AMOUNT = 1_000_000
"""Above any tolerance or number of seconds that is meant."""

Reason = Literal[
    "ok",
    "wrong_answer",
    "no_answer",
    "bad_format",
    "runtime_error",
    "timeout",
    "memory",
    "output_limit",
    "no_result",
    "infra",
]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judgement. `reward` is 1.0 for right, 0.0 for wrong and NaN for unknown, so that a caller
    that forgets the status cannot train on it unnoticed."""

    status: Status
    reward: float
    reason: Reason
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)


def right(**detail: Any) -> Verdict:
    """A right answer."""
    return Verdict(status=Status.RIGHT, reward=1.0, reason="ok", seconds=0.0, detail=detail)


def wrong(reason: Reason, /, **detail: Any) -> Verdict:
    """A wrong answer, and why."""
    return Verdict(status=Status.WRONG, reward=0.0, reason=reason, seconds=0.0, detail=detail)


def unknown(reason: Reason, /, **detail: Any) -> Verdict:
    """No judgement: the verifier failed, not the answer."""
    nan = float("nan")
    return Verdict(status=Status.UNKNOWN, reward=nan, reason=reason, seconds=0.0, detail=detail)


@dataclass(frozen=True, kw_only=True)
class NumberReference:
    """The completion's last number must equal `answer` exactly (as a rational number)."""

    answer: str


@dataclass(frozen=True, kw_only=True)
class MathReference:
    """The final answer must be mathematically equal to one of `answers` (LaTeX or plain text).

    `all_of` asks for every listed answer instead (multiple-answer problems); `tolerance` is
    relative, 0 asks for exact equality; `unit` is an optional unit that the answer may carry.
    """

    answers: tuple[str, ...]
    all_of: bool = False
    tolerance: float = 0.0
    unit: str = ""

    def __post_init__(self) -> None:
        _require_some(self, "answers")
        _require_amount(self, "tolerance")


@dataclass(frozen=True, kw_only=True)
class TextReference:
    """The completion, or the content of its last box, must be one of `answers`: a letter, a word, a
    phrase. Case, articles, punctuation and the number of spaces don't count."""

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_some(self, "answers")


@dataclass(frozen=True, kw_only=True)
class StdioReference:
    """A program that reads standard input and must print the expected output for every case.

    `prelude` is code (imports) that comes before the model's. `case_s` limits each case by itself;
    at 0 all cases together have the deadline of one judgement.
    """

    cases: tuple[tuple[str, str], ...]
    language: Literal["python"] = "python"
    prelude: str = ""
    case_s: float = 0.0

    def __post_init__(self) -> None:
        _require_some(self, "cases")
        _require_amount(self, "case_s")


@dataclass(frozen=True, kw_only=True)
class CallsReference:
    """A function that must return the expected value for every tuple of arguments.

    `prelude` is code (imports) that comes before the model's. With `case_s` each call is made in a
    process of its own that has this many seconds; at 0 all calls share one process and the deadline
    of one judgement. `tuple_is_list` takes a returned tuple for the list of its items, where the
    expected values come from JSON.
    """

    function: str
    cases: tuple[tuple[tuple[Any, ...], Any], ...]
    prelude: str = ""
    case_s: float = 0.0
    tuple_is_list: bool = False

    def __post_init__(self) -> None:
        _require_some(self, "cases")
        _require_amount(self, "case_s")


@dataclass(frozen=True, kw_only=True)
class AssertsReference:
    """Test source that asserts on the model's function, HumanEval and MBPP style. The tests run in
    a second process, which never executes model code. `prelude` is given code (imports, the
    signature) that comes before the model's."""

    function: str
    tests: str
    prelude: str = ""


def _require_some(reference: Any, field_name: str) -> None:
    """Without a case every program would be right; without an answer every completion wrong."""
    if not getattr(reference, field_name):
        raise ValueError(
            f"{type(reference).__name__}.{field_name} is empty; nothing can be judged by it. Leave "
            "the problem out."
        )


def _require_amount(reference: Any, field_name: str) -> None:
    value = getattr(reference, field_name)
    if not 0 <= value < MAX_AMOUNT:
        raise ValueError(
            f"{type(reference).__name__}.{field_name} is {value}; it must be 0 or more, and less "
            f"than {MAX_AMOUNT:,}."
        )


PlainReference = NumberReference | TextReference
"""Judged by finding an answer in a text and comparing it, which executes nothing that a model
wrote."""

Reference = (
    NumberReference
    | MathReference
    | TextReference
    | StdioReference
    | CallsReference
    | AssertsReference
)
