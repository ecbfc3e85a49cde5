"""Several processes that run one program: how they find each other, agree, and end together.

Every process runs the same host code on the same problems and comes to the same decisions, so
anchors, advantages and the batch need no messages. Shared out are the devices' work, by the mesh,
and the judging, by prompt. What one process alone knows (a verdict, a signal, the run's folder)
passes through here before anything depends on it.

All of it is one collective over the devices, so all processes make the same calls in the same
order. With a single process every function returns at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Value = TypeVar("Value")

# Exceptions that say what to do, and need no traceback.
EXPLAINED = (ValueError, OSError, ImportError, RuntimeError)


class PeerError(RuntimeError):
    """Another process failed, or does not agree with this one."""


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    peer_timeout_s: int = 100,
) -> None:
    """Join the other processes of the job. Call it before anything touches a device.

    Without arguments they are found by jax's own detection: TPU pods, GKE, Slurm, Open MPI.

    Args:
      coordinator: HOST:PORT of process 0.
      peer_timeout_s: a process that is silent for so long counts as dead, and ends the others.
    Raises: ValueError if the arguments are incomplete, or nothing is detected; RuntimeError if the
      others don't come within five minutes.
    """
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given) and None in given:
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together: give all three, or "
            "--distributed alone where a TPU pod, Slurm or MPI says them."
        )
    try:
        jax.distributed.initialize(
            *given,
            heartbeat_timeout_seconds=peer_timeout_s,
            cluster_detection_method="deactivate" if coordinator else None,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed found no cluster to join ({error}). Start the processes by srun or "
            "mpirun, or on all hosts of a TPU pod; elsewhere give each --coordinator HOST:PORT, "
            "--num-processes N and --process-id I."
        ) from error


def count() -> int:
    return int(jax.process_count())


def is_first() -> bool:
    """Whether this process writes what a run writes once: its folder, figures and messages."""
    return jax.process_index() == 0


def is_mine(index: int) -> bool:
    """Whether this process does item `index` of a list that is shared out."""
    return index % count() == jax.process_index()


def gathered(record: Value) -> list[Value]:
    """The records of all processes, in order, on every process.

    Args:
      record: JSON-able; several megabytes are fine.
    """
    if jax.process_count() == 1:
        return [record]
    data = np.frombuffer(json.dumps(record).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    # A power of two, so that few sizes are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(row[:size]))
        for row, size in zip(np.asarray(rows), sizes.tolist(), strict=True)
    ]


def whole(tree: Value) -> Value:
    """Global arrays as host arrays, in whole, on every process."""
    on_host: Value = (
        jax.device_get(tree)
        if jax.process_count() == 1
        else multihost_utils.process_allgather(tree, tiled=True)
    )
    return on_host


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` returns on the first process, where alone it runs; JSON-able.

    Raises: there, its error; on all others a PeerError with the same message.
    """
    if jax.process_count() == 1:
        return make()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": make()}
        except EXPLAINED as error:
            gathered({"error": str(error)})
            raise
    outcome = gathered(outcome)[0]
    if "error" in outcome:
        raise PeerError(outcome["error"])
    value: Value = outcome["value"]
    return value


def on_any(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    return any(gathered(flag))


def agree(on: str, value: Any) -> None:
    """Check that all processes have the same value.

    Raises: PeerError on every process, with what differs between the first and another.
    """
    first, *others = gathered(value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise PeerError(
                f"the processes don't agree on {on}: process {number} has "
                f"{_where_different(other, first)}, and process 0 {_where_different(first, other)}."
                " All must run the same versions, with the same files and arguments."
            )


def _where_different(value: Any, other: Any) -> Any:
    """What of a value differs from another, at any depth inside dicts."""
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return value
    return {k: _where_different(v, other.get(k)) for k, v in value.items() if v != other.get(k)}


def meet(arguments: Any) -> None:
    """The first meeting: waits for every process, and checks that all were started alike.

    Args:
      arguments: whatever must be equal, JSON-able.
    Raises: PeerError if the versions or the arguments differ; ValueError if there are other
      processes that this one has not joined.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"This is one of {jax.process_count()} hosts: start cipo with --distributed on each."
        )
    agree("versions", {"jax": jax.__version__, "python": platform.python_version()})
    agree("devices of a process", jax.local_device_count())
    agree("the configuration", arguments)


def check_shared(path: Path) -> None:
    """Check that a file of the first process is seen by all.

    Raises: PeerError that names those that don't see it.
    """
    seen = gathered(_appears(path))
    if not all(seen):
        blind = ", ".join(str(i) for i, sees in enumerate(seen) if not sees)
        raise PeerError(
            f"{path} was written by process 0 and isn't there for process {blind}: --run-dir must "
            "be on a file system that all hosts share (NFS, Filestore, a mounted bucket)."
        )


def _appears(path: Path, within_s: float = 10.0) -> bool:
    """Network file systems may show a new file late."""
    deadline = time.monotonic() + within_s
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Where there are others, an error ends this process at once, without the meeting at which jax
    would wait for them: they are waiting in a collective for this one, and its end ends them.
    """
    try:
        yield
    except BaseException as error:
        # Asked in this order, since devices that can't be opened may be the very error.
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        if isinstance(error, EXPLAINED) and not os.environ.get("CIPO_DEBUG"):
            message = str(error)
        else:
            message = traceback.format_exc()
        print(
            f"process {jax.process_index()} of {jax.process_count()}: {message}\n"
            "This ends the job; the same command goes on from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 2)
