"""The second stream: which attempts are corrected, and what a correction earns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cipo_jax.config.require import require, require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class Band:
    """Prompts with a pass rate in [low, high] come strictly before all others."""

    kind: Literal["band"] = "band"
    low: float = 0.375
    """Lowest pass rate of a preferred prompt, in [0, 1]. 3 of 8 samples: inferred from the open
    re-implementation."""
    high: float = 0.75
    """Highest pass rate of a preferred prompt, in [0, 1]. 6 of 8 samples: inferred from the open
    re-implementation."""

    def __post_init__(self) -> None:
        require(
            0 <= self.low <= self.high <= 1,
            f"correction.preference: 0 <= low <= high <= 1, got {self.low} and {self.high}.",
        )


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Prompts are drawn without replacement with weight floor + (4 p (1-p))^exponent, p the pass
    rate with half a success added to both sides."""

    kind: Literal["soft"] = "soft"
    floor: float = 0.01
    """Weight of a prompt that is always or never solved, about; the largest weight is floor + 1."""
    exponent: float = 1.0
    """How sharply prompts of medium pass rate are preferred; 0: all prompts alike."""

    def __post_init__(self) -> None:
        require_positive(self, "correction.preference", "floor")
        require_at_least(0, self, "correction.preference", "exponent")


Preference = Band | Soft


@dataclass(frozen=True, kw_only=True)
class _Adaptive:
    """A share of correct attempts that follows retention, the mean score of the corrections of
    correct attempts. The defaults are the constants of the open re-implementation."""

    ratio_start: float = 0.3
    """Share of correct attempts among the anchors that the first step asks for."""
    ratio_min: float = 0.2
    """Lowest share that is asked for."""
    ratio_max: float = 0.8
    """Highest share that is asked for."""
    retention_target: float = 0.8
    """Retention, in [0, 1], below which the share rises."""
    gain_proportional: float = 0.8
    """Relative change of the share per unit that retention is below its target."""
    gain_drop: float = 0.3
    """Relative change of the share per unit that retention fell since it was last measured."""
    gain_persistence: float = 0.05
    """Relative change of the share per consecutive measurement below the target."""
    persistence_cap: int = 3
    """Most consecutive measurements that `gain_persistence` counts."""

    def __post_init__(self) -> None:
        section = "correction.controller"
        require(
            0 <= self.ratio_min <= self.ratio_start <= self.ratio_max <= 1,
            f"{section}: 0 <= ratio_min <= ratio_start <= ratio_max <= 1, got {self.ratio_min}, "
            f"{self.ratio_start}, {self.ratio_max}.",
        )
        require(
            0 <= self.retention_target <= 1,
            f"{section}.retention_target is {self.retention_target}; it must be in [0, 1].",
        )
        gains = ("gain_proportional", "gain_drop", "gain_persistence", "persistence_cap")
        require_at_least(0, self, section, *gains)


@dataclass(frozen=True, kw_only=True)
class CipoReimpl(_Adaptive):
    """The adaptive replay ratio of the open re-implementation: a proportional, a drop and a
    persistence term multiply the ratio."""

    kind: Literal["cipo_reimpl"] = "cipo_reimpl"


@dataclass(frozen=True, kw_only=True)
class Robust(_Adaptive):
    """The same three terms on a smoothed retention with a dead band and a bounded step in log
    space."""

    kind: Literal["robust"] = "robust"
    smoothing: float = 0.3
    """Weight of the newest retention in the moving average, in (0, 1]; 1: no average."""
    min_samples: int = 16
    """Fewer corrections of correct attempts than this in a step leave the state unchanged."""
    dead_band: float = 0.02
    """Distance of the average from the target, in units of retention, within which it counts as on
    target."""
    max_log_step: float = 0.25
    """Largest change of the logarithm of the share in a step: 0.25 is a factor of 1.28."""

    def __post_init__(self) -> None:
        super().__post_init__()
        section = "correction.controller"
        require(
            self.ratio_min > 0,
            f"{section}.ratio_min is {self.ratio_min}; it must be positive: the robust rule works "
            "on the logarithm of the ratio. `fixed` with ratio 0 switches it off.",
        )
        require(
            0 < self.smoothing <= 1,
            f"{section}.smoothing is {self.smoothing}; it must be in (0, 1].",
        )
        require_at_least(1, self, section, "min_samples")
        require_at_least(0, self, section, "dead_band")
        require_positive(self, section, "max_log_step")


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A constant share of correct attempts."""

    kind: Literal["fixed"] = "fixed"
    ratio: float = 0.3
    """Share of correct attempts among the anchors, in [0, 1]."""

    def __post_init__(self) -> None:
        require(
            0 <= self.ratio <= 1,
            f"correction.controller.ratio is {self.ratio}; it must be in [0, 1].",
        )


@dataclass(frozen=True, kw_only=True)
class FailuresOnly:
    """Only wrong attempts; retention is not measured."""

    kind: Literal["failures_only"] = "failures_only"


Controller = CipoReimpl | Robust | Fixed | FailuresOnly

CorrectionAdvantage = Literal[
    "objective", "raw_std", "std", "none", "batch_std", "prompt_group", "progress"
]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The second stream: the policy corrects its own attempts."""

    prompts_per_base_prompt: float = 1.0
    """phi: anchors per step = floor(phi * train.prompts_per_step). 0 is plain RLVR, bit for bit."""
    weight: float = 1.0
    """lambda_c, the weight of the correction loss."""
    context: Literal["attempt", "labelled", "foreign"] = "attempt"
    """The content of a correction prompt. `attempt`: the attempt, not whether it is correct. For
    comparison, `labelled`: also the verdict on it, which is a signal from outside; `foreign`: an
    attempt at another problem in its place, so that only the extra samples can help."""
    preference: Preference = field(default_factory=Band)
    """Which prompts' attempts are corrected first."""
    controller: Controller = field(default_factory=CipoReimpl)
    """The share of correct attempts among the anchors."""
    risk_penalty: float = 1.0
    """lambda_r: a correct attempt that is made wrong is rewarded -lambda_r."""
    advantage: CorrectionAdvantage = "objective"
    """How corrections are compared, see `method/advantages.py`; objective: by the rule of the base
    stream, with the risk penalty in force. For GRPO that is `raw_std`."""
    max_anchors_per_prompt: int | Literal["all"] = "all"
    """Most attempts at one problem that are corrected in a step."""
    drop_truncated_anchors: bool = True
    """Leave attempts that ran into the length limit out of the anchors."""
    fill_with_right: bool = True
    """Fill up with correct attempts when wrong ones run out; otherwise use fewer anchors."""
    anchor_source: Literal["step", "buffer"] = "step"
    """Correct anchors come from this step's rollouts, or from a first-in-first-out buffer."""
    buffer_max_age: int = 50
    """Steps that a correct attempt stays in the buffer."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "correction", "prompts_per_base_prompt", "weight", "risk_penalty")
        require(
            self.max_anchors_per_prompt == "all" or self.max_anchors_per_prompt >= 1,
            f"correction.max_anchors_per_prompt is {self.max_anchors_per_prompt}; it must be at "
            "least 1, or 'all'.",
        )
        require_at_least(1, self, "correction", "buffer_max_age")
