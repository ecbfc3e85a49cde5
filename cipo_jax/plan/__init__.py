"""`cipo plan`: the needs of a run on devices that are not there.

Every program of the run is compiled by the accelerator's own compiler, which needs no accelerator,
and the memory of the whole cycle is added up.

hardware.py     chips and slices by their names; devices.py describes them to the compiler
programs.py     every program of a run, with abstract arguments
compile.py      one program compiled; answers.py keeps what the compiler answered
flops.py        operations of a program; movement.py, collectives.py, loops.py, hlo.py its traffic
cycle.py        the memory of a device from call to call
search.py       the largest settings that fit
record.py       the plan as data; report.py as tables, picture.py as a picture
worker.py       the process that does it
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from cipo_jax.config import Config
from cipo_jax.plan.devices import check_compiler
from cipo_jax.plan.hardware import Slice
from cipo_jax.plan.record import Plan
from cipo_jax.plan.search import Knob
from cipo_jax.plan.worker import PROGRESS, Request

__all__ = ["ENVIRONMENT", "make"]

ENVIRONMENT = {
    # No device of this machine is used, and no metadata server is asked for one.
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    # libtpu else takes a lock, and two plans at a time refuse each other.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Writes, and then misses every time: the entries can't be read without a device.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
"""Variables of the process that compiles, which the compilers read when they are loaded."""


def make(
    cfg: Config,
    wanted: Slice,
    *,
    hbm_gib: float | None = None,
    knobs: Sequence[Knob] = (),
    answers: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan a run on a slice, in a process of its own.

    Args:
      hbm_gib: memory of a device; None takes what the compiler or the data sheet says.
      knobs: settings whose largest value is searched for.
      answers: folder where the compiler's answers are kept from plan to plan; None keeps none.
      say: is told of the progress, a line at a time.

    Raises:
      ImportError: the compiler is not installed; says how to get it.
      ValueError: the configuration does not fit the slice's shape.
      RuntimeError: the compiler failed for another reason than memory.
    """
    check_compiler(wanted)
    request = Request(cfg=cfg, slice=wanted, hbm_gib=hbm_gib, knobs=tuple(knobs), answers=answers)
    # A file without a name: nothing remains of it, however this process ends.
    with tempfile.TemporaryFile() as results:
        said = _run(pickle.dumps(request), results, say)
        results.seek(0)
        written = results.read()
    if not written:
        raise RuntimeError(
            "The compiler's process ended without a result. Its last words:\n"
            + "\n".join(said[-15:])
        )
    result: Plan | Exception = pickle.loads(written)
    if isinstance(result, Exception):
        raise result
    return result


def _run(request: bytes, results: IO[bytes], say: Callable[[str], None]) -> list[str]:
    """Runs the worker; returns the lines that it printed, without its progress."""
    kept: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "cipo_jax.plan.worker"],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=results,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            # Left open: when it closes, the worker knows that nobody waits for it any more.
            process.stdin.write(request)
            process.stdin.flush()
            for line in process.stderr:
                text = line.decode(errors="replace").rstrip()
                if text.startswith(PROGRESS):
                    say(text.removeprefix(PROGRESS))
                else:
                    kept.append(text)
        except BaseException:
            process.kill()
            raise
    return kept
