"""What a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every: int = 50
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 1 and self.keep >= 1, "checkpoint.every and .keep are at least 1.")


@dataclass(frozen=True, kw_only=True)
class Log:
    tensorboard: bool = True
    wandb_project: str = ""
    """Weights & Biases project; empty: off."""
    rollouts_every: int = 1
    """Steps between stored rollouts; 0: none are stored."""
