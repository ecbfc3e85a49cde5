"""Where the figures of a step go: lines of JSON, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import yaml

from cipo_jax.config import atomic

Figures = Mapping[str, float | int | None]


class Writer(Protocol):
    """One place for figures."""

    def write(self, step: int, figures: Figures) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    def __init__(self, path: Path, first_step: int) -> None:
        if path.exists():
            _keep_steps(path, first_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, figures: Figures) -> None:
        self._file.write(json.dumps({"step": step, **figures}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _keep_steps(path: Path, last: int) -> None:
    """Leave the lines up to step `last`; a line that was cut off by a crash goes too."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    atomic.write_text(path, "".join(kept))


class TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        # Events from purge_step on, of an earlier process, are no longer shown.
        self._writer = SummaryWriter(
            str(folder), purge_step=first_step + 1, filename_suffix=f".from_{first_step}"
        )

    def write(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                f"log.wandb_project is {project!r}, but wandb isn't installed: "
                "pip install 'cipo-jax[wandb]', or leave log.wandb_project empty."
            ) from error
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(wandb.util.generate_id())
        config = run_dir / "config.yaml"
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            dir=str(run_dir),
            id=id_file.read_text().strip(),
            resume="allow",
            config=yaml.safe_load(config.read_text()) if config.exists() else {},
        )

    def write(self, step: int, figures: Figures) -> None:
        self._run.log({k: v for k, v in figures.items() if v is not None}, step=step)

    def close(self) -> None:
        self._run.finish()
