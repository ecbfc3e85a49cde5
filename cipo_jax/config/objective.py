"""What the policy loss maximises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Group-relative advantages and the clipped policy ratio. With `clip_high` above `clip_low`,
    token-mean and zero-signal groups left out it is DAPO's objective; without `scale_by_std` and
    with seq-mean-token-sum-norm, Dr. GRPO's."""

    kind: Literal["grpo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    scale_by_std: bool = True
    ddof: Literal[0, 1] = 0
    """Of the group's standard deviation; 0: population."""
    std_eps: float = 1e-8
    aggregation: Aggregation = "seq-mean-token-mean"
    shared_denominator: bool = False
    """One denominator for both streams: they then weigh by their share of tokens or sequences."""

    def __post_init__(self) -> None:
        require(0 <= self.clip_low < 1, f"objective.clip_low is {self.clip_low}; in [0, 1).")
        require(self.clip_high >= 0, f"objective.clip_high is {self.clip_high}; not negative.")


Objective = Grpo


@dataclass(frozen=True, kw_only=True)
class Kl:
    """Penalty on the divergence from the initial policy. Weight 0: no reference model is kept."""

    weight: float = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"

    def __post_init__(self) -> None:
        require(self.weight >= 0, f"kl.weight is {self.weight}; it can't be negative.")
