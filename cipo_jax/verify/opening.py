"""Who judges: this process, the pool of this host, or a service elsewhere."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cipo_jax.verify.judge import InlineJudge, Judge
from cipo_jax.verify.verdict import PlainReference, Reference, Verdict

if TYPE_CHECKING:
    from cipo_jax.config import Verify
    from cipo_jax.verify.fusion import FusionPool
    from cipo_jax.verify.pool import VerifierPool
    from cipo_jax.verify.remote import RemotePool


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
