"""Which weights are trained: all of them, or low-rank terms beside chosen matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least, require_positive

Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
"""The matrices of a layer that may have a low-rank term: queries, keys, values and output of
attention; gate, up and down of the MLP."""


@dataclass(frozen=True, kw_only=True)
class NoAdapter:
    """Every parameter is trained."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685): a frozen matrix W acts as W + scale * A B.

    Only A and B have gradients, optimizer state and a place in checkpoints. The reference policy of
    a KL penalty is the frozen model itself, which takes no memory of its own. Learning rates are
    about ten times those of full training.
    """

    kind: Literal["lora"] = "lora"
    rank: int = 32
    """Columns of A and rows of B."""
    alpha: float = 32.0
    """The scale is alpha / rank, or alpha / sqrt(rank) with `scaling` rank_stabilised."""
    scaling: Literal["standard", "rank_stabilised"] = "standard"
    """rank_stabilised keeps the size of an update the same at high ranks (arXiv 2312.03732)."""
    projections: tuple[Projection, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Which matrices of every layer are adapted; layers with several experts take q, k, v and o."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "adapter", "rank")
        require_positive(self, "adapter", "alpha")
        require(
            0 < len(self.projections) == len(set(self.projections)),
            f"adapter.projections is {list(self.projections)}; name at least one, each once.",
        )

    @property
    def scale(self) -> float:
        """The factor in front of A B."""
        return self.alpha / (self.rank if self.scaling == "standard" else self.rank**0.5)


AdapterConfig = NoAdapter | Lora
