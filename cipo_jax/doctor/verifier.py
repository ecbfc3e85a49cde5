"""The sandbox: attacked, and left alone with a program that never ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from cipo_jax.config import Verify
from cipo_jax.doctor.diagnosis import Diagnosis, fail, ok, warn
from cipo_jax.verify import SandboxError, StdioReference, VerifierPool
from cipo_jax.verify.judge import Judge
from cipo_jax.verify.opening import open_pool

_SUM = StdioReference(cases=(("1 2\n", "3\n"),))
_HONEST = "```python\nprint(sum(map(int, input().split())))\n```"
_HANGING = "```python\nwhile True:\n    pass\n```"
_DEADLINE_S = 2.0
_GRACE_S = 5.0


def sandbox(settings: Verify, *, is_needed: bool) -> Iterator[Diagnosis]:
    """Opens the pool, which attacks its own sandbox, and judges a correct and a hanging program.

    Args:
      is_needed: whether the run judges in processes; if not, it needs no sandbox.
    """
    settings = dataclasses.replace(
        settings, workers=1, deadline_s=min(settings.deadline_s, _DEADLINE_S)
    )
    before = descendants()
    try:
        pool = open_pool(settings)
    except (SandboxError, ConnectionError, ValueError) as error:
        judge = fail if is_needed else warn
        reason = "" if is_needed else "runs that only compare numbers or texts need none; "
        yield judge("sandbox", f"{reason}{error}")
        return
    with contextlib.closing(pool):
        if isinstance(pool, VerifierPool) and not pool.report.is_sandboxed:
            yield warn(
                "sandbox",
                str(pool.report),
                "Model-written programs can read and change what this user can: unset "
                "verify.allow_unsandboxed, or judge on another machine (cipo verify-serve).",
            )
        else:
            yield ok("sandbox", str(pool.report))
        yield hanging_program(pool, settings)
    left = descendants() - before
    if left:
        yield fail(
            "hanging program",
            f"processes {sorted(left)} of the verifier are still there after it was closed",
            "Report this with the output of `cipo doctor --json`; end them by `kill -9`.",
        )


def hanging_program(pool: Judge, settings: Verify) -> Diagnosis:
    """Whether a program that spins is killed at its deadline, and the pool then judges others."""
    first = pool.submit(_HONEST, _SUM).result()
    start = time.perf_counter()
    hung = pool.submit(_HANGING, _SUM).result()
    seconds = time.perf_counter() - start
    after = pool.submit(_HONEST, _SUM).result()
    verdicts = [f"{v.status.name.lower()} ({v.reason})" for v in (first, hung, after)]
    limit = settings.service_deadline_s if settings.service_url else settings.deadline_s + _GRACE_S
    is_well = first.reason == after.reason == "ok" and hung.reason == "timeout" and seconds < limit
    text = f"ended after {seconds:.1f} s; a correct program before and after it is right"
    if is_well:
        return ok("hanging program", text)
    return fail(
        "hanging program",
        f"a correct, a hanging and a correct program are judged {', '.join(verdicts)}, the second "
        f"after {seconds:.1f} s",
        "Raise verify.deadline_s or lower verify.workers if this machine is busy.",
    )


def descendants() -> set[int]:
    """All descendants of this process, by their ids; empty where there is no /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; the state and the parent follow it.
            match = re.search(r"\) (\S) (\d+)", path.read_text())
            if match and match[1] != "Z":
                parents[int(path.parent.name)] = int(match[2])
    found: set[int] = set()
    level = {os.getpid()}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= level
    return found
