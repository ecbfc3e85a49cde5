"""The files of a run that reports are made from, also of one that isn't finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cipo_jax.evaluate.figures import HeldOut

FINISHED = "finished.json"
"""Written after everything else."""

Metrics = Sequence[Mapping[str, Any]]
"""Lines of metrics.jsonl, in their order; None where a figure is undefined."""


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end."""
    return (folder / FINISHED).exists()


def read_metrics(folder: Path) -> Metrics:
    """The logged figures of each step; none where no step is logged yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read_evaluations(folder: Path) -> list[HeldOut]:
    """The evaluations of evaluations.json by step; none where there is no such file yet."""
    path = folder / "evaluations.json"
    found: list[HeldOut] = json.loads(path.read_text()) if path.is_file() else []
    return sorted(found, key=lambda evaluation: evaluation["step"])
