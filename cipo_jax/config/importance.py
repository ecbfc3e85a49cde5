"""The correction of the gap between the law that was sampled from and the policy that is trained.

The sampler and the trainer are two programs: in bfloat16, with quantised weights or with a lag of
updates their log-probs differ, and the samples are then slightly off-policy. With a variant other
than `Uncorrected` the policy ratio is taken against the trainer's own log-probs before the first
update, and the gap is corrected by a weight of its own,

    q = exp(old log-prob of the trainer - log-prob of the sampler),

without a gradient, on the policy term alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class Uncorrected:
    """No weight: the policy ratio is taken against the sampler's own log-probs, so that it corrects
    the gap too, as far as the objective's clip lets it."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class TokenTis:
    """min(q, max_weight) at each token: truncated importance sampling.
    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; the
    bound of 2 is theirs and verl's."""

    kind: Literal["token_tis"] = "token_tis"
    max_weight: float = 2.0
    """Largest weight of a token, at least 1."""

    def __post_init__(self) -> None:
        _check_band(0.0, self.max_weight)


@dataclass(frozen=True, kw_only=True)
class SequenceTis:
    """min(product of q, max_weight) for a whole sequence. The bound is verl's."""

    kind: Literal["sequence_tis"] = "sequence_tis"
    max_weight: float = 2.0
    """Largest weight of a sequence, at least 1."""

    def __post_init__(self) -> None:
        _check_band(0.0, self.max_weight)


@dataclass(frozen=True, kw_only=True)
class MaskedToken:
    """q where it is in the band, 0 elsewhere: the token is left out. IcePop, in Ring-1T,
    arXiv 2510.18855, with its band."""

    kind: Literal["masked_token"] = "masked_token"
    min_weight: float = 0.5
    """Smallest q of a token that is trained on, in [0, 1]."""
    max_weight: float = 5.0
    """Largest q of a token that is trained on, at least 1."""

    def __post_init__(self) -> None:
        _check_band(self.min_weight, self.max_weight)


@dataclass(frozen=True, kw_only=True)
class MaskedSequence:
    """The product of q where it is in the band, 0 elsewhere: the sequence is left out. Bounds as
    in TRL, where this is the default."""

    kind: Literal["masked_sequence"] = "masked_sequence"
    min_weight: float = 0.0
    """Smallest product of q of a sequence that is trained on, in [0, 1]."""
    max_weight: float = 3.0
    """Largest product of q of a sequence that is trained on, at least 1."""

    def __post_init__(self) -> None:
        _check_band(self.min_weight, self.max_weight)


Importance = Uncorrected | TokenTis | SequenceTis | MaskedToken | MaskedSequence


def _check_band(low: float, high: float) -> None:
    require(
        0 <= low <= 1 <= high and math.isfinite(high),
        f"importance: 0 <= min_weight <= 1 <= max_weight, got {low} and {high}; a weight of 1 is "
        "that of a sample without a gap.",
    )
