"""The pool: verdicts as futures, from locked-down processes that can always be killed.

Each of the pool's workers is a thread of the caller's process that waits on one program at a time;
the work happens in cells (`sandbox/`). What fails on the verifier's side is tried again in fresh
cells and then reported as unknown, never as wrong.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from cipo_jax.verify.answers import judging
from cipo_jax.verify.judge import Pool
from cipo_jax.verify.protocol import Limits
from cipo_jax.verify.sandbox import probe
from cipo_jax.verify.sandbox.host import Nursery
from cipo_jax.verify.slot import Slot
from cipo_jax.verify.verdict import Reason, Reference, Verdict

if TYPE_CHECKING:
    from cipo_jax.config import Verify

log = logging.getLogger(__name__)

PROBE_S = 20.0
"""Least wall-clock limit of the attacks at start: on a busy machine they, too, take their time, and
a layer that is taken for broken is not used.
"""

_Job = tuple[str, Reference, "Future[Verdict]"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protection:
    """What stands between model code and this machine, as the attacks at start found it."""

    finding: probe.Finding
    failed: tuple[probe.Finding, ...]
    limits: Limits

    @property
    def level(self) -> str:
        """`namespaces`, `user-namespaces`, `landlock`, `strict`, or `none`."""
        return self.finding.isolation.level

    @property
    def is_sandboxed(self) -> bool:
        """False: model code runs as this user, under resource limits only."""
        return self.level != "none"

    def __str__(self) -> str:
        limits = self.limits
        groups = {entry.split()[0] for entry in self.finding.open}
        states = " ".join(
            f"{group} {'OPEN' if group in groups else 'blocked'}" for group in probe.GROUPS[:-1]
        )
        scratch = (
            f"{limits.scratch_bytes // 2**20} MiB scratch in memory"
            if self.finding.isolation.namespaces
            else "no scratch"
        )
        return (
            f"verifier sandbox: {self.level} ({self.finding.isolation}) | {states} | per program "
            f"{limits.wall_s:g} s, {limits.memory_bytes // 2**20} MiB memory, "
            f"{limits.output_bytes // 2**10} KiB output, {scratch} | not covered: faults of the "
            "kernel itself, which programs share with this machine"
        )


class VerifierPool(Pool):
    """Judges completions in parallel.

        with VerifierPool(cfg.verify) as pool:
            verdict = pool.submit(completion, reference).result()

    Plain right answers are recognised in the caller's process; everything else is judged in
    processes that never saw the trainer's memory. May be used from several threads.

    Args:
      settings: `config.Verify`.
    Raises: SandboxError where no sandbox holds and `allow_unsandboxed` is not set.
    """

    def __init__(self, settings: Verify) -> None:
        self._limits = Limits(
            wall_s=settings.deadline_s,
            memory_bytes=settings.memory_mb * 2**20,
            output_bytes=settings.output_kb * 2**10,
        )
        self._nurseries = {"code": Nursery("code"), "math": Nursery("math")}
        try:
            finding, failed = probe.choose(
                self._nurseries["code"],
                # The attacks need their own time, however short the answers' is.
                dataclasses.replace(self._limits, wall_s=max(PROBE_S, settings.deadline_s)),
                level=settings.isolation,
                allow_unsandboxed=settings.allow_unsandboxed,
            )
        except BaseException:
            self._nurseries["code"].close()
            raise
        self.report = Protection(finding=finding, failed=tuple(failed), limits=self._limits)
        log.log(logging.INFO if self.report.is_sandboxed else logging.WARNING, "%s", self.report)
        self._counts: collections.Counter[Reason] = collections.Counter()
        self._counts_lock = threading.Lock()
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._open_lock = threading.Lock()  # so that no job is put behind what ends the workers
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._work, name=f"verifier-{index}", daemon=True)
            for index in range(settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come. The future never raises but for cancellation.

        Raises: ValueError on a pool that is closed or was opened before a fork, or for a number
          reference that is no number; TypeError for what is no reference.
        """
        if not isinstance(reference, Reference):
            raise TypeError(f"{type(reference).__name__} is no reference; see verify/verdict.py.")
        if not self._is_open:
            raise ValueError("the verifier pool is closed.")
        if os.getpid() != self._pid:
            raise ValueError("a fork of the process that opened the verifier pool needs its own.")
        future: Future[Verdict] = Future()
        started = time.perf_counter()
        verdict = judging.fast_path(completion, reference)
        if verdict is not None:
            future.set_result(self._counted(verdict, started))
            return future
        with self._open_lock:
            if not self._is_open:
                raise ValueError("the verifier pool is closed.")
            self._jobs.put((completion, reference, future))
        return future

    @property
    def is_sandboxed(self) -> bool:
        """False: model code runs as this user, which `allow_unsandboxed` has allowed."""
        return self.report.is_sandboxed

    @property
    def counts(self) -> dict[Reason, int]:
        """Verdicts so far, by reason."""
        with self._counts_lock:
            return dict(self._counts)

    def close(self, *, is_abandoned: bool = False) -> None:
        """Finishes what was submitted (if abandoned, what has begun), then ends every process. May
        be called twice; in a fork of the process that opened the pool it does nothing.
        """
        if os.getpid() != self._pid:
            return
        with self._open_lock:
            was_open, self._is_open = self._is_open, False
            if was_open and is_abandoned:
                self._cancel_waiting()
            for _ in self._threads if was_open else ():
                self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for nursery in self._nurseries.values():
            nursery.close()

    def _cancel_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while job := self._jobs.get_nowait():
                job[2].cancel()

    def _work(self) -> None:
        slot = Slot(self._nurseries, self.report.finding.isolation, self._limits)
        while (job := self._jobs.get()) is not None:
            completion, reference, future = job
            if future.set_running_or_notify_cancel():
                started = time.perf_counter()
                future.set_result(self._counted(slot.judge(completion, reference), started))
        slot.close()

    def _counted(self, verdict: Verdict, started: float) -> Verdict:
        with self._counts_lock:
            self._counts[verdict.reason] += 1
        return dataclasses.replace(verdict, seconds=time.perf_counter() - started)
