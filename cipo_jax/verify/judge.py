"""Who judges: this process, the pool of this host, or a service elsewhere."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from cipo_jax.verify.answers.judging import fast_path
from cipo_jax.verify.verdict import NumberReference, Reference, TextReference, Verdict

if TYPE_CHECKING:
    from cipo_jax.config import Verify


class Judge(Protocol):
    """What a rollout needs of a verifier."""

    @property
    def report(self) -> object:
        """What stands between model text and this machine, as one line of text."""

    @property
    def is_sandboxed(self) -> bool | None:
        """Whether model code runs in a sandbox that holds; None where none is run here."""

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come."""

    def close(self) -> None:
        """Finish what was submitted, and end every process."""


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
        if not isinstance(reference, NumberReference | TextReference) or verdict is None:
            raise TypeError(f"{type(reference).__name__} needs a VerifierPool to be judged.")
        future: Future[Verdict] = Future()
        future.set_result(verdict)
        return future

    def close(self) -> None:
        """Nothing is left to end."""


def verify(completion: str, reference: Reference, *, settings: Verify | None = None) -> Verdict:
    """The verdict on one completion, in one call.

    Numbers and texts are judged on the spot; for anything else this process opens a pool at the
    first call, which takes about half a second, and keeps it until it ends. Code that judges many
    completions opens a `VerifierPool` itself, whose `submit` doesn't wait.

    Args:
      settings: `config.Verify`; one pool is kept for each.
    Raises: SandboxError where a pool is needed and no sandbox holds; ValueError for a number
      reference that is no number; TypeError for what is no reference.
    """
    from cipo_jax.config import Verify

    if isinstance(reference, NumberReference | TextReference):
        return InlineJudge().submit(completion, reference).result()
    return _kept_pool(settings or Verify(), os.getpid()).submit(completion, reference).result()


@functools.cache
def _kept_pool(settings: Verify, process: int) -> Judge:
    """The pool of `verify`; a fork of the process has none of its threads, so it gets its own."""
    pool = _open_pool(settings)
    atexit.register(pool.close)
    return pool


def _open_pool(settings: Verify) -> Judge:
    # Here, since a nursery imports this package too, and without the packages that this needs.
    from cipo_jax.verify.remote import open_pool

    return open_pool(settings)


def open_judge(settings: Verify, references: Iterable[Reference]) -> Judge:
    """The judge for tasks with these references: processes only where one of them needs any.

    Raises: SandboxError where the pool is needed and no sandbox holds.
    """
    if all(isinstance(reference, NumberReference | TextReference) for reference in references):
        return InlineJudge()
    return _open_pool(settings)
