"""The weight that corrects the gap between the sampler's law and the trainer's.

q = exp(old log-prob of the trainer - log-prob of the sampler)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from cipo_jax.config import (
    Importance,
    MaskedSequence,
    MaskedToken,
    SequenceTis,
    TokenTis,
    Uncorrected,
)
from cipo_jax.method.gains import bounded_exp
from cipo_jax.method.sequences import sequence_sum
from cipo_jax.records import Array, Batch


def importance_weight(
    old_logprob_BT: Float[Array, "B T"], batch: Batch, *, importance: Importance
) -> tuple[Float[jax.Array, "B T"], Bool[jax.Array, "B T"]]:
    """The weight of each token's policy term, without a gradient, and whether it was bounded.

        token_tis         min(q, high)
        sequence_tis      min(product of q over the sequence, high), the same at all of its tokens
        masked_token      q if low <= q <= high, else 0
        masked_sequence   the same of the product
        none              1

    Args:
      old_logprob_BT: under the policy before the first update, as the trainer scores it. It and the
        arrays of the batch are finite, and 0 where not a target.
    Source: Espeholt et al. 2018 (truncated weights), arXiv 1802.01561; see config/importance.py for
      each variant's.
    """
    log_weight_BT = jax.lax.stop_gradient(old_logprob_BT) - batch.sampler_logprob_BT
    match importance:
        case SequenceTis() | MaskedSequence():
            log_weight_BT = sequence_sum(log_weight_BT, batch.segment_BT, batch.is_target_BT)
        case TokenTis() | MaskedToken():
            pass
        case Uncorrected():
            return jnp.ones_like(log_weight_BT), jnp.zeros_like(batch.is_target_BT)
    weight_BT = bounded_exp(log_weight_BT)
    match importance:
        case TokenTis(max_weight=high) | SequenceTis(max_weight=high):
            return jnp.minimum(weight_BT, high), weight_BT > high
        case (
            MaskedToken(min_weight=low, max_weight=high)
            | MaskedSequence(min_weight=low, max_weight=high)
        ):
            is_outside_BT = (weight_BT < low) | (weight_BT > high)
            return jnp.where(is_outside_BT, 0.0, weight_BT), is_outside_BT
