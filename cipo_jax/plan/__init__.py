"""What a run needs on devices that are not there: `cipo plan`.

Every program of the run is compiled by the accelerator's own compiler, which needs no accelerator,
and the memory of the whole cycle is added up.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cipo_jax.config import Config
from cipo_jax.plan.devices import check_compiler
from cipo_jax.plan.hardware import Slice
from cipo_jax.plan.record import Plan
from cipo_jax.plan.search import Knob
from cipo_jax.plan.worker import PROGRESS, Request

__all__ = ["make"]

_ENVIRONMENT = {
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


def make(
    cfg: Config,
    wanted: Slice,
    *,
    hbm_gib: float | None = None,
    knobs: Sequence[Knob] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan a run on a slice, in a process of its own.

    Args:
      hbm_gib: memory of a device; None takes what the compiler or the data sheet says.
      knobs: settings whose largest value is searched for.
      say: is told what goes on, a line at a time.

    Raises:
      ImportError: the compiler is not installed; says how to get it.
      ValueError: the configuration does not go with the slice.
      RuntimeError: the compiler failed for another reason than memory.
    """
    check_compiler(wanted)
    request = Request(cfg=cfg, slice=wanted, hbm_gib=hbm_gib, knobs=tuple(knobs))
    with tempfile.TemporaryDirectory(prefix="cipo-plan-") as folder:
        request_path, result_path = Path(folder) / "request", Path(folder) / "result"
        request_path.write_bytes(pickle.dumps(request))
        said = _run([str(request_path), str(result_path)], say)
        if not result_path.exists():
            raise RuntimeError(
                "The compiler's process ended without a result. Its last words:\n"
                + "\n".join(said[-15:])
            )
        result = pickle.loads(result_path.read_bytes())
    if isinstance(result, Exception):
        raise result
    return result


def _run(paths: list[str], say: Callable[[str], None]) -> list[str]:
    """Runs the worker; returns what it wrote, other than its progress."""
    kept: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "cipo_jax.plan.worker", *paths],
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    say(line.removeprefix(PROGRESS).rstrip())
                else:
                    kept.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return kept
