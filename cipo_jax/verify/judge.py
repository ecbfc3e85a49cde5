"""Who judges: this process, the pool of this host, or a service elsewhere."""

from __future__ import annotations

import abc
import atexit
import functools
import os
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, Self

from cipo_jax.verify.answers.judging import fast_path
from cipo_jax.verify.verdict import PlainReference, Reference, Verdict

if TYPE_CHECKING:
    from cipo_jax.config import Verify
    from cipo_jax.verify.fusion import FusionPool
    from cipo_jax.verify.pool import VerifierPool
    from cipo_jax.verify.remote import RemotePool


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

    if isinstance(reference, PlainReference):
        return InlineJudge().submit(completion, reference).result()
    return _kept_pool(settings or Verify(), os.getpid()).submit(completion, reference).result()


@functools.cache
def _kept_pool(settings: Verify, process: int) -> Judge:
    """The pool of `verify`; a fork of the process has none of its threads, so it gets its own."""
    pool = open_pool(settings)
    atexit.register(pool.close)
    return pool


def open_pool(settings: Verify) -> VerifierPool | RemotePool | FusionPool:
    """The pool that the configuration asks for: of this host, or of a server.

    Raises: SandboxError where no sandbox holds here; ConnectionError for a server that can't be
      reached, refuses the token or doesn't run programs.
    """
    # Here, since a nursery imports this package too, and without the packages that these need.
    from cipo_jax.verify.fusion import FusionPool
    from cipo_jax.verify.pool import VerifierPool
    from cipo_jax.verify.remote import TOKEN_VARIABLE, RemotePool

    if not settings.service_url:
        return VerifierPool(settings)
    if settings.service_kind == "sandbox-fusion":
        return FusionPool(
            settings.service_url,
            settings,
            deadline_s=settings.service_deadline_s,
            connections=settings.workers,
        )
    return RemotePool(
        settings.service_url,
        token=os.environ.get(TOKEN_VARIABLE, ""),
        deadline_s=settings.service_deadline_s,
        connections=settings.workers,
    )


def open_judge(settings: Verify, references: Iterable[Reference]) -> Judge:
    """The judge for tasks with these references: processes only where one of them needs any.

    Raises: as `open_pool`; ValueError for references that the server of `verify.service_kind` can't
      judge.
    """
    kinds = {type(reference) for reference in references}
    if all(issubclass(kind, PlainReference) for kind in kinds):
        return InlineJudge()
    if settings.service_kind == "sandbox-fusion":
        from cipo_jax.verify.fusion import check_kinds

        check_kinds(kinds)
    return open_pool(settings)
