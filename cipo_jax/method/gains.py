"""What each token gains under an objective: log-probs and advantages in, one number a token out.

A gain is maximised, and summed with the weights of the batch. `token_gain` pairs the dataclasses of
`config/objective.py` with the functions below; nothing else in the train step knows which objective
is in use.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from cipo_jax.config import (
    Cispo,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    Objective,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
)
from cipo_jax.method.sequences import sequence_mean, sequence_sum
from cipo_jax.records import Array, Batch

# Log-ratios beyond this are held there, without a gradient: exp(20) = 5e8 is far outside every clip
# range, and an infinite ratio times a zero advantage would be NaN.
MAX_LOG_RATIO = 20.0

Gain = tuple[Float[jax.Array, "B T"], Bool[jax.Array, "B T"]]
"""The gain of each token, and whether its ratio was bounded."""


def token_gain(
    logprob_BT: Float[Array, "B T"],
    old_logprob_BT: Float[Array, "B T"],
    batch: Batch,
    *,
    objective: Objective,
) -> Gain:
    """The gain of each token under the objective, from its own ratio or its sequence's.

    Args:
      logprob_BT, old_logprob_BT: under the policy that is trained, and under the one that the ratio
        is taken against. All arrays are finite, and 0 where not a target.
    """
    log_ratio_BT = logprob_BT - old_logprob_BT
    advantage_BT = batch.advantage_BT
    match objective:
        case Grpo() | DrGrpo() | Dapo() | ReinforcePlusPlus() | ReinforcePlusPlusBaseline():
            return clipped_ratio(
                log_ratio_BT,
                advantage_BT,
                low=objective.clip_low,
                high=objective.clip_high,
                dual=objective.dual_clip,
            )
        case Gspo():
            # s = (product of the ratios of a sequence)^(1 / length)
            return clipped_ratio(
                sequence_mean(log_ratio_BT, batch.segment_BT, batch.is_target_BT),
                advantage_BT,
                low=objective.clip_low,
                high=objective.clip_high,
            )
        case Rloo():
            # w = product of the ratios of a sequence
            return clipped_ratio(
                sequence_sum(log_ratio_BT, batch.segment_BT, batch.is_target_BT),
                advantage_BT,
                low=objective.clip_low,
                high=objective.clip_high,
            )
        case Cispo():
            return clipped_weight(
                logprob_BT,
                old_logprob_BT,
                advantage_BT,
                low=objective.min_weight,
                high=objective.max_weight,
            )


def clipped_ratio(
    log_ratio_BT: Float[Array, "B T"],
    advantage_BT: Float[Array, "B T"],
    *,
    low: float,
    high: float,
    dual: float | Literal["none"] = "none",
) -> Gain:
    """The pessimistic clipped surrogate of PPO.

        min(w A, clip(w, 1 - low, 1 + high) A),   w = exp(log_ratio)
        where A < 0, with a dual clip: the larger of that and dual * A

    It is written as a choice between the terms, because `minimum` splits the gradient between equal
    arguments and would halve it where w sits on the edge of the range. Where w is bounded, its
    gradient is 0.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; two bounds after arXiv 2503.14476;
      dual clip: Ye et al. 2020, arXiv 1912.09729, equation 5.
    """
    ratio_BT = bounded_exp(log_ratio_BT)
    is_too_high_BT = jnp.greater(advantage_BT, 0) & (ratio_BT > 1 + high)
    is_bad_BT = jnp.less(advantage_BT, 0)
    is_too_low_BT = is_bad_BT & (ratio_BT < 1 - low)
    bounded_BT = jnp.where(is_too_high_BT, 1 + high, jnp.where(is_too_low_BT, 1 - low, ratio_BT))
    is_bounded_BT = is_too_high_BT | is_too_low_BT
    if dual != "none":
        is_costly_BT = is_bad_BT & (ratio_BT > dual)
        bounded_BT = jnp.where(is_costly_BT, dual, bounded_BT)
        is_bounded_BT |= is_costly_BT
    return bounded_BT * advantage_BT, is_bounded_BT


def clipped_weight(
    logprob_BT: Float[Array, "B T"],
    old_logprob_BT: Float[Array, "B T"],
    advantage_BT: Float[Array, "B T"],
    *,
    low: float,
    high: float,
) -> Gain:
    """REINFORCE with a bounded importance weight, which carries no gradient.

        stop_gradient(clip(w, low, high)) A logprob,   w = exp(logprob - old_logprob)

    Its gradient, clip(w) A grad(logprob), is never cut; the value means nothing by itself.

    Source: MiniMax 2025 (CISPO), arXiv 2506.13585, equations 4 and 5.
    """
    weight_BT = jax.lax.stop_gradient(bounded_exp(logprob_BT - old_logprob_BT))
    is_bounded_BT = (weight_BT < low) | (weight_BT > high)
    return jnp.clip(weight_BT, low, high) * advantage_BT * logprob_BT, is_bounded_BT


def bounded_exp(log_ratio_BT: Float[Array, "B T"]) -> Float[jax.Array, "B T"]:
    """exp, with its argument held within MAX_LOG_RATIO."""
    return jnp.exp(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
