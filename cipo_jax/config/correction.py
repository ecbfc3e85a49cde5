"""The second stream: which attempts are corrected, and what a correction earns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class Band:
    """Prompts with a pass rate in [low, high] come strictly before all others."""

    kind: Literal["band"] = "band"
    low: float = 0.375
    high: float = 0.75

    def __post_init__(self) -> None:
        require(
            0 <= self.low <= self.high <= 1,
            f"correction.preference: 0 <= low <= high <= 1, got {self.low} and {self.high}.",
        )


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Prompts are drawn without replacement with weight floor + (4 p (1-p))^exponent."""

    kind: Literal["soft"] = "soft"
    floor: float = 0.01
    exponent: float = 1.0

    def __post_init__(self) -> None:
        require(self.floor > 0, "correction.preference.floor must be positive.")
        require(self.exponent >= 0, "correction.preference.exponent must not be negative.")


Preference = Band | Soft


def _check_ratio(start: float, low: float, high: float) -> None:
    require(
        0 <= low <= start <= high <= 1,
        "correction.controller: 0 <= ratio_min <= ratio_start <= ratio_max <= 1, "
        f"got {low}, {start}, {high}.",
    )


@dataclass(frozen=True, kw_only=True)
class CipoReimpl:
    """The adaptive replay ratio of the open re-implementation: a proportional, a drop and a
    persistence term multiply the ratio."""

    kind: Literal["cipo_reimpl"] = "cipo_reimpl"
    ratio_start: float = 0.3
    ratio_min: float = 0.2
    ratio_max: float = 0.8
    retention_target: float = 0.8
    gain_proportional: float = 0.8
    gain_drop: float = 0.3
    gain_persistence: float = 0.05
    persistence_cap: int = 3

    def __post_init__(self) -> None:
        _check_ratio(self.ratio_start, self.ratio_min, self.ratio_max)


@dataclass(frozen=True, kw_only=True)
class Robust:
    """The same three terms on a smoothed retention with a dead band and a bounded step in log
    space."""

    kind: Literal["robust"] = "robust"
    ratio_start: float = 0.3
    ratio_min: float = 0.2
    ratio_max: float = 0.8
    retention_target: float = 0.8
    gain_proportional: float = 0.8
    gain_drop: float = 0.3
    gain_persistence: float = 0.05
    persistence_cap: int = 3
    smoothing: float = 0.3
    """Weight of the newest retention in the moving average."""
    min_samples: int = 16
    """Fewer corrections of right attempts than this leave the state unchanged."""
    dead_band: float = 0.02
    max_log_step: float = 0.25

    def __post_init__(self) -> None:
        _check_ratio(self.ratio_start, self.ratio_min, self.ratio_max)
        require(
            self.ratio_min > 0,
            "correction.controller.ratio_min must be positive: the robust "
            "rule works on the logarithm of the ratio; `fixed` with ratio 0 switches it off.",
        )
        require(0 < self.smoothing <= 1, "correction.controller.smoothing must be in (0, 1].")


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A constant share of right attempts."""

    kind: Literal["fixed"] = "fixed"
    ratio: float = 0.3

    def __post_init__(self) -> None:
        _check_ratio(self.ratio, 0.0, 1.0)


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
    """phi: anchors per step = floor(phi * B). 0 is plain RLVR, bit for bit."""
    weight: float = 1.0
    """lambda_c, the weight of the correction loss."""
    context: Literal["attempt", "labelled", "foreign"] = "attempt"
    """What a correction prompt shows. `attempt`: the attempt, and not whether it is right. For
    comparison, `labelled`: also the verdict on it, which is a signal from outside; `foreign`: an
    attempt at another problem in its place, so that only the extra samples can help."""
    preference: Preference = field(default_factory=Band)
    controller: Controller = field(default_factory=CipoReimpl)
    risk_penalty: float = 1.0
    """lambda_r: a right attempt made wrong is rewarded -lambda_r."""
    advantage: CorrectionAdvantage = "objective"
    """How corrections are compared, see `method/advantages.py`; objective: by the rule of the base
    stream, with the risk penalty in force. For GRPO that is `raw_std`."""
    max_anchors_per_prompt: int | Literal["all"] = "all"
    drop_truncated_anchors: bool = True
    """Leave attempts that ran into the length limit out of the anchors."""
    fill_with_right: bool = True
    """Fill up with right attempts when wrong ones run out; otherwise use fewer anchors."""
    anchor_source: Literal["step", "buffer"] = "step"
    """Right anchors come from this step's rollouts, or from a first-in-first-out buffer."""
    buffer_max_age: int = 50
    """Steps that a right attempt stays in the buffer."""

    def __post_init__(self) -> None:
        phi = self.prompts_per_base_prompt
        require(phi >= 0, f"correction.prompts_per_base_prompt is {phi}; it can't be negative.")
        require(self.weight >= 0, f"correction.weight is {self.weight}; it can't be negative.")
        require(self.risk_penalty >= 0, "correction.risk_penalty can't be negative.")
        if self.max_anchors_per_prompt != "all":
            require(
                self.max_anchors_per_prompt >= 1,
                "correction.max_anchors_per_prompt must be at least 1, or 'all'.",
            )
        require(self.buffer_max_age >= 1, "correction.buffer_max_age must be at least 1.")
