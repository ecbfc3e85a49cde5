"""The objective: what the policy loss maximises.

Each objective is a dataclass with the constants of its paper; where a paper leaves one open, the
docstring says whose default it is. What several objectives share is in their bases.
docs/objectives.md has the formulas, beside the functions that compute them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """The settings that every objective has."""

    shared_denominator: bool = False
    """One denominator for both streams: they then weigh by their share of tokens or sequences."""
    entropy_bonus: float = 0.0
    """Weight of the policy's entropy, per token, in what is maximised."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "objective", "entropy_bonus")

    @property
    def sampling_rounds(self) -> int:
        """How often prompts are sampled in a step, at most."""
        return 1

    @property
    def drops_equal_groups(self) -> bool:
        """Whether groups with equal verdicts leave the batch, and its denominators."""
        return False


@dataclass(frozen=True, kw_only=True)
class _ClippedRatio(_Loss):
    """The clip of PPO on the ratio of each token."""

    clip_low: float = 0.2
    """The ratio gains nothing below 1 - clip_low, in [0, 1). 0.2 is PPO's (arXiv 1707.06347)."""
    clip_high: float = 0.2
    """The ratio gains nothing above 1 + clip_high, at least 0. 0.2 is PPO's, 0.28 DAPO's."""
    dual_clip: float | Literal["none"] = "none"
    """c: a token with a negative advantage loses at most c times it, c above 1 (arXiv 1912.09729;
    3 there)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clip(self.clip_low, self.clip_high)
        require(
            self.dual_clip == "none" or self.dual_clip > 1,
            f"objective.dual_clip is {self.dual_clip}; it must be above 1, or 'none'.",
        )


@dataclass(frozen=True, kw_only=True)
class _Standardised(_Loss):
    """Advantages are divided by a standard deviation."""

    ddof: Literal[0, 1] = 0
    """Which standard deviation: 0 divides by the number of samples, 1 by one less."""
    std_eps: float = 1e-8
    """Added to the standard deviation. 1e-8 is that of the open re-implementation of CIPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, self, "objective", "std_eps")


@dataclass(frozen=True, kw_only=True)
class Grpo(_Standardised, _ClippedRatio):
    """Group-relative policy optimization: advantages against the group, clipped token ratio.
    Shao et al. 2024, arXiv 2402.03300. Clip range of PPO."""

    kind: Literal["grpo"] = "grpo"
    aggregation: Aggregation = "seq-mean-token-mean"
    """How token gains are averaged: over tokens, or over sequences of the mean, the sum, or the sum
    divided by sampling.max_new_tokens. docs/objectives.md has an example of each."""
    scale_by_std: bool = True
    """Divide the advantages of a group by the standard deviation of its rewards."""


