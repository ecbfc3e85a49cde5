"""The result of one check, and the results of all processes in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from cipo_jax.mesh.processes import EXPLAINED

Severity = Literal["ok", "warn", "FAIL"]
_ORDER: dict[Severity, int] = {"ok": 0, "warn": 1, "FAIL": 2}
_STYLE: dict[Severity, str] = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One line of the table: a FAIL stops a run or spoils it, a warning is worth reading."""

    check: str
    status: Severity
    found: str
    way_out: str = ""
    """How to remedy it, where `found` does not say so."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ok(check: str, found: str) -> Diagnosis:
    return Diagnosis(check=check, status="ok", found=found)


def warn(check: str, found: str, way_out: str = "") -> Diagnosis:
    return Diagnosis(check=check, status="warn", found=found, way_out=way_out)


def fail(check: str, found: str, way_out: str = "") -> Diagnosis:
    return Diagnosis(check=check, status="FAIL", found=found, way_out=way_out)


def tried(check: str, look: Callable[[], Iterator[Diagnosis]]) -> list[Diagnosis]:
    """The diagnoses of `look`; an error that ends it is a FAIL, whose message says the way out."""
    found: list[Diagnosis] = []
    try:
        found.extend(look())
    except EXPLAINED as error:
        found.append(fail(check, f"{type(error).__name__}: {error}"))
    return found


def is_well(everywhere: Sequence[Sequence[Diagnosis]]) -> bool:
    """No process has a FAIL."""
    return all(diagnosis.status != "FAIL" for diagnoses in everywhere for diagnosis in diagnoses)


def table(everywhere: Sequence[Sequence[Diagnosis]]) -> Table:
    """The diagnoses of all processes as a table, one line for those with the same status.

    Args:
      everywhere: the diagnoses of each process.
    """
    shown = Table("", "check", "found", box=None, padding=(0, 2, 0, 0))
    for processes, diagnosis in merged(everywhere):
        where = "" if len(processes) == len(everywhere) else f"process {_listed(processes)}: "
        text = f"{where}{diagnosis.found}"
        if diagnosis.way_out:
            text += f"\n-> {diagnosis.way_out}"
        status = f"[{_STYLE[diagnosis.status]}]{diagnosis.status}[/]"
        # Paths and messages may hold square brackets, which are no markup.
        shown.add_row(status, diagnosis.check, text.replace("[", r"\["))
    return shown


def merged(everywhere: Sequence[Sequence[Diagnosis]]) -> list[tuple[list[int], Diagnosis]]:
    """The processes and the diagnosis of each check, in the order in which checks were first made.

    A check on which all processes agree occurs once, with the first process's words; otherwise once
    for each status, the worst first.
    """
    checks: dict[str, dict[Severity, tuple[list[int], Diagnosis]]] = {}
    for process, diagnoses in enumerate(everywhere):
        for diagnosis in diagnoses:
            by_status = checks.setdefault(diagnosis.check, {})
            processes, _ = by_status.setdefault(diagnosis.status, ([], diagnosis))
            if process not in processes:
                processes.append(process)
    return [
        by_status[status]
        for by_status in checks.values()
        for status in sorted(by_status, key=lambda s: -_ORDER[s])
    ]


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    text = ", ".join(map(str, numbers[:most]))
    return text if len(numbers) <= most else f"{text} and {len(numbers) - most} more"
