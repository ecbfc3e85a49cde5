"""Attention over packed rows in blocks of queries and keys, of which only those are computed that
hold a pair that may be seen.

The plain XLA path on every platform, and the reference for kernels. The scores of one pair of
blocks exist at a time, forward and backward, so memory grows with T; and a row is as cheap as what
is packed into it: blocks of other segments cost nothing.

    out[t] = sum over s of P[t,s] v[s],  P = softmax of scale * q[t] k[s] over the keys that t sees
    dS     = P * (dP - delta),  dP = dout v^T,  delta[t] = dout[t] . out[t]

Source: the block recurrences of Dao et al. 2022, arXiv 2205.14135 (algorithms 1 and 4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int32

ATTENDED = "attended"
"""Name, for `jax.checkpoint` policies, of what the backward pass reads beside q, k and v."""

_BLOCK = 256
"""Longest block. Rows are cut into equal blocks that are not longer, so that little is padding."""

MASKED = -1e30
"""Score of a pair that may not be seen. Finite: a query that sees nothing gives a finite output,
which nobody reads, instead of NaN."""


class Window(NamedTuple):
    """Tokens at most `size` - 1 positions back are seen. Positions decide, not places in the row: a
    completion may stand far behind the prompt that it continues.
    """

    position_BT: Int32[Array, "B T"]
    size: Int32[Array, ""]


class _Blocks(NamedTuple):
    """What decides which query sees which key, cut into X blocks of c tokens, and the pairs of
    blocks in which some query of some row sees some key."""

    index_Xc: Array
    segment_XBc: Array
    prefix_XBc: Array
    position_XBc: Array | None
    window_size: Array | None
    query_block: Array
    key_block: Array
    num_pairs: Array


def blockwise_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    window: Window | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention inside packed rows, by the rule of `attention.packed_attention`.

    Softmax and sums in float32, products in the dtype of the inputs.
    """
    num_rows, row_length, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BTKH.shape[2]
    num_blocks = -(-row_length // _BLOCK)
    length = -(-row_length // num_blocks)  # of a block

    def cut(x: Array) -> Array:
        """[B, T, ...] -> [X, B, c, ...]; padding is filled up with zeros, which is segment 0."""
        missing = num_blocks * length - row_length
        x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(num_rows, num_blocks, length, *x.shape[2:]), 1, 0)

    blocks = _blocks(
        jnp.arange(num_blocks * length, dtype=jnp.int32).reshape(num_blocks, length),
        cut(segment_BT),
        cut(prefix_BT),
        None if window is None else (cut(window.position_BT), window.size),
    )
    # The queries of the heads that share a key/value head are the rows of one product.
    q_XBcKJH = cut(q_BTNH).reshape(num_blocks, num_rows, length, num_kv_heads, -1, head_dim)
    q_XBKaH = q_XBcKJH.transpose(0, 1, 3, 4, 2, 5).reshape(
        num_blocks, num_rows, num_kv_heads, -1, head_dim
    )
    k_XBKcH, v_XBKcH = (cut(x).swapaxes(2, 3) for x in (k_BTKH, v_BTKH))
    out_XBKaH = _attend(q_XBKaH, k_XBKcH, v_XBKcH, blocks)
    out_XBKJcH = out_XBKaH.reshape(num_blocks, num_rows, num_kv_heads, -1, length, head_dim)
    out_BXcKJH = out_XBKJcH.transpose(1, 0, 4, 2, 3, 5)
    return out_BXcKJH.reshape(num_rows, -1, num_heads, head_dim)[:, :row_length]


def most_pairs(row_length: int) -> int:
    """Pairs of blocks that rows of this length take at most: those of one long segment."""
    num_blocks = -(-row_length // _BLOCK)
    return num_blocks * (num_blocks + 1) // 2


def _blocks(
    index_Xc: Array,
    segment_XBc: Array,
    prefix_XBc: Array,
    window: tuple[Array, Array] | None,
) -> _Blocks:
    num_blocks, length = index_Xc.shape

    def ids(id_XBc: Array) -> Bool[Array, "X B I"]:
        """Which segments occur in a block; padding does not."""
        num_ids = num_blocks * length + 1
        x, b, _ = jnp.indices(id_XBc.shape, sparse=True)
        occurs = jnp.zeros((*id_XBc.shape[:2], num_ids), bool).at[x, b, id_XBc].set(True)
        return occurs.at[..., 0].set(False)

    wanted = (ids(segment_XBc) | ids(prefix_XBc)).astype(jnp.float32)
    offered = ids(segment_XBc).astype(jnp.float32)
    is_seen_BXY = jnp.einsum("XBI,YBI->BXY", wanted, offered) > 0
    if window is not None:
        position_XBc, size = window
        nearest_BXY = (
            jnp.min(position_XBc, axis=-1).T[:, :, None]
            - jnp.max(position_XBc, axis=-1).T[:, None, :]
        )
        is_seen_BXY &= nearest_BXY < size
    # A query always sees itself, so that padding has an output too.
    causal_XY = jnp.tri(num_blocks, dtype=bool)
    is_seen_XY = (jnp.any(is_seen_BXY, axis=0) & causal_XY) | jnp.eye(num_blocks, dtype=bool)
    query_block, key_block = jnp.nonzero(
        is_seen_XY, size=num_blocks * (num_blocks + 1) // 2, fill_value=0
    )
    return _Blocks(
        index_Xc,
        segment_XBc,
        prefix_XBc,
        None if window is None else window[0],
        None if window is None else window[1],
        query_block,
        key_block,
        jnp.sum(is_seen_XY, dtype=jnp.int32),
    )


def _scores(q_BKaH: Array, k_BKcH: Array, blocks: _Blocks, x: Array, y: Array) -> Array:
    """Scores [B, K, a, c] of the queries of block x and the keys of block y, a = J * c."""
    score_BKac = jnp.einsum("BKaH,BKcH->BKac", q_BKaH, k_BKcH, preferred_element_type=jnp.float32)
    score_BKac *= q_BKaH.shape[-1] ** -0.5
    segment_B1c = blocks.segment_XBc[y][:, None, :]
    sees_Bqc = (blocks.index_Xc[y] <= blocks.index_Xc[x][:, None]) & (
        (segment_B1c == blocks.segment_XBc[x][:, :, None])
        | (segment_B1c == blocks.prefix_XBc[x][:, :, None])
    )
    if blocks.position_XBc is not None and blocks.window_size is not None:
        back_Bqc = blocks.position_XBc[x][:, :, None] - blocks.position_XBc[y][:, None, :]
        sees_Bqc &= back_Bqc < blocks.window_size
    by_head = (*score_BKac.shape[:2], -1, *sees_Bqc.shape[1:])
    score_BKJqc = jnp.where(sees_Bqc[:, None, None], score_BKac.reshape(by_head), MASKED)
    return score_BKJqc.reshape(score_BKac.shape)


@jax.custom_vjp
def _attend(q_XBKaH: Array, k_XBKcH: Array, v_XBKcH: Array, blocks: _Blocks) -> Array:
    return _forward(q_XBKaH, k_XBKcH, v_XBKcH, blocks)[0]


def _forward(
    q_XBKaH: Array, k_XBKcH: Array, v_XBKcH: Array, blocks: _Blocks
) -> tuple[Array, tuple[Any, ...]]:
    def add(pair: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top_XBKa, mass_XBKa, sum_XBKaH = so_far
        x, y = blocks.query_block[pair], blocks.key_block[pair]
        score_BKac = _scores(q_XBKaH[x], k_XBKcH[y], blocks, x, y)
        top_BKa = jnp.maximum(top_XBKa[x], jnp.max(score_BKac, axis=-1))
        kept_BKa = jnp.exp(top_XBKa[x] - top_BKa)
        weight_BKac = jnp.exp(score_BKac - top_BKa[..., None])
        mass_BKa = mass_XBKa[x] * kept_BKa + jnp.sum(weight_BKac, axis=-1)
        new_BKaH = jnp.einsum(
            "BKac,BKcH->BKaH",
            weight_BKac.astype(v_XBKcH.dtype),
            v_XBKcH[y],
            preferred_element_type=jnp.float32,
        )
        return (
            top_XBKa.at[x].set(top_BKa),
            mass_XBKa.at[x].set(mass_BKa),
            sum_XBKaH.at[x].set(sum_XBKaH[x] * kept_BKa[..., None] + new_BKaH),
        )

    nothing = (
        jnp.full(q_XBKaH.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q_XBKaH.shape[:-1], jnp.float32),
        jnp.zeros(q_XBKaH.shape, jnp.float32),
    )
    top_XBKa, mass_XBKa, sum_XBKaH = jax.lax.fori_loop(0, blocks.num_pairs, add, nothing)
    out_XBKaH = (sum_XBKaH / mass_XBKa[..., None]).astype(q_XBKaH.dtype)
    out_XBKaH = checkpoint_name(out_XBKaH, ATTENDED)
    normaliser_XBKa = checkpoint_name(top_XBKa + jnp.log(mass_XBKa), ATTENDED)
    return out_XBKaH, (q_XBKaH, k_XBKcH, v_XBKcH, blocks, out_XBKaH, normaliser_XBKa)


def _backward(kept: tuple[Any, ...], d_out_XBKaH: Array) -> tuple[Any, ...]:
    q_XBKaH, k_XBKcH, v_XBKcH, blocks, out_XBKaH, normaliser_XBKa = kept
    dtype, scale = q_XBKaH.dtype, q_XBKaH.shape[-1] ** -0.5
    delta_XBKa = jnp.sum(d_out_XBKaH.astype(jnp.float32) * out_XBKaH.astype(jnp.float32), axis=-1)

    def product(spec: str, left: Array, right: Array) -> Array:
        return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)

    def add(pair: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_q_XBKaH, d_k_XBKcH, d_v_XBKcH = so_far
        x, y = blocks.query_block[pair], blocks.key_block[pair]
        q_BKaH, k_BKcH, d_out_BKaH = q_XBKaH[x], k_XBKcH[y], d_out_XBKaH[x]
        score_BKac = _scores(q_BKaH, k_BKcH, blocks, x, y)
        weight_BKac = jnp.exp(score_BKac - normaliser_XBKa[x][..., None])
        d_weight_BKac = product("BKaH,BKcH->BKac", d_out_BKaH, v_XBKcH[y])
        d_score_BKac = weight_BKac * (d_weight_BKac - delta_XBKa[x][..., None]) * scale
        weight_BKac, d_score_BKac = weight_BKac.astype(dtype), d_score_BKac.astype(dtype)
        return (
            d_q_XBKaH.at[x].add(product("BKac,BKcH->BKaH", d_score_BKac, k_BKcH)),
            d_k_XBKcH.at[y].add(product("BKac,BKaH->BKcH", d_score_BKac, q_BKaH)),
            d_v_XBKcH.at[y].add(product("BKac,BKaH->BKcH", weight_BKac, d_out_BKaH)),
        )

    nothing = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_XBKaH, k_XBKcH, v_XBKcH))
    gradients = jax.lax.fori_loop(0, blocks.num_pairs, add, nothing)
    return (*(gradient.astype(dtype) for gradient in gradients), None)


_attend.defvjp(_forward, _backward)
