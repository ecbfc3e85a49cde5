"""A problem as every task source delivers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    Reference,
    StdioReference,
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem and what its answers are judged against.

    The prompt shows `question` and, as its last line, `answer_format`: the form that the judge
    expects, in words. `reference` is never shown. `id` is stable from run to run.
    """

    id: str
    question: str
    answer_format: str
    reference: Reference

    @property
    def is_code(self) -> bool:
        """The answer is a program, not a number or an expression."""
        return isinstance(self.reference, StdioReference | CallsReference | AssertsReference)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What a run trains on and what it is evaluated on; no question is in both."""

    train: Sequence[Problem]
    held_out: tuple[Problem, ...]
