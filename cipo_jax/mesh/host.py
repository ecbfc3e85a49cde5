"""The host that devices are attached to."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def free_memory() -> int | None:
    """Bytes that programs can still take, by the kernel's own estimate; None where the system does
    not say, as only Linux does.
    """
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(size.split()[0])
    return None
