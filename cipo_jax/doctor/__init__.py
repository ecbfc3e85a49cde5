"""`cipo doctor`: what would stop or spoil a run on this machine, found out by trying it.

finding.py    what a check found; all processes in one table
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
from cipo_jax.doctor.finding import Finding, is_well, table, tried
from cipo_jax.mesh import processes

__all__ = ["Finding", "examine", "is_well", "table"]


def examine(cfg: Config | None, folder: Path) -> list[list[Finding]]:
    """Check everything, on every process, in the same order.

    Call `processes.connect` before where there are several.

    Args:
      cfg: the run's configuration; None checks what needs none.
      folder: the run's, there or not; it is left as it was found.
    Returns: of each process, its findings; the same on all.
    """
    found = [*tried("versions", host.versions), *tried("devices", devices.seen)]
    if not devices.are_open():
        # Without devices there is nobody to meet; what needs none is looked at all the same.
        with host.left_as_found(folder):
            return [found + _subject(cfg) + _host(cfg, folder, saved_bytes=None, num_hosts=1)]
    arguments = {"folder": str(folder), "config": cfg and dataclasses.asdict(cfg)}
    found += (met := tried("processes", lambda: devices.meeting(arguments)))
    # Where they were started differently the rest would wait for each other, or compare nothing.
    if any(finding.status == "FAIL" for finding in met) and processes.count() > 1:
        return [found]
    found += tried("program", lambda: devices.program(cfg))
    found += _subject(cfg)
    saved = resident = None
    if cfg is not None:
        # Where this fails the model or the mesh is at fault, which is found already.
        with contextlib.suppress(ValueError, OSError):
            saved, resident = devices.state_bytes(cfg)
    found += tried("device memory", lambda: devices.memory(resident))
    with host.left_as_found(folder):
        found += _host(cfg, folder, saved_bytes=saved, num_hosts=processes.count())
        if not processes.on_any(not _is_there(folder)):
            name = processes.from_first(lambda: f".doctor-shared-{uuid.uuid4().hex[:8]}")
            found += tried("shared folder", lambda: devices.shared(folder, name))
        # The last meeting: nobody removes the folder under another's feet.
        everywhere = processes.gathered([finding.to_json() for finding in found])
    return [[Finding(**record) for record in records] for records in everywhere]


def _subject(cfg: Config | None) -> list[Finding]:
    if cfg is None:
        return []
    return [
        *tried("model", lambda: subject.model(cfg)),
        *tried("problems", lambda: subject.problems(cfg)),
    ]


def _host(
    cfg: Config | None, folder: Path, *, saved_bytes: int | None, num_hosts: int
) -> list[Finding]:
    """What needs neither devices nor other processes."""
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
