"""The policy loss: token log-probs and a packed batch in, the loss of each stream out.

Knows nothing of models, of how log-probs are computed, or of how tokens became rows: the weight of
each token in the batch already holds the aggregation rule and the global denominator of its stream
(`mix.py`), so a loss here is a plain sum. Sums over microbatches or devices therefore add up to the
loss of the whole batch.

Values at tokens that are not targets are never read: they are replaced before anything is computed
from them, because a product with a mask of zeros turns NaN into NaN, in values and in gradients.

The gain of a token under the objective is in `gains.py`, its weight against the sampler's gap in
`importance.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from cipo_jax.config import Importance, Kl, Objective, Uncorrected
from cipo_jax.method.gains import bounded_exp, token_gain
from cipo_jax.method.importance import importance_weight
from cipo_jax.records import Array, Batch, Stream

Sums = dict[str, tuple[Float[jax.Array, ""], Float[jax.Array, ""]]]
"""Name of a metric to its total over the targets, and their number."""


def policy_loss(
    logprob_BT: Float[Array, "B T"],
    entropy_BT: Float[Array, "B T"],
    reference_logprob_BT: Float[Array, "B T"] | None,
    batch: Batch,
    *,
    objective: Objective,
    kl: Kl,
    importance: Importance,
) -> tuple[Float[jax.Array, "2"], Sums]:
    """The loss of each stream, to be minimised, and the sums behind the metrics.

        loss[s] = sum over targets t of stream s of
                  weight[t] * (-q[t] * gain[t] + kl.weight * divergence[t]
                               - objective.entropy_bonus * entropy[t])
        gain    = the objective's, of advantage and ratio exp(logprob - old_logprob) (`gains.py`)
        q       = importance weight of old_logprob against sampler_logprob (`importance.py`)

    The old log-probs are those before the first update on the batch:

        importance none     the sampler's; q is 1
        otherwise           batch.old_logprob; without it, the update is the first one, and they are
                            logprob itself, without its gradient

    Args:
      logprob_BT: log-prob of each token under the policy being trained, nats, at the sampling
        temperature. Any value (NaN too) where not a target, here and in the other arrays.
      entropy_BT: entropy of the policy's law for each token, nats; without an entropy bonus for the
        metrics only, and then without a gradient.
      reference_logprob_BT: log-prob under the reference policy; may be None if no KL penalty stands
        in the loss.
      batch: the packed rows, or a microbatch of them.
    Returns: (loss_by_stream, sums). The losses are indexed by `Stream`, 0 for a stream without
      targets. The sums map a name to (total, count) over this batch's targets: add them over
      microbatches, then divide once.
    Raises: ValueError at trace time if a KL penalty is part of the loss and there is no reference.
    """
    if kl.is_in_loss and reference_logprob_BT is None:
        raise ValueError(
            f"kl.weight is {kl.weight}, but no reference log-probs were given: score the batch "
            "with the reference policy, or set kl.weight to 0."
        )
    is_target_BT = batch.is_target_BT
    batch = _cleaned(batch)
    logprob_BT = _at_targets(logprob_BT, is_target_BT)
    entropy_BT = _at_targets(entropy_BT, is_target_BT)
    old_logprob_BT = _old_logprob(logprob_BT, batch, importance)

    gain_BT, is_clipped_BT = token_gain(logprob_BT, old_logprob_BT, batch, objective=objective)
    q_BT, is_bounded_BT = importance_weight(old_logprob_BT, batch, importance=importance)
    cost_BT = -q_BT * gain_BT

    per_token: dict[str, Array] = {
        "policy/entropy": jax.lax.stop_gradient(entropy_BT),
        "policy/clip_share": is_clipped_BT.astype(jnp.float32),
        "policy/ratio": bounded_exp(logprob_BT - old_logprob_BT),
        "importance/weight": q_BT,
        "importance/bounded_share": is_bounded_BT.astype(jnp.float32),
    }
    if objective.entropy_bonus > 0:
        cost_BT = cost_BT - objective.entropy_bonus * entropy_BT
    if reference_logprob_BT is not None:
        log_gap_BT = logprob_BT - _at_targets(reference_logprob_BT, is_target_BT)
        divergence_BT = divergence(log_gap_BT, estimator=kl.estimator)
        cost_BT = cost_BT + kl.weight * divergence_BT
        per_token["kl"] = divergence_BT

    loss_by_stream = jnp.stack(
        [
            jnp.sum(jnp.where(batch.stream_BT == stream, batch.weight_BT * cost_BT, 0.0))
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
    loss_by_stream: Float[jax.Array, "2"], *, correction_weight: float
) -> Float[jax.Array, ""]:
    """The one loss that a step descends: base + correction_weight * correction.

    The weight (lambda_c) is applied here and not in the batch, so that logged losses of the streams
    mean the same whatever it is.
    """
    return loss_by_stream[Stream.BASE] + correction_weight * loss_by_stream[Stream.CORRECTION]


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
            return bounded_exp(-log_gap_BT) - 1 + log_gap_BT
        case _:
            raise ValueError(f"kl.estimator is {estimator!r}; it is one of k1, k2 and k3.")


def _old_logprob(
    logprob_BT: Float[jax.Array, "B T"], batch: Batch, importance: Importance
) -> Float[Array, "B T"]:
    """Log-probs before the first update on the batch, 0 where not a target."""
    if isinstance(importance, Uncorrected):
        return batch.sampler_logprob_BT
    if batch.old_logprob_BT is None:
        return jax.lax.stop_gradient(logprob_BT)
    return batch.old_logprob_BT


def _cleaned(batch: Batch) -> Batch:
    """The batch with zeros in what the loss reads, where not a target."""
    cleaned = {name: _at_targets(x, batch.is_target_BT) for name, x in batch.per_target().items()}
    return dataclasses.replace(batch, **cleaned)


def _at_targets(
    value_BT: Float[Array, "B T"], is_target_BT: Bool[Array, "B T"]
) -> Float[jax.Array, "B T"]:
    return jnp.where(is_target_BT, value_BT, 0.0)
