"""Sums over the completions of packed rows, without an array of tokens times tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from cipo_jax.records import Array


def sequence_sum(
    value_BT: Float[Array, "B T"],
    segment_BT: Int[Array, "B T"],
    is_target_BT: Bool[Array, "B T"],
) -> Float[jax.Array, "B T"]:
    """The sum of `value` over the targets of a completion, at each of its targets; 0 elsewhere.

    A completion is a segment of one row, and is never cut: so its sum depends neither on what it
    shares a row with nor on the microbatch. Differentiable in `value`.

    Args:
      value_BT, segment_BT: any value where not a target.
      segment_BT: ids within a row, at most T, as in `records.Batch`.
    """
    row_tokens = value_BT.shape[1]
    value_BT = jnp.where(is_target_BT, value_BT, 0.0)
    # Segment ids of completions are from 1, so 0 gathers what is no target.
    segment_BT = jnp.where(is_target_BT, segment_BT, 0)

    def of_row(value_T: Array, segment_T: Array) -> Array:
        return jax.ops.segment_sum(value_T, segment_T, num_segments=row_tokens + 1)[segment_T]

    return jnp.where(is_target_BT, jax.vmap(of_row)(value_BT, segment_BT), 0.0)


def sequence_mean(
    value_BT: Float[Array, "B T"],
    segment_BT: Int[Array, "B T"],
    is_target_BT: Bool[Array, "B T"],
) -> Float[jax.Array, "B T"]:
    """The mean of `value` over the targets of a completion, as `sequence_sum`."""
    length_BT = sequence_sum(jnp.ones_like(value_BT), segment_BT, is_target_BT)
    return sequence_sum(value_BT, segment_BT, is_target_BT) / jnp.maximum(length_BT, 1.0)
