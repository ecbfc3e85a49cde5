"""The files that a run writes: checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass

from cipo_jax.config.require import require_at_least


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a run, saved so that it can continue."""

    every: int = 50
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that are kept; older ones are deleted."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "checkpoint", "every", "keep")


@dataclass(frozen=True, kw_only=True)
class Log:
    """Where metrics go beside metrics.jsonl, and how often rollouts are stored."""

    tensorboard: bool = True
    """Write the metrics for TensorBoard, too, into `tensorboard/` of the run folder."""
    wandb_project: str = ""
    """Weights & Biases project; empty: off."""
    rollouts_every: int = 1
    """Steps between stored rollouts; 0: none are stored."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "log", "rollouts_every")
