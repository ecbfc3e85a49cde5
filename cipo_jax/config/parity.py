"""The watch over the gap between the trainer's log-probs and those that the sampler reported.

On the first update after sampling both are of the same law and the same parameters: the gap between
them is the error of the arithmetic, or a fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class ParityOff:
    """The gap is logged and nothing else."""

    kind: Literal["off"] = "off"


@dataclass(frozen=True, kw_only=True)
class _Gap:
    """Limits on |trainer - sampler log-prob|. The defaults are ours: far above what float32 (1e-5)
    and bfloat16 leave."""

    mean_nats: float
    max_nats: float

    def __post_init__(self) -> None:
        for name in ("mean_nats", "max_nats"):
            value = getattr(self, name)
            require(
                value > 0 and math.isfinite(value),
                f"parity.{name} is {value}: a limit on |trainer - sampler log-prob|, positive and "
                "finite. Without limits, choose parity.kind off.",
            )


@dataclass(frozen=True, kw_only=True)
class ParityWarn(_Gap):
    """A step beyond the limits is trained on, with a warning; the first ones leave a bundle with
    their cause in the run folder."""

    kind: Literal["warn"] = "warn"
    mean_nats: float = 0.05
    """Limit on the mean gap over the tokens of a step, nats."""
    max_nats: float = 5.0
    """Limit on the gap of each token, nats."""


@dataclass(frozen=True, kw_only=True)
class ParityMask(_Gap):
    """A completion beyond the limits is left out of the update, with a warning. It stays in the
    denominators, as a completion with advantage 0 does: the other tokens weigh what they would
    weigh beside it."""

    kind: Literal["mask"] = "mask"
    mean_nats: float = 0.2
    """Limit on the mean gap over the tokens of a completion, nats."""
    max_nats: float = 5.0
    """Limit on the gap of each token, nats."""


@dataclass(frozen=True, kw_only=True)
class ParityStop(_Gap):
    """A step beyond the limits is not trained on, and ends the run."""

    kind: Literal["stop"] = "stop"
    mean_nats: float = 0.05
    """Limit on the mean gap over the tokens of a step, nats."""
    max_nats: float = 5.0
    """Limit on the gap of each token, nats."""


Parity = ParityOff | ParityWarn | ParityMask | ParityStop
