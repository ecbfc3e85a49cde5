"""Attention over packed rows by the splash kernel of jax, for TPUs.

The kernel knows causal order and one id per token, of which a query and a key must have the same.
Units of a row (a prompt with the completions that continue it) are told apart by those ids. That
the completions of one prompt see it and not each other is more than equality of ids can say; it is
written into additional channels of queries and keys, whose product is 0 where a pair may be seen
and hugely negative where it may not:

    b     = the bits of a completion's segment id                      (each 0 or 1)
    q+    = -M * (1 - b, b),   k+ = (b, 1 - b);   both 0 for a prompt's tokens
    q+ k+ = -M * (bits that differ)

Both factors are exact in bfloat16, visible pairs get exactly 0, and a row with thousands of
segments takes some twenty-six channels. Where the head width leaves lanes of the matrix unit empty
(64 of 128), they cost nothing; at width 128 the product of queries and keys doubles, which is less
than a copy of the prompt for each of its completions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Float, Int32

from cipo_jax.model.blockwise import ATTENDED
from cipo_jax.records import Array

LANES = 128
"""The kernel's blocks are multiples of this, and the matrix unit is this wide."""

_BLOCKS = (512, 256, LANES)

_FORBIDDEN = 2.0**14
"""M. Exact in bfloat16, and beyond any difference of scores, so that exp gives 0."""


def splash_attention(
    q_BTNH: Float[jax.Array, "B T N H"],
    k_BTKH: Float[jax.Array, "B T K H"],
    v_BTKH: Float[jax.Array, "B T K H"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[jax.Array, "B T N H"]:
    """`attention.packed_attention` without a window, on one device.

    Relies on a prompt coming before its completions in the row, as `records.Batch` has it.

    Args:
      interpret: run the kernel as plain operations, on any machine; far too slow but for tests.
    """
    row_length, num_heads, head_dim = q_BTNH.shape[1:]
    padded = -(-row_length // LANES) * LANES
    hides_q_BTX, hides_k_BTX = _sibling_channels(segment_BT, prefix_BT, head_dim)

    def widened(x_BTNH: jax.Array, more_BTX: jax.Array) -> jax.Array:
        shape = (*x_BTNH.shape[:3], more_BTX.shape[-1])
        more = jnp.broadcast_to(more_BTX[:, :, None], shape).astype(x_BTNH.dtype)
        return jnp.concatenate([x_BTNH, more], axis=-1)

    def heads_first(x_BTNH: jax.Array) -> jax.Array:
        x_BTNH = jnp.pad(x_BTNH, [(0, 0), (0, padded - row_length), (0, 0), (0, 0)])
        return x_BTNH.swapaxes(1, 2)

    q_BNTX = heads_first(widened(q_BTNH * head_dim**-0.5, hides_q_BTX))
    k_BKTX = heads_first(widened(k_BTKH, hides_k_BTX))
    unit_BT = jnp.pad(prefix_BT, [(0, 0), (0, padded - row_length)])
    kernel = _kernel(padded, num_heads, interpret)
    out_BNTH = jax.vmap(kernel)(q_BNTX, k_BKTX, heads_first(v_BTKH), SegmentIds(unit_BT, unit_BT))
    return out_BNTH.swapaxes(1, 2)[:, :row_length]


def _sibling_channels(
    segment_BT: Array, prefix_BT: Array, head_dim: int
) -> tuple[jax.Array, jax.Array]:
    """q+ and k+, filled up with zeros to whole lanes together with the head's own channels."""
    num_bits = int(segment_BT.shape[1]).bit_length()  # a row has at most T segments
    bit_BTX = (segment_BT[..., None] >> jnp.arange(num_bits)) & 1
    is_completion_BT1 = (segment_BT != prefix_BT)[..., None]
    q_BTX = -_FORBIDDEN * jnp.concatenate([1 - bit_BTX, bit_BTX], axis=-1)
    k_BTX = jnp.concatenate([bit_BTX, 1 - bit_BTX], axis=-1).astype(jnp.float32)
    missing = -(head_dim + 2 * num_bits) % LANES
    fill = [(0, 0), (0, 0), (0, missing)]
    return (
        jnp.pad(jnp.where(is_completion_BT1, q_BTX, 0.0), fill),
        jnp.pad(jnp.where(is_completion_BT1, k_BTX, 0.0), fill),
    )


def _kernel(row_length: int, num_heads: int, interpret: bool) -> Callable[..., jax.Array]:
    block = next(size for size in _BLOCKS if row_length % size == 0)
    mask = MultiHeadMask([CausalMask((row_length, row_length))] * num_heads)
    kernel: Callable[..., jax.Array] = make_splash_mha(
        mask,
        block_sizes=BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            # Not fused: the fused kernel keeps a gradient of the queries per block of keys.
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    return kernel
