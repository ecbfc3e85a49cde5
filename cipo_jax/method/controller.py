"""The adaptive replay ratio: what share of the anchors are correct attempts.

Wrong anchors teach repair. Right anchors teach to leave alone what is right, and measure how well
the policy does: *retention* R is the mean raw score of the corrections of right anchors. When R
falls below its target, the share rho of right anchors rises.

The state is a frozen record of numbers; `update` returns the next one. JSON carries it exactly.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from cipo_jax.config import CipoReimpl, Controller, FailuresOnly, Fixed, Robust


@dataclass(frozen=True, kw_only=True)
class ControllerState:
    ratio: float
    """rho, the share of correct attempts asked for in the next step."""
    retention: float | None = None
    """The last retention (`robust`: its moving average); None until it was measured once."""
    persistence: int = 0
    """c, consecutive measurements below the target."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ControllerState:
        return cls(**record)


def initial(cfg: Controller) -> ControllerState:
    """The state before the first step."""
    match cfg:
        case Fixed():
            return ControllerState(ratio=cfg.ratio)
        case FailuresOnly():
            return ControllerState(ratio=0.0)
        case CipoReimpl() | Robust():
            return ControllerState(ratio=cfg.ratio_start)


def update(
    state: ControllerState, retention: float | None, num_samples: int, cfg: Controller
) -> ControllerState:
    """The state after a step in which `num_samples` corrections of right anchors were judged.

    With R = retention, tau its target, w1, w2, w3 the gains (proportional, drop, persistence), and
    c the consecutive steps with R < tau, at most `persistence_cap` of them counted:

        cipo_reimpl   rho <- clip(rho * (1 + w1 (tau - R) + w2 max(0, R_before - R) + w3 c),
                                  ratio_min, ratio_max)

        robust        Rbar <- (1 - eta) Rbar + eta R,  e = tau - Rbar,  c counts e > dead_band
                      log rho <- clip(log rho + clip(w1 e [|e| > dead_band]
                                      + w2 max(0, Rbar_before - Rbar) + w3 c, -s, s), ...)

    The first measurement has no drop. `fixed` and `failures_only` never change.

    `cipo_reimpl` has a known defect near the target: with R just below it, the persistence term
    alone drives rho to its maximum (from 0.3 to 0.8 in 8 steps at R = 0.79, tau = 0.8). `robust` is
    ours: a moving average, a dead band and a bounded step.

    Args:
      retention: mean raw score in [0, 1], or None if no correction of a right anchor has a valid
        verdict; then the state is held.
      num_samples: number of valid corrections that `retention` is the mean of; `robust` holds its
        state if they are fewer than `min_samples`.
    Raises: ValueError if the retention is outside [0, 1] or not a number.
    """
    if retention is None or num_samples == 0:
        return state
    if not 0 <= retention <= 1:
        raise ValueError(
            f"Retention is {retention}; it is the mean of raw scores in [0, 1]. Leave unknown "
            "verdicts out of the mean, and pass None if none is left."
        )
    match cfg:
        case CipoReimpl():
            return _update_reimpl(state, retention, cfg)
        case Robust():
            return _update_robust(state, retention, num_samples, cfg)
        case Fixed() | FailuresOnly():
            return state


def _update_reimpl(state: ControllerState, retention: float, cfg: CipoReimpl) -> ControllerState:
    before = retention if state.retention is None else state.retention
    persistence = state.persistence + 1 if retention < cfg.retention_target else 0
    factor = (
        1
        + cfg.gain_proportional * (cfg.retention_target - retention)
        + cfg.gain_drop * max(0.0, before - retention)
        + cfg.gain_persistence * min(persistence, cfg.persistence_cap)
    )
    return ControllerState(
        ratio=_clip(state.ratio * factor, cfg.ratio_min, cfg.ratio_max),
        retention=retention,
        persistence=persistence,
    )


def _update_robust(
    state: ControllerState, retention: float, num_samples: int, cfg: Robust
) -> ControllerState:
    if num_samples < cfg.min_samples:
        return state
    before = retention if state.retention is None else state.retention
    average = (1 - cfg.smoothing) * before + cfg.smoothing * retention
    error = cfg.retention_target - average
    persistence = state.persistence + 1 if error > cfg.dead_band else 0
    step = (
        cfg.gain_proportional * (error if abs(error) > cfg.dead_band else 0.0)
        + cfg.gain_drop * max(0.0, before - average)
        + cfg.gain_persistence * min(persistence, cfg.persistence_cap)
    )
    ratio = state.ratio * math.exp(_clip(step, -cfg.max_log_step, cfg.max_log_step))
    return ControllerState(
        ratio=_clip(ratio, cfg.ratio_min, cfg.ratio_max), retention=average, persistence=persistence
    )


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
