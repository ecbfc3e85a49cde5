"""What a check found, and how what all processes found becomes one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from cipo_jax.mesh.processes import EXPLAINED

Status = Literal["ok", "warn", "FAIL"]
_SEVERITY: dict[Status, int] = {"ok": 0, "warn": 1, "FAIL": 2}
_STYLE: dict[Status, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table: a FAIL stops a run or spoils it, a warning is worth reading."""

    check: str
    status: Status
    found: str
    way_out: str = ""
    """What to do about it, where that isn't said by `found`."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, status="ok", found=found)


def warn(check: str, found: str, way_out: str = "") -> Finding:
    return Finding(check=check, status="warn", found=found, way_out=way_out)


def fail(check: str, found: str, way_out: str = "") -> Finding:
    return Finding(check=check, status="FAIL", found=found, way_out=way_out)


def tried(check: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What `look` finds; an error that it ends with is a FAIL, whose message says the way out."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except EXPLAINED as error:
        found.append(fail(check, f"{type(error).__name__}: {error}"))
    return found


def is_well(everywhere: Sequence[Sequence[Finding]]) -> bool:
    """No process has a FAIL."""
    return all(finding.status != "FAIL" for findings in everywhere for finding in findings)


def table(everywhere: Sequence[Sequence[Finding]]) -> Table:
    """The findings of all processes, in one line where they have the same status.

    Args:
      everywhere: of each process, its findings.
    """
    shown = Table("", "check", "found", box=None, padding=(0, 2, 0, 0))
    for processes, finding in merged(everywhere):
        where = "" if len(processes) == len(everywhere) else f"process {_listed(processes)}: "
        text = f"{where}{finding.found}"
        if finding.way_out:
            text += f"\n-> {finding.way_out}"
        status = f"[{_STYLE[finding.status]}]{finding.status}[/]"
        # Paths and messages may hold square brackets, which are no markup.
        shown.add_row(status, finding.check, text.replace("[", r"\["))
    return shown


def merged(everywhere: Sequence[Sequence[Finding]]) -> list[tuple[list[int], Finding]]:
    """Each check once, with the first process's words, where all have one status; otherwise the
    worst first, once for each status. Checks in the order in which they were first made.
    """
    checks: dict[str, dict[Status, tuple[list[int], Finding]]] = {}
    for process, findings in enumerate(everywhere):
        for finding in findings:
            by_status = checks.setdefault(finding.check, {})
            processes, _ = by_status.setdefault(finding.status, ([], finding))
            if process not in processes:
                processes.append(process)
    return [
        by_status[status]
        for by_status in checks.values()
        for status in sorted(by_status, key=lambda s: -_SEVERITY[s])
    ]


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    text = ", ".join(map(str, numbers[:most]))
    return text if len(numbers) <= most else f"{text} and {len(numbers) - most} more"
