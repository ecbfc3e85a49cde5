"""Attention over packed rows in blocks of queries and keys. Only pairs of blocks in which some
query sees some key are computed.

The plain XLA path on every platform, and the reference for kernels. The scores of one pair of
blocks exist at a time, forward and backward, so memory grows with T; and a row is as cheap as the
segments packed into it: pairs of blocks with no segment in common cost nothing.

    out[t] = sum over s of P[t,s] v[s],  P = softmax of scale * q[t] k[s] over the keys that t sees
    dS     = P * (dP - delta),  dP = dout v^T,  delta[t] = dout[t] . out[t]

Source: the block recurrences of Dao et al. 2022, arXiv 2205.14135 (algorithms 1 and 4).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int32, Shaped

from cipo_jax.records import Array

ATTENDED = "attended"
"""Name, for `jax.checkpoint` policies, of what the backward pass reads beside q, k and v."""

LONGEST_BLOCK = 256
"""Tokens. Rows are cut into equal blocks that are not longer, so that little is padding."""

MASKED = -1e30
"""Score of a pair that may not be seen. Finite: a query that sees nothing gives a finite output,
which nobody reads, instead of NaN."""


class Window(NamedTuple):
    """Tokens at most `size` - 1 positions back are seen. Positions decide, not places in the row: a
    completion may be far behind the prompt that it continues.
    """

    position_BT: Int32[Array, "B T"]
    size: Int32[jax.Array, ""]


class Blocks(NamedTuple):
    """Rows cut into J blocks of U tokens: the ids and positions that decide which query sees which
    key, and the pairs of blocks in which some query of some row sees some key.
    """

    index_JU: Int32[jax.Array, "J U"]
    segment_JBU: Int32[jax.Array, "J B U"]
    prefix_JBU: Int32[jax.Array, "J B U"]
    position_JBU: Int32[jax.Array, "J B U"] | None
    window_size: Int32[jax.Array, ""] | None
    query_block: Int32[jax.Array, " pairs"]
    key_block: Int32[jax.Array, " pairs"]
    num_pairs: Int32[jax.Array, ""]
    """In use; the rest of `query_block` and `key_block` is padding."""


def blockwise_attention(
    q_BTNH: Float[jax.Array, "B T N H"],
    k_BTKH: Float[jax.Array, "B T K H"],
    v_BTKH: Float[jax.Array, "B T K H"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    window: Window | None = None,
    *,
    longest_block: int = LONGEST_BLOCK,
) -> Float[jax.Array, "B T N H"]:
    """Causal attention inside packed rows, by the rule of `attention.packed_attention`.

    Softmax and sums in float32, products in the dtype of the inputs.
    """
    num_rows, row_length, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BTKH.shape[2]
    blocks = blocks_of(segment_BT, prefix_BT, window, longest_block=longest_block)
    num_blocks, length = blocks.index_JU.shape
    # The queries of the W heads that share a key/value head are the rows of one product: I = W * U.
    q_JBUKWH = _cut(q_BTNH, num_blocks).reshape(
        num_blocks, num_rows, length, num_kv_heads, -1, head_dim
    )
    q_JBKIH = q_JBUKWH.transpose(0, 1, 3, 4, 2, 5).reshape(
        num_blocks, num_rows, num_kv_heads, -1, head_dim
    )
    k_JBKUH, v_JBKUH = (_cut(x, num_blocks).swapaxes(2, 3) for x in (k_BTKH, v_BTKH))
    out_JBKIH = _attend(q_JBKIH, k_JBKUH, v_JBKUH, blocks)
    out_JBKWUH = out_JBKIH.reshape(num_blocks, num_rows, num_kv_heads, -1, length, head_dim)
    out_BJUKWH = out_JBKWUH.transpose(1, 0, 4, 2, 3, 5)
    return out_BJUKWH.reshape(num_rows, -1, num_heads, head_dim)[:, :row_length]


def blocks_of(
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    window: Window | None = None,
    *,
    longest_block: int = LONGEST_BLOCK,
) -> Blocks:
    """The blocks that rows are cut into, and the pairs of them that attention computes."""
    num_blocks = _num_blocks(segment_BT.shape[1], longest_block)
    segment_JBU, prefix_JBU = _cut(segment_BT, num_blocks), _cut(prefix_BT, num_blocks)
    length = segment_JBU.shape[2]
    index_JU = jnp.arange(num_blocks * length, dtype=jnp.int32).reshape(num_blocks, length)

    def occurring(id_JBU: jax.Array) -> Bool[jax.Array, "B J O"]:
        """True where one of O segment ids occurs in a block; that of padding never does."""
        num_ids = num_blocks * length + 1
        block, row, _ = jnp.indices(id_JBU.shape, sparse=True)
        occurs_JBO = jnp.zeros((*id_JBU.shape[:2], num_ids), bool).at[block, row, id_JBU].set(True)
        return occurs_JBO.at[..., 0].set(False).swapaxes(0, 1)

    offered_BJO = occurring(segment_JBU)
    wanted_BJO = offered_BJO | occurring(prefix_JBU)
    common_BJJ = wanted_BJO.astype(jnp.float32) @ offered_BJO.astype(jnp.float32).swapaxes(1, 2)
    is_seen_BJJ = common_BJJ > 0  # [query block, key block]
    position_JBU = None
    if window is not None:
        position_JBU = _cut(window.position_BT, num_blocks)
        nearest_BJJ = (
            jnp.min(position_JBU, axis=-1).T[:, :, None]
            - jnp.max(position_JBU, axis=-1).T[:, None, :]
        )
        is_seen_BJJ &= nearest_BJJ < window.size
    # A query always sees itself, so that padding has an output too.
    causal_JJ = jnp.tri(num_blocks, dtype=bool)
    is_seen_JJ = (jnp.any(is_seen_BJJ, axis=0) & causal_JJ) | jnp.eye(num_blocks, dtype=bool)
    query_block, key_block = jnp.nonzero(
        is_seen_JJ, size=num_blocks * (num_blocks + 1) // 2, fill_value=0
    )
    return Blocks(
        index_JU=index_JU,
        segment_JBU=segment_JBU,
        prefix_JBU=prefix_JBU,
        position_JBU=position_JBU,
        window_size=None if window is None else window.size,
        query_block=query_block,
        key_block=key_block,
        num_pairs=jnp.sum(is_seen_JJ, dtype=jnp.int32),
    )


def most_pairs(row_length: int) -> int:
    """The most pairs of blocks that rows of this length can need: those of one long segment."""
    num_blocks = _num_blocks(row_length, LONGEST_BLOCK)
    return num_blocks * (num_blocks + 1) // 2


def _num_blocks(row_length: int, longest_block: int) -> int:
    return -(-row_length // longest_block)


def _cut(x: Shaped[Array, "B T ..."], num_blocks: int) -> Shaped[jax.Array, "J B U ..."]:
    """Rows in equal blocks, as short as may be; filled up with zeros, which is segment 0."""
    num_rows, row_length = x.shape[:2]
    length = -(-row_length // num_blocks)
    missing = num_blocks * length - row_length
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(num_rows, num_blocks, length, *x.shape[2:]), 1, 0)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _scores(
    q_BKIH: jax.Array, k_BKUH: jax.Array, blocks: Blocks, query: jax.Array, key: jax.Array
) -> jax.Array:
    """Scores [B, K, I, U] of the queries of block `query` and the keys of block `key`."""
    score_BKIU = _product("BKIH,BKUH->BKIU", q_BKIH, k_BKUH)
    score_BKIU *= q_BKIH.shape[-1] ** -0.5
    segment_B1U = blocks.segment_JBU[key][:, None, :]
    sees_BUU = (blocks.index_JU[key] <= blocks.index_JU[query][:, None]) & (
        (segment_B1U == blocks.segment_JBU[query][:, :, None])
        | (segment_B1U == blocks.prefix_JBU[query][:, :, None])
    )
    if blocks.position_JBU is not None and blocks.window_size is not None:
        back_BUU = blocks.position_JBU[query][:, :, None] - blocks.position_JBU[key][:, None, :]
        sees_BUU &= back_BUU < blocks.window_size
    by_head = (*score_BKIU.shape[:2], -1, *sees_BUU.shape[1:])
    score_BKWUU = jnp.where(sees_BUU[:, None, None], score_BKIU.reshape(by_head), MASKED)
    return score_BKWUU.reshape(score_BKIU.shape)


@jax.custom_vjp
def _attend(
    q_JBKIH: jax.Array, k_JBKUH: jax.Array, v_JBKUH: jax.Array, blocks: Blocks
) -> jax.Array:
    return _forward(q_JBKIH, k_JBKUH, v_JBKUH, blocks)[0]


_Three = tuple[jax.Array, jax.Array, jax.Array]


def _forward(
    q_JBKIH: jax.Array, k_JBKUH: jax.Array, v_JBKUH: jax.Array, blocks: Blocks
) -> tuple[jax.Array, tuple[Any, ...]]:
    def add(pair: jax.Array, so_far: _Three) -> _Three:
        """One more block of keys for a block of queries: `top` is the largest score so far, `mass`
        and `sum` are the sums of exp(score - top) and of exp(score - top) * v."""
        top_JBKI, mass_JBKI, sum_JBKIH = so_far
        query, key = blocks.query_block[pair], blocks.key_block[pair]
        score_BKIU = _scores(q_JBKIH[query], k_JBKUH[key], blocks, query, key)
        top_BKI = jnp.maximum(top_JBKI[query], jnp.max(score_BKIU, axis=-1))
        kept_BKI = jnp.exp(top_JBKI[query] - top_BKI)
        weight_BKIU = jnp.exp(score_BKIU - top_BKI[..., None])
        mass_BKI = mass_JBKI[query] * kept_BKI + jnp.sum(weight_BKIU, axis=-1)
        new_BKIH = _product("BKIU,BKUH->BKIH", weight_BKIU.astype(v_JBKUH.dtype), v_JBKUH[key])
        return (
            top_JBKI.at[query].set(top_BKI),
            mass_JBKI.at[query].set(mass_BKI),
            sum_JBKIH.at[query].set(sum_JBKIH[query] * kept_BKI[..., None] + new_BKIH),
        )

    nothing = (
        jnp.full(q_JBKIH.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q_JBKIH.shape[:-1], jnp.float32),
        jnp.zeros(q_JBKIH.shape, jnp.float32),
    )
    top_JBKI, mass_JBKI, sum_JBKIH = jax.lax.fori_loop(0, blocks.num_pairs, add, nothing)
    out_JBKIH = (sum_JBKIH / mass_JBKI[..., None]).astype(q_JBKIH.dtype)
    out_JBKIH = checkpoint_name(out_JBKIH, ATTENDED)
    normaliser_JBKI = checkpoint_name(top_JBKI + jnp.log(mass_JBKI), ATTENDED)
    return out_JBKIH, (q_JBKIH, k_JBKUH, v_JBKUH, blocks, out_JBKIH, normaliser_JBKI)


def _backward(kept: tuple[Any, ...], d_out_JBKIH: jax.Array) -> tuple[Any, ...]:
    q_JBKIH, k_JBKUH, v_JBKUH, blocks, out_JBKIH, normaliser_JBKI = kept
    dtype, scale = q_JBKIH.dtype, q_JBKIH.shape[-1] ** -0.5
    delta_JBKI = jnp.sum(d_out_JBKIH.astype(jnp.float32) * out_JBKIH.astype(jnp.float32), axis=-1)

    def add(pair: jax.Array, so_far: _Three) -> _Three:
        """The gradients with the part of one pair of blocks, by the formulas of the module."""
        d_q_JBKIH, d_k_JBKUH, d_v_JBKUH = so_far
        query, key = blocks.query_block[pair], blocks.key_block[pair]
        q_BKIH, k_BKUH, d_out_BKIH = q_JBKIH[query], k_JBKUH[key], d_out_JBKIH[query]
        score_BKIU = _scores(q_BKIH, k_BKUH, blocks, query, key)
        weight_BKIU = jnp.exp(score_BKIU - normaliser_JBKI[query][..., None])
        d_weight_BKIU = _product("BKIH,BKUH->BKIU", d_out_BKIH, v_JBKUH[key])
        d_score_BKIU = weight_BKIU * (d_weight_BKIU - delta_JBKI[query][..., None]) * scale
        weight_BKIU, d_score_BKIU = weight_BKIU.astype(dtype), d_score_BKIU.astype(dtype)
        return (
            d_q_JBKIH.at[query].add(_product("BKIU,BKUH->BKIH", d_score_BKIU, k_BKUH)),
            d_k_JBKUH.at[key].add(_product("BKIU,BKIH->BKUH", d_score_BKIU, q_BKIH)),
            d_v_JBKUH.at[key].add(_product("BKIU,BKIH->BKUH", weight_BKIU, d_out_BKIH)),
        )

    nothing = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_JBKIH, k_JBKUH, v_JBKUH))
    gradients = jax.lax.fori_loop(0, blocks.num_pairs, add, nothing)
    return (*(gradient.astype(dtype) for gradient in gradients), None)


_attend.defvjp(_forward, _backward)
