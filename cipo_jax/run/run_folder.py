"""Where a run lives, and whether it may go on there.

config.yaml        the resolved configuration; it can be run again
problems.json      how many problems there are, and a hash of all they hold
changes.jsonl      what was changed between parts of the run, if changes were allowed
metrics.jsonl      one line a step
evaluations.json   held-out results before, during and after
rollouts/          what was sampled and how it was judged, parquet
checkpoints/       the whole state of the run
plot.png           the run in one picture
environment.json   versions, devices, commit
finished.json      written last: the run came to its end, after so many steps
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cipo_jax.config import Config, atomic, configfile
from cipo_jax.report.run_files import FINISHED, is_finished
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.verify import wire

Change = tuple[str, Any, Any]
"""What changed, as it was in the folder, as it is now."""

HARMLESS = ("checkpoint.", "log.", "verify.workers", "evaluation.every")
"""Fields that may change when a run goes on: the steps to come stay those of the unbroken run."""


class ChangedConfigError(ValueError):
    """The folder holds a run of another configuration or of other problems."""


def find(cfg: Config, root: Path = Path("runs")) -> Path:
    """The folder for a run that was given none: `runs/NAME`, or `runs/NAME-2` and so on where a
    finished run or one of another configuration is there already. An unfinished run of the same
    configuration is continued."""
    number = 1
    while True:
        folder = root / (cfg.name if number == 1 else f"{cfg.name}-{number}")
        if not has_started(folder):
            return folder
        if not is_finished(folder) and not breaking_changes(folder, cfg):
            return folder
        number += 1


def open_folder(folder: Path, cfg: Config, *, allow_changes: bool = False) -> None:
    """Make the folder, or check that the run in it is this one, and write the configuration there.

    Args:
      allow_changes: go on with the new configuration; what changed is kept in changes.jsonl.
    Raises: ChangedConfigError that names each field whose change would make the rest of the run
      another than the one that was started.
    """
    changes = breaking_changes(folder, cfg) if has_started(folder) else []
    _admit(folder, changes, "a run of another configuration", allow_changes=allow_changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)
    configfile.dump(cfg, folder / "config.yaml")


def check_problems(folder: Path, tasks: Tasks, *, allow_changes: bool = False) -> None:
    """Check that the run in the folder was started with these very problems, and note them there.

    A data set may change under the same name: a file that was edited, a new revision on the hub, a
    generator of another version.

    Raises: ChangedConfigError if a problem was added, removed, reordered or changed.
    """
    now = fingerprint(tasks)
    path = folder / "problems.json"
    if has_started(folder) and path.exists():
        before = json.loads(path.read_text())
        changes = [
            (f"problems ({name})", before[name], now[name])
            for name in now
            if before[name] != now[name]
        ]
        _admit(folder, changes, "a run with other problems", allow_changes=allow_changes)
    atomic.write_json(path, now)


def has_started(folder: Path) -> bool:
    """A run in it got as far as a first result. One that failed before (a prompt was too long, say)
    may be corrected and started again in the same folder."""
    return (folder / "config.yaml").exists() and (
        (folder / "evaluations.json").exists() or any((folder / "checkpoints").glob("[0-9]*"))
    )


def finish(folder: Path, *, steps: int) -> None:
    """Note that the run came to its end, after the last thing that it writes."""
    atomic.write_json(folder / FINISHED, {"steps": steps, "time": _now()})


def breaking_changes(folder: Path, cfg: Config) -> list[Change]:
    """Each field that differs from the folder's and is not harmless."""
    before = _flat(dataclasses.asdict(configfile.load(folder / "config.yaml")))
    now = _flat(dataclasses.asdict(cfg))
    # More steps change nothing that comes before, unless the learning rate is planned over them.
    harmless: tuple[str, ...] = HARMLESS
    if cfg.optimizer.schedule == "constant":
        harmless = (*harmless, "train.steps")
    # Only a mask changes what is trained on; the others watch.
    if "mask" not in (before["parity.kind"], now["parity.kind"]):
        harmless = (*harmless, "parity.")
    return [
        (name, before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(harmless)
    ]


def _admit(folder: Path, changes: Sequence[Change], what: str, *, allow_changes: bool) -> None:
    """Refuse the changes, or note them in the folder."""
    if not changes:
        return
    if not allow_changes:
        raise ChangedConfigError(
            f"{folder} holds {what}, and going on would mix the two. Changed: "
            + "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in changes)
            + ". Give another --run-dir, or run the folder's own config.yaml, or say "
            "--allow-changes to go on with what is new from the last checkpoint."
        )
    steps = [int(p.name) for p in (folder / "checkpoints").glob("[0-9]*") if p.name.isdigit()]
    with (folder / "changes.jsonl").open("a") as file:
        for name, old, new in changes:
            record = {
                "time": _now(), "after_step": max(steps, default=0),
                "field": name, "was": old, "is": new,
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")


def fingerprint(tasks: Tasks) -> dict[str, Any]:
    """Number and hash of the problems, JSON-able."""
    return {"train": _fingerprint(tasks.train), "held_out": _fingerprint(tasks.held_out)}


def _fingerprint(problems: Sequence[Problem]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for problem in problems:
        fields = (problem.id, problem.question, problem.answer_format)
        record = [*fields, wire.encode_reference(problem.reference)]
        digest.update(json.dumps(record).encode() + b"\n")
    return {"count": len(problems), "sha256": digest.hexdigest()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
