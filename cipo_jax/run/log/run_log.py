"""The log of one run: hands each step's figures to the writers and the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rich.console

from cipo_jax.config import Log, atomic
from cipo_jax.run.log.environment import environment
from cipo_jax.run.log.rollout_row import SCHEMA, RolloutRow
from cipo_jax.run.log.terminal import Bar, Lines
from cipo_jax.run.log.writers import JsonLines, TensorBoard, WandB, Writer


class RunLog:
    """The writers of one run; a context manager.

        with RunLog(folder, cfg.log, first_step=0, num_steps=500) as log:
            log.step(1, {"reward/base": 0.25, "correction/retention": None})

    Args:
      run_dir: the run's folder; made if it isn't there.
      settings: `config.Log`.
      first_step: steps already done. Lines, events and rollouts of later steps, which a run that
        was cut off may have written after its last checkpoint, are removed: the run goes on as if
        they had never been.
      num_steps: of the whole run, for the progress display.
      is_writer: of several processes one writes; for the others the log does nothing.
    Raises: ImportError if `log.wandb_project` is set and wandb isn't installed.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Log,
        *,
        first_step: int,
        num_steps: int,
        is_writer: bool = True,
    ) -> None:
        self._run_dir = run_dir
        self._is_writer = is_writer
        self._writers: list[Writer] = []
        self._display: Lines | Bar | None = None
        if is_writer:
            run_dir.mkdir(parents=True, exist_ok=True)
            _drop_rollouts_after(run_dir / "rollouts", first_step)
            self._writers.append(JsonLines(run_dir / "metrics.jsonl", first_step))
            if settings.tensorboard:
                self._writers.append(TensorBoard(run_dir / "tensorboard", first_step))
            if settings.wandb_project:
                self._writers.append(WandB(run_dir, settings.wandb_project))
            console = rich.console.Console()
            display = Bar if console.is_terminal else Lines
            self._display = display(console, first_step, num_steps)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the figures of a finished step, counted from 1.

        Values are numbers, numpy or jax scalars, or None; NaN and infinity become null.
        """
        plain = {name: _plain(value) for name, value in metrics.items()}
        for writer in self._writers:
            writer.write(step, plain)
        if self._display:
            self._display.step(step, plain)

    def rollouts(self, step: int, rows: Sequence[RolloutRow]) -> None:
        """Store the samples of a step; the file is complete or not there."""
        if not self._is_writer:
            return
        folder = self._run_dir / "rollouts"
        folder.mkdir(exist_ok=True)
        columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(RolloutRow)}
        with atomic.replacing(folder / _rollout_name(step)) as unfinished:
            pq.write_table(pa.table(columns, schema=SCHEMA), unfinished, compression="zstd")

    def environment(self, devices: Mapping[str, Any], *, verifier: str) -> None:
        """Write environment.json: what `environment` finds, the devices as the caller sees them,
        and what protects the machine from the programs that are judged.
        """
        if self._is_writer:
            record = {**environment(), "devices": dict(devices), "verifier": verifier}
            text = json.dumps(record, indent=2, default=str)
            atomic.write_text(self._run_dir / "environment.json", text + "\n")

    def message(self, text: str) -> None:
        """One line on the terminal, above the progress display."""
        if self._display:
            self._display.message(text)

    def close(self) -> None:
        """End the display and flush every writer."""
        if self._display:
            self._display.close()
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> float | int | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    if not isinstance(value, float):
        value = value.item()
    return value if isinstance(value, int) or math.isfinite(value) else None


def _rollout_name(step: int) -> str:
    return f"step_{step:06d}.parquet"


def _drop_rollouts_after(folder: Path, step: int) -> None:
    for path in folder.glob("step_*"):
        found = int(path.name[len("step_") :].split(".")[0])
        if path.suffix == atomic.UNFINISHED or found > step:
            path.unlink(missing_ok=True)
