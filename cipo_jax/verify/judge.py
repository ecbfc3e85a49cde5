"""What a judge is, and the one that needs no process: plain numbers and texts, judged here."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Protocol, Self

from cipo_jax.verify.answers.judging import fast_path
from cipo_jax.verify.verdict import PlainReference, Reference, Verdict


class Judge(Protocol):
    """What a rollout needs of a verifier."""

    @property
    def report(self) -> object:
        """What protects this machine from model text, in one line."""

    @property
    def is_sandboxed(self) -> bool | None:
        """Whether model code runs in a sandbox that holds; None where none is run here."""

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come."""

    def close(self) -> None:
        """Finish what was submitted, and end every process."""


class Pool(abc.ABC):
    """A judge whose verdicts take their time: many are asked for at once. Used in a `with` block,
    which an error leaves without waiting for what has not begun.
    """

    @abc.abstractmethod
    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come."""

    @abc.abstractmethod
    def close(self, *, is_abandoned: bool = False) -> None:
        """Finish what was submitted, or if abandoned what has begun, and end every process."""

    def map(self, pairs: Iterable[tuple[str, Reference]]) -> list[Verdict]:
        """Verdicts of (completion, reference) pairs, in their order."""
        return [future.result() for future in [self.submit(*pair) for pair in pairs]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(is_abandoned=kind is not None)


class InlineJudge:
    """Judges plain numbers and plain texts in this process.

    Reading the last number of a text and comparing it as a fraction executes nothing that a model
    wrote, nor does comparing texts. It needs no sandbox, so a machine without one (macOS, some
    containers) can still train on such tasks.
    """

    is_sandboxed = None
    report = "verifier: numbers and texts, compared in this process; no model text is executed"

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict, as a future that is done. Raises: TypeError for any other reference."""
        verdict = fast_path(completion, reference)
        if not isinstance(reference, PlainReference) or verdict is None:
            raise TypeError(f"{type(reference).__name__} needs a VerifierPool to be judged.")
        future: Future[Verdict] = Future()
        future.set_result(verdict)
        return future

    def close(self) -> None:
        """Nothing is left to end."""
