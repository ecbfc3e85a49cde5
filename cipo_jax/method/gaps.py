"""The gap between the sampler's and the trainer's log-probs: token log-probs and a packed batch in,
sums by bucket out, which add up over microbatches.

Which tokens a fault hits says what it is: a wrong shift hits the first token of each completion, a
wrong end-of-sequence rule the last, wrong rotary angles the late positions, a wrong prompt mask the
long prompts, a wrong temperature all.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from cipo_jax.config import Parity, ParityMask, ParityOff
from cipo_jax.method.sequences import sequence_mean
from cipo_jax.records import Array, Batch

POSITIONS = (0, 16, 64, 256, 1024, 4096)
"""Buckets of a token's place in its completion, each named by its first one."""
PROMPTS = (0, 64, 256, 1024, 4096)
"""Buckets of the length of a token's prompt."""
BUCKETS = (
    "all",
    "first",
    "last",
    *(f"position_{start}" for start in POSITIONS),
    *(f"prompt_{start}" for start in PROMPTS),
)


@flax.struct.dataclass
class Gaps:
    """|trainer - sampler log-prob| in nats over the targets of each bucket, in the order of
    `BUCKETS`; largest is 0 in an empty one."""

    count: Float32[Array, " buckets"]
    total: Float32[Array, " buckets"]
    largest: Float32[Array, " buckets"]

    @classmethod
    def none(cls) -> Gaps:
        zeros = jnp.zeros(len(BUCKETS))
        return cls(count=zeros, total=zeros, largest=zeros)

    def __add__(self, other: Gaps) -> Gaps:
        return Gaps(
            count=self.count + other.count,
            total=self.total + other.total,
            largest=jnp.maximum(self.largest, other.largest),
        )


def measure(logprob_BT: Float[Array, "B T"], batch: Batch) -> Gaps:
    """The gaps of a batch or of a microbatch.

    Args:
      logprob_BT: of the trainer; any value where not a target.
    """
    gap_BT = token_gap(logprob_BT, batch)
    masks = [batch.is_target_BT & mask for mask in bucket_masks(batch).values()]

    def stacked(values: list[Array]) -> Array:
        return jnp.stack(values).astype(jnp.float32)

    return Gaps(
        count=stacked([jnp.sum(mask) for mask in masks]),
        total=stacked([jnp.sum(jnp.where(mask, gap_BT, 0.0)) for mask in masks]),
        largest=stacked([jnp.max(jnp.where(mask, gap_BT, 0.0), initial=0.0) for mask in masks]),
    )


def token_gap(logprob_BT: Float[Array, "B T"], batch: Batch) -> Float32[jax.Array, "B T"]:
    """|trainer - sampler log-prob| of each target, nats, without a gradient; 0 elsewhere."""
    gap_BT = jnp.abs(jax.lax.stop_gradient(logprob_BT) - batch.sampler_logprob_BT)
    return jnp.where(batch.is_target_BT, gap_BT, 0.0)


def bucket_masks(batch: Batch) -> dict[str, Bool[Array, "B T"]]:
    """Which tokens lie in each bucket of `BUCKETS`; meant for targets."""
    place_BT, is_last_BT = _places(batch.segment_BT)
    prompt_BT = batch.position_BT - place_BT

    def between(value_BT: Array, starts: tuple[int, ...]) -> list[Array]:
        ends = (*starts[1:], np.iinfo(np.int32).max)
        pairs = zip(starts, ends, strict=True)
        return [(value_BT >= start) & (value_BT < end) for start, end in pairs]

    masks = [
        jnp.ones_like(is_last_BT),
        place_BT == 0,
        is_last_BT,
        *between(place_BT, POSITIONS),
        *between(prompt_BT, PROMPTS),
    ]
    return dict(zip(BUCKETS, masks, strict=True))


def mask_outliers(
    logprob_BT: Float[Array, "B T"], batch: Batch, *, parity: ParityMask
) -> tuple[Batch, Float32[Array, ""]]:
    """The batch without the completions whose gap exceeds the limits or is not finite, and the
    number of their tokens.

    Their tokens are no targets any more; the weights of the others stay, and with them the
    denominators.
    """
    gap_BT = token_gap(logprob_BT, batch)
    segment_BT = jnp.where(batch.is_target_BT, batch.segment_BT, 0)

    def largest(gap_T: Array, segment_T: Array) -> Array:
        num_segments = segment_T.shape[0] + 1
        return jax.ops.segment_max(gap_T, segment_T, num_segments=num_segments)[segment_T]

    mean_BT = sequence_mean(gap_BT, batch.segment_BT, batch.is_target_BT)
    largest_BT = jax.vmap(largest)(gap_BT, segment_BT)
    is_within_BT = (mean_BT <= parity.mean_nats) & (largest_BT <= parity.max_nats)
    is_kept_BT = batch.is_target_BT & is_within_BT
    num_masked = jnp.sum(batch.is_target_BT & ~is_within_BT, dtype=jnp.float32)
    return dataclasses.replace(batch, is_target_BT=is_kept_BT), num_masked


def is_beyond(
    gaps: Gaps, num_masked: Float32[jax.Array, ""], *, parity: Parity
) -> Bool[jax.Array, ""]:
    """Whether a step's gaps exceed the limits, or are not finite; False without targets."""
    match parity:
        case ParityOff():
            return jnp.zeros((), bool)
        case ParityMask():
            return jnp.greater(num_masked, 0)
        case _:
            mean = gaps.total[0] / jnp.maximum(gaps.count[0], 1.0)
            is_within = (mean <= parity.mean_nats) & (gaps.largest[0] <= parity.max_nats)
            return jnp.logical_not(is_within)


def _places(
    segment_BT: Int32[Array, "B T"],
) -> tuple[Int32[jax.Array, "B T"], Bool[jax.Array, "B T"]]:
    """The place of each token in its segment, from 0, and whether it is the segment's last."""
    index_T = jnp.arange(segment_BT.shape[1], dtype=jnp.int32)
    changes_BT = segment_BT[:, 1:] != segment_BT[:, :-1]
    edge_B1 = jnp.ones_like(changes_BT, shape=(segment_BT.shape[0], 1))
    is_first_BT = jnp.concatenate([edge_B1, changes_BT], axis=1)
    is_last_BT = jnp.concatenate([changes_BT, edge_B1], axis=1)
    start_BT = jax.lax.cummax(jnp.where(is_first_BT, index_T, 0), axis=1)
    return index_T - start_BT, is_last_BT