@dataclass(frozen=True, kw_only=True)
class DrGrpo(_ClippedRatio):
    """GRPO without its two divisions, by the deviation of a group and by the length of a sequence.
    Liu et al. 2025, arXiv 2503.20783; lengths are divided by sampling.max_new_tokens instead."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    aggregation: Aggregation = "seq-mean-token-sum-norm"
    """How token gains are averaged; the paper divides their sum in a sequence by a constant."""


@dataclass(frozen=True, kw_only=True)
class Dapo(_Standardised, _ClippedRatio):
    """GRPO with a wider upper clip, token mean, dynamic sampling and a soft penalty on length.
    Yu et al. 2025, arXiv 2503.14476. The limit of ten rounds is that of the authors' code."""

    kind: Literal["dapo"] = "dapo"
    clip_high: float = 0.28
    """The ratio gains nothing above 1 + clip_high, at least 0."""
    aggregation: Aggregation = "token-mean"
    """How token gains are averaged; the paper's mean is over all tokens."""
    max_sampling_rounds: int = 10
    """Groups whose verdicts are all equal are left out, and further prompts are sampled until
    train.prompts_per_step groups are mixed, at most this often in a step. 0: sample once and keep
    every group."""
    overlong_share: float = 0.2
    """Share of sampling.max_new_tokens over which the length penalty rises to `overlong_penalty`
    (4,096 of 20,480 tokens in the paper)."""
    overlong_penalty: float = 1.0
    """Taken from the reward of a completion as long as the limit, in both streams. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_sampling_rounds >= 0,
            f"objective.max_sampling_rounds is {self.max_sampling_rounds}; 0 keeps every group, "
            "1 or more leave out those without a signal.",
        )
        require(
            0 < self.overlong_share <= 1,
            f"objective.overlong_share is {self.overlong_share}; a share of "
            "sampling.max_new_tokens, in (0, 1]. Set overlong_penalty to 0 for no penalty.",
        )
        require_at_least(0, self, "objective", "overlong_penalty")

    @property
    def sampling_rounds(self) -> int:
        return max(1, self.max_sampling_rounds)

    @property
    def drops_equal_groups(self) -> bool:
        return self.max_sampling_rounds > 0


@dataclass(frozen=True, kw_only=True)
class Gspo(_Standardised):
    """GRPO with one ratio for a sequence, the geometric mean of its tokens'.
    Zheng et al. 2025, arXiv 2507.18071; the clip range, far narrower than a token's, is theirs."""

    kind: Literal["gspo"] = "gspo"
    clip_low: float = 3e-4
    """The sequence's ratio gains nothing below 1 - clip_low, in [0, 1)."""
    clip_high: float = 4e-4
    """The sequence's ratio gains nothing above 1 + clip_high, at least 0."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How token gains are averaged; the paper's mean is over sequences of the mean over tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clip(self.clip_low, self.clip_high)


@dataclass(frozen=True, kw_only=True)
class Cispo(_Standardised):
    """REINFORCE with a bounded importance weight: every token keeps a gradient.
    MiniMax 2025, arXiv 2506.13585, which has no lower bound and states no upper one; 5 is that of
    ScaleRL, arXiv 2510.13786. The bounds are of the weight itself, not of its distance from 1."""

    kind: Literal["cispo"] = "cispo"
    min_weight: float = 0.0
    """Smallest importance weight of a token, in [0, 1]; 0: no lower bound."""
    max_weight: float = 5.0
    """Largest importance weight of a token, at least 1."""
    aggregation: Aggregation = "token-mean"
    """How token gains are averaged; the paper's mean is over all tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.min_weight <= 1 <= self.max_weight,
            "objective: 0 <= min_weight <= 1 <= max_weight, bounds of the weight exp(logprob - old "
            f"logprob), got {self.min_weight} and {self.max_weight}.",
        )


@dataclass(frozen=True, kw_only=True)
class Rloo(_Loss):
    """REINFORCE on whole sequences, against the mean reward of a sample's siblings.
    Ahmadian et al. 2024, arXiv 2402.14740; the clip of the sequence's ratio, for several updates on
    one batch, is TRL's."""

    kind: Literal["rloo"] = "rloo"
    clip_low: float = 0.2
    """The sequence's ratio gains nothing below 1 - clip_low, in [0, 1)."""
    clip_high: float = 0.2
    """The sequence's ratio gains nothing above 1 + clip_high, at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clip(self.clip_low, self.clip_high)

    @property
    def aggregation(self) -> Aggregation:
        """The mean over sequences, each of which has one gain, the same at all of its tokens."""
        return "seq-mean-token-mean"


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus(_Standardised, _ClippedRatio):
    """REINFORCE with returns per token, standardised over all tokens of a stream, and PPO's clip.
    Hu et al. 2025, arXiv 2501.03262. A KL penalty belongs in the reward here (kl.into)."""

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    aggregation: Aggregation = "token-mean"
    """How token gains are averaged; the paper's mean is over all tokens."""


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusBaseline(_Standardised, _ClippedRatio):
    """The same with the mean of the group as baseline, then standardised over all tokens of a
    stream. Hu et al. 2025, arXiv 2501.03262, for several samples of a prompt."""

    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"
    aggregation: Aggregation = "token-mean"
    """How token gains are averaged; the paper's mean is over all tokens."""


Objective = (
    Grpo | DrGrpo | Dapo | Gspo | Cispo | Rloo | ReinforcePlusPlus | ReinforcePlusPlusBaseline
)


def _check_clip(low: float, high: float) -> None:
    require(0 <= low < 1, f"objective.clip_low is {low}; it must be in [0, 1).")
    require(
        0 <= high < math.inf,
        f"objective.clip_high is {high}; it must be at least 0, and finite.",
    )


@dataclass(frozen=True, kw_only=True)
class Kl:
    """Penalty on the divergence from the initial policy. Weight 0: no reference model is kept."""

    weight: float = 0.0
    """beta, the weight of the penalty per token, whose divergence is in nats."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log policy - log reference of a token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d
    (Schulman 2020). In the loss k1 regularises nothing; in the reward it is the unbiased one."""
    into: Literal["loss", "reward"] = "loss"
    """A term of the loss, or taken from the reward of each token before advantages are formed."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "kl", "weight")

    @property
    def is_in_loss(self) -> bool:
        return self.weight > 0 and self.into == "loss"

    @property
    def is_in_reward(self) -> bool:
        return self.weight > 0 and self.into == "reward"
