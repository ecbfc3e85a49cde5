"""The policy loss: token log-probs and a packed batch in, the loss of each stream out.

Knows nothing of models, of how log-probs are computed, or of how tokens became rows: the weight of
each token in the batch already holds the aggregation rule and the global denominator of its stream
(`mix.py`), so a loss here is a plain sum. Sums over microbatches or devices therefore add up to the
loss of the whole batch.

Values at tokens that are not targets are never read: they are replaced before anything is computed
from them, because a product with a mask of zeros turns NaN into NaN, in values and in gradients.

An objective is a dataclass in `config/` and a pure function here that returns what each token
gains and whether its gradient is cut; `token_objective` pairs the two.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from cipo_jax.config import Grpo, Kl, Objective
from cipo_jax.records import Batch, Stream

# Log-ratios beyond this are held there, without a gradient: exp(20) = 5e8 is far outside every clip
# range, and an infinite ratio times a zero advantage would be NaN.
MAX_LOG_RATIO = 20.0

Sums = dict[str, tuple[Float32[Array, ""], Float32[Array, ""]]]


def policy_loss(
    logprob_BT: Float[Array, "B T"],
    entropy_BT: Float[Array, "B T"],
    reference_logprob_BT: Float[Array, "B T"] | None,
    batch: Batch,
    *,
    objective: Objective,
    kl: Kl,
) -> tuple[Float32[Array, "2"], Sums]:
    """The loss of each stream, to be minimised, and the sums behind the metrics.

        loss[s] = sum over targets t of stream s of
                  weight[t] * (-objective(ratio[t], advantage[t]) + kl.weight * divergence[t])
        ratio   = exp(logprob - sampler_logprob)

    Args:
      logprob_BT: log-prob of each token under the policy being trained, nats, at the sampling
        temperature. Any value (NaN too) where not a target, here and in the other arrays.
      entropy_BT: entropy of the policy's law for each token, nats; for the metrics only.
      reference_logprob_BT: log-prob under the reference policy; may be None if kl.weight is 0.
      batch: the packed rows, or a microbatch of them.
    Returns: (loss_by_stream, sums). The losses are indexed by `Stream`, 0 for a stream without
      targets. The sums map a name to (total, count) over this batch's targets: add them over
      microbatches, then divide once.
    Raises: ValueError at trace time if kl.weight is positive and there is no reference.
    """
    if kl.weight > 0 and reference_logprob_BT is None:
        raise ValueError(
            f"kl.weight is {kl.weight}, but no reference log-probs were given: score the batch "
            "with the reference policy, or set kl.weight to 0."
        )
    is_target_BT = batch.is_target_BT
    log_ratio_BT = _at_targets(logprob_BT - batch.sampler_logprob_BT, is_target_BT)
    advantage_BT = _at_targets(batch.advantage_BT, is_target_BT)
    weight_BT = _at_targets(batch.weight_BT, is_target_BT)

    gain_BT, is_clipped_BT = token_objective(log_ratio_BT, advantage_BT, objective=objective)
    cost_BT = -gain_BT

    per_token = {
        "policy/entropy": _at_targets(entropy_BT, is_target_BT),
        "policy/clip_share": is_clipped_BT.astype(jnp.float32),
        "policy/ratio": _bounded_exp(log_ratio_BT),
        "parity/mean": jnp.abs(log_ratio_BT),
    }
    if reference_logprob_BT is not None:
        log_gap_BT = _at_targets(logprob_BT - reference_logprob_BT, is_target_BT)
        divergence_BT = divergence(log_gap_BT, estimator=kl.estimator)
        cost_BT = cost_BT + kl.weight * divergence_BT
        per_token["kl"] = divergence_BT

    loss_by_stream = jnp.stack(
        [
            jnp.sum(_at_targets(weight_BT * cost_BT, is_target_BT & (batch.stream_BT == stream)))
            for stream in Stream
        ]
    )
    count = jnp.sum(is_target_BT, dtype=jnp.float32)
    sums = {
        name: (jnp.sum(_at_targets(value_BT, is_target_BT)), count)
        for name, value_BT in per_token.items()
    }
    return loss_by_stream, sums


def joint_loss(
    loss_by_stream: Float32[Array, "2"], *, correction_weight: float
) -> Float32[Array, ""]:
    """The one loss that a step descends: base + correction_weight * correction.

    The weight (lambda_c) stands here and not in the batch, so that logged losses of the streams
    mean the same whatever it is.
    """
    return loss_by_stream[Stream.BASE] + correction_weight * loss_by_stream[Stream.CORRECTION]


def largest_parity_gap(logprob_BT: Float[Array, "B T"], batch: Batch) -> Float32[Array, ""]:
    """The largest |logprob - sampler_logprob| over the targets, nats; 0 without targets.

    On the first update after sampling the two are the same law, computed by two programs: what is
    left is the error of the arithmetic, or a bug. A maximum, so merge it over microbatches by
    `jnp.maximum`, not by addition.
    """
    gap_BT = jnp.abs(logprob_BT - batch.sampler_logprob_BT)
    return jnp.max(_at_targets(gap_BT, batch.is_target_BT), initial=0.0)


def token_objective(
    log_ratio_BT: Float[Array, "B T"], advantage_BT: Float[Array, "B T"], *, objective: Objective
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """What each token gains (to be maximised), and whether its gradient is cut by the clip."""
    match objective:
        case Grpo():
            return clipped_ratio(
                log_ratio_BT, advantage_BT, low=objective.clip_low, high=objective.clip_high
            )


def clipped_ratio(
    log_ratio_BT: Float[Array, "B T"],
    advantage_BT: Float[Array, "B T"],
    *,
    low: float,
    high: float,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """The pessimistic clipped surrogate of PPO.

        min(w A, clip(w, 1 - low, 1 + high) A),   w = exp(log_ratio)

    It is written as a choice between the two terms, because `minimum` splits the gradient between
    equal arguments and would halve it where w sits on the edge of the range.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7; two bounds after arXiv 2503.14476.
    """
    ratio_BT = _bounded_exp(log_ratio_BT)
    is_too_high_BT = (advantage_BT > 0) & (ratio_BT > 1 + high)
    is_too_low_BT = (advantage_BT < 0) & (ratio_BT < 1 - low)
    bounded_BT = jnp.where(is_too_high_BT, 1 + high, jnp.where(is_too_low_BT, 1 - low, ratio_BT))
    return bounded_BT * advantage_BT, is_too_high_BT | is_too_low_BT


def divergence(log_gap_BT: Float[Array, "B T"], *, estimator: str) -> Float[Array, "B T"]:
    """Estimates of the divergence KL(policy || reference) from tokens drawn from the policy.

        d = log policy - log reference:   k1 = d,   k2 = d^2 / 2,   k3 = exp(-d) - 1 + d

    k1 and k3 are unbiased as values; k1 may be negative and its gradient *as a loss* has mean zero,
    so it regularises nothing there. k2 is biased as a value, and its gradient is that of the
    reverse divergence. The gradient of k3 as a loss is that of the forward one.

    Source: Schulman 2020, "Approximating KL divergence"; k3 in GRPO: arXiv 2402.03300, equation 4.
    """
    match estimator:
        case "k1":
            return log_gap_BT
        case "k2":
            return 0.5 * jnp.square(log_gap_BT)
        case "k3":
            return _bounded_exp(-log_gap_BT) - 1 + log_gap_BT
        case _:
            raise ValueError(f"kl.estimator is {estimator!r}; it is one of k1, k2 and k3.")


def _bounded_exp(log_ratio_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.exp(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _at_targets(
    value_BT: Float[Array, "B T"], is_target_BT: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    return jnp.where(is_target_BT, value_BT, 0.0)
