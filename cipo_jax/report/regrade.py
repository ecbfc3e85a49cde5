"""A report on the stored rollouts of a run: what the verifier as it is now says about them.

After a change of the verifier (a new rule, a fixed bug) it shows which rewards were given that
would not be given now. Nothing is written, and a finished training can't be undone by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cipo_jax.verify.judge import Judge
from cipo_jax.verify.verdict import Reference, Status, Verdict
from cipo_jax.verify.wire import decode_reference

COLUMNS = [
    "step", "stream", "problem_id", "group", "sample", "completion", "reference", "status",
    "reason", "anchor", "is_anchor_right",
]  # fmt: skip

SHOWN_CHANGES = 10
"""Changed samples that the table names one by one."""


@dataclass(frozen=True, kw_only=True)
class ChangedVerdict:
    """A sample that has another status now."""

    step: int
    stream: str
    problem_id: str
    group: int
    sample: int
    before: Status
    after: Status
    reason_before: str
    reason_after: str

    def __str__(self) -> str:
        return (
            f"step {self.step}, {self.stream}, problem {self.problem_id}, sample {self.sample}: "
            f"{self.before.value} ({self.reason_before}), now {self.after.value} "
            f"({self.reason_after})"
        )


@dataclass
class Regraded:
    """The comparison, stream by stream."""

    num_steps: int = 0
    statuses: dict[str, Counter[tuple[Status, Status]]] = field(default_factory=dict)
    """Samples by stream, status then and status now."""
    changes: list[ChangedVerdict] = field(default_factory=list)
    num_groups: int = 0
    num_groups_changed: int = 0
    """Groups with a changed sample: their advantages would have been others."""
    num_anchors_changed: int = 0
    """Correction groups whose attempt changes between right and not right: another reward rule
    would have held for them."""

    def table(self) -> str:
        """The comparison as text."""
        num_samples = sum(sum(counts.values()) for counts in self.statuses.values())
        judged = f"{_counted(num_samples, 'sample')} of {_counted(self.num_steps, 'step')}"
        num_changed = f"{len(self.changes):,}" if self.changes else "none"
        lines = [
            f"{judged} judged again: {num_changed} changed",
            *(f"  {change}" for change in self.changes[:SHOWN_CHANGES]),
        ]
        if len(self.changes) > SHOWN_CHANGES:
            lines.append(f"  ... and {len(self.changes) - SHOWN_CHANGES:,} more")
        lines += ["", f"{'stream':<12}{'then':<9}{'now':<9}{'samples':>9}"]
        for stream, counts in sorted(self.statuses.items()):
            lines += sorted(
                f"{stream:<12}{before.value:<9}{after.value:<9}{count:>9,}"
                f"{'' if before is after else '  changed'}"
                for (before, after), count in counts.items()
            )
            then, now = _share_right(counts, 0), _share_right(counts, 1)
            lines.append(f"{stream:<12}right of those judged: {then} then, {now} now")
        share = f"{self.num_groups_changed:,} of {self.num_groups:,} groups"
        lines += ["", f"{share} would have had other advantages"]
        if "correction" in self.statuses:
            lines.append(
                f"{_counted(self.num_anchors_changed, 'correction group')} started from an attempt "
                "that changes between right and not right"
            )
        return "\n".join(lines)


def regrade(run_dir: Path, judge: Judge) -> Regraded:
    """Judge every stored sample of a run again, and compare.

    Memory holds one step at a time.

    Raises: FileNotFoundError if the run has stored no rollouts; ValueError for a file of them that
      can't be read.
    """
    found = Regraded()
    for path in _rollout_files(run_dir):
        rows = _read(path, COLUMNS).to_pylist()
        pending = [
            judge.submit(row["completion"], decode_reference(row["reference"])) for row in rows
        ]
        _compare(found, rows, [future.result() for future in pending])
        found.num_steps += 1
    return found


def stored_references(run_dir: Path) -> list[Reference]:
    """The distinct references of a run's rollouts: they tell what kind of judge is needed.

    Raises: as `regrade`.
    """
    texts: set[str] = set()
    for path in _rollout_files(run_dir):
        texts.update(_read(path, ["reference"])["reference"].to_pylist())
    return [decode_reference(text) for text in texts]


def _rollout_files(run_dir: Path) -> list[Path]:
    paths = sorted((run_dir / "rollouts").glob("step_*.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"{run_dir} has no rollouts to judge again; log.rollouts_every must be at least 1 in "
            "the run's config."
        )
    return paths


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} can't be read ({error}). It was cut off or changed after the run wrote it; "
            "move it out of the folder to judge the other steps."
        ) from None


def _compare(found: Regraded, rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> None:
    """Add the samples of one step."""
    changed_groups: set[tuple[str, int]] = set()
    right_now: dict[tuple[str, str], bool] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        before, after = Status(row["status"]), verdict.status
        found.statuses.setdefault(row["stream"], Counter())[before, after] += 1
        if row["stream"] == "base":
            right_now[row["problem_id"], row["completion"]] = after is Status.RIGHT
        if before is not after:
            changed_groups.add((row["stream"], row["group"]))
            found.changes.append(
                ChangedVerdict(
                    step=row["step"],
                    stream=row["stream"],
                    problem_id=row["problem_id"],
                    group=row["group"],
                    sample=row["sample"],
                    before=before,
                    after=after,
                    reason_before=row["reason"],
                    reason_after=verdict.reason,
                )
            )
    found.num_groups += len({(row["stream"], row["group"]) for row in rows})
    found.num_groups_changed += len(changed_groups)
    anchors = {
        row["group"]: (row["problem_id"], row["anchor"], row["is_anchor_right"])
        for row in rows
        if row["stream"] == "correction"
    }
    found.num_anchors_changed += sum(
        right_now.get((problem_id, text), was_right) != was_right
        for problem_id, text, was_right in anchors.values()
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share_right(counts: Counter[tuple[Status, Status]], side: int) -> str:
    """Among the samples with a known verdict."""
    right = sum(n for statuses, n in counts.items() if statuses[side] is Status.RIGHT)
    known = sum(n for statuses, n in counts.items() if statuses[side] is not Status.UNKNOWN)
    return f"{right / known:.1%}" if known else "–"
