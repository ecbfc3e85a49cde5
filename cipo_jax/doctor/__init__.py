"""`cipo doctor`: what would stop or spoil a run on this machine, found out by trying it.

diagnosis.py  the result of a check; all processes in one table
host.py       versions, memory of the host, the run's folder and its disk
subject.py    the config's model and problems
verifier.py   the sandbox under attack, and a program that never ends
devices.py    devices, processes and their clocks, a small program on all of them
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from pathlib import Path

from cipo_jax.config import Config, Verify
from cipo_jax.doctor import devices, host, subject, verifier
from cipo_jax.doctor.diagnosis import Diagnosis, is_well, table, tried
from cipo_jax.mesh import processes

__all__ = ["Diagnosis", "examine", "is_well", "table"]


def examine(cfg: Config | None, folder: Path) -> list[list[Diagnosis]]:
    """Checks everything, on every process, in the same order.

    Where there are several processes, `processes.connect` comes first.

    Args:
      cfg: the run's configuration; None makes the checks that need none.
      folder: the run's folder, which need not exist; it is left as it was found.
    Returns: the diagnoses of each process; the same on all of them.
    """
    found = [*tried("versions", host.versions), *tried("devices", devices.seen)]
    if not devices.are_open():
        # Without devices there is nobody to meet; the checks that need none are made all the same.
        with host.left_as_found(folder):
            return [found + _subject(cfg) + _host(cfg, folder, saved_bytes=None, num_hosts=1)]
    arguments = {"folder": str(folder), "config": cfg and dataclasses.asdict(cfg)}
    found += (met := tried("processes", lambda: devices.meeting(arguments)))
    # Processes that were started differently would wait for each other in the other checks.
    if any(diagnosis.status == "FAIL" for diagnosis in met) and processes.count() > 1:
        return [found]
    found += tried("program", lambda: devices.program(cfg))
    found += _subject(cfg)
    saved = resident = None
    if cfg is not None:
        # If this fails, the model or the mesh is at fault, which an earlier check has found.
        with contextlib.suppress(ValueError, OSError):
            saved, resident = devices.state_bytes(cfg)
    found += tried("device memory", lambda: devices.memory(resident))
    with host.left_as_found(folder):
        found += _host(cfg, folder, saved_bytes=saved, num_hosts=processes.count())
        if not processes.on_any(not _is_there(folder)):
            name = processes.from_first(lambda: f".doctor-shared-{uuid.uuid4().hex[:8]}")
            found += tried("shared folder", lambda: devices.shared(folder, name))
        # The last meeting: until then nobody removes the folder that others use.
        everywhere = processes.gathered([diagnosis.to_json() for diagnosis in found])
    return [[Diagnosis(**record) for record in records] for records in everywhere]


def _subject(cfg: Config | None) -> list[Diagnosis]:
    if cfg is None:
        return []
    return [
        *tried("model", lambda: subject.model(cfg)),
        *tried("problems", lambda: subject.problems(cfg)),
    ]


def _host(
    cfg: Config | None, folder: Path, *, saved_bytes: int | None, num_hosts: int
) -> list[Diagnosis]:
    """The checks that need neither devices nor other processes."""
    settings = Verify() if cfg is None else cfg.verify
    is_needed = cfg is not None and subject.executes(cfg)
    per_host = None if saved_bytes is None else saved_bytes // num_hosts
    keep = 1 if cfg is None else cfg.checkpoint.keep
    return [
        *tried("host memory", lambda: host.memory(per_host)),
        *tried("sandbox", lambda: verifier.sandbox(settings, is_needed=is_needed)),
        *tried("run folder", lambda: host.run_folder(folder, saved_bytes, keep)),
    ]


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:
        return False
