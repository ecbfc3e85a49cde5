"""One decoder for all families: parameters as records, the forward pass as functions.

A family is a set of constants (`presets.Architecture`). The training path scans over stacked
layers; the decoding path (`sampler/`) walks over `unstack`ed ones. Both call the same `block`; they
differ in the attention they pass to it. The head is in `logprobs.py`, layers of several experts are
in `experts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from cipo_jax.mesh.sharding import LOOKUP_RULES, constrain
from cipo_jax.model.attention import packed_attention
from cipo_jax.model.blockwise import ATTENDED, Window
from cipo_jax.model.experts import ACTIVATIONS, mix_experts
from cipo_jax.model.linear import Adapted, merged, product
from cipo_jax.model.presets import Architecture
from cipo_jax.model.rotary import Rotary, rotary_tables, rotate

INIT_STD = 0.02
"""Standard deviation of freshly drawn matrices, as in the public models' own configs."""


@flax.struct.dataclass
class Block:
    """The layers of the decoder, each field stacked over them. The letters are the logical axes
    that `sharding.py` reads. Fields that the architecture lacks are None.
    """

    attn_norm: Float[Array, "L D"]
    q: Float[Array, "L D N H"]
    k: Float[Array, "L D K H"]
    v: Float[Array, "L D K H"]
    o: Float[Array, "L N H D"]
    q_bias: Float[Array, "L N H"] | None
    k_bias: Float[Array, "L K H"] | None
    v_bias: Float[Array, "L K H"] | None
    q_norm: Float[Array, "L H"] | None
    k_norm: Float[Array, "L H"] | None
    attn_post_norm: Float[Array, "L D"] | None
    mlp_norm: Float[Array, "L D"]
    gate: Float[Array, "L D F"] | None
    up: Float[Array, "L D F"] | None
    down: Float[Array, "L F D"] | None
    router: Float[Array, "L D E"] | None
    expert_gate: Float[Array, "L E D F"] | None
    expert_up: Float[Array, "L E D F"] | None
    expert_down: Float[Array, "L E F D"] | None
    mlp_post_norm: Float[Array, "L D"] | None


@flax.struct.dataclass
class Params:
    """The whole decoder. `head` is None where the embedding is also the head."""

    embed: Float[Array, "V D"]
    blocks: Block
    final_norm: Float[Array, " D"]
    head: Float[Array, "D V"] | None


def init(key: PRNGKeyArray, arch: Architecture) -> Params:
    """Random float32 parameters: matrices from N(0, 0.02^2), norms of scale one, biases zero."""
    layers, vocab, dim, hidden = arch.num_layers, arch.vocab_size, arch.model_dim, arch.mlp_dim
    heads, kv_heads, width = arch.num_heads, arch.num_kv_heads, arch.head_dim
    num_experts = arch.experts.num_experts if arch.experts else 0
    keys = iter(jax.random.split(key, 10))

    def matrix(*shape: int) -> Array:
        return INIT_STD * jax.random.normal(next(keys), shape, jnp.float32)

    def bias(*shape: int) -> Array | None:
        return jnp.zeros(shape) if arch.has_qkv_bias else None

    def norm(*shape: int) -> Array:
        return jnp.full(shape, 1 - arch.norm_offset, jnp.float32)

    def head_norm() -> Array | None:
        return norm(layers, width) if arch.has_qk_norm else None

    def post_norm() -> Array | None:
        return norm(layers, dim) if arch.has_post_norms else None

    def dense(*shape: int) -> Array | None:
        return None if arch.experts else matrix(layers, *shape)

    def expert(*shape: int) -> Array | None:
        return matrix(layers, *shape) if arch.experts else None

    return Params(
        embed=matrix(vocab, dim),
        blocks=Block(
            attn_norm=norm(layers, dim),
            q=matrix(layers, dim, heads, width),
            k=matrix(layers, dim, kv_heads, width),
            v=matrix(layers, dim, kv_heads, width),
            o=matrix(layers, heads, width, dim),
            q_bias=bias(layers, heads, width),
            k_bias=bias(layers, kv_heads, width),
            v_bias=bias(layers, kv_heads, width),
            q_norm=head_norm(),
            k_norm=head_norm(),
            attn_post_norm=post_norm(),
            mlp_norm=norm(layers, dim),
            gate=dense(dim, hidden),
            up=dense(dim, hidden),
            down=dense(hidden, dim),
            router=expert(dim, num_experts),
            expert_gate=expert(num_experts, dim, hidden),
            expert_up=expert(num_experts, dim, hidden),
            expert_down=expert(num_experts, hidden, dim),
            mlp_post_norm=post_norm(),
        ),
        final_norm=norm(dim),
        head=None if arch.is_tied else matrix(dim, vocab),
    )


def abstract(arch: Architecture) -> Params:
    """`Params` of `jax.ShapeDtypeStruct`: what to shard, to restore and to import, with no
    memory.
    """
    return jax.eval_shape(partial(init, arch=arch), jax.random.key(0))


def read_only(params: Params, compute_dtype: DTypeLike) -> Params:
    """A copy of a model that is never updated: in bfloat16, half the memory and the same log-probs.

    Matrices, biases and the embedding come in `compute_dtype`, which every product casts them to;
    the scales of norms in float32, in which norms compute. No array is shared with `params`.
    """

    def copied(path: Any, x: Array) -> Array:
        dtype = jnp.float32 if path[-1].name.endswith("norm") else compute_dtype
        return jnp.copy(x) if x.dtype == dtype else x.astype(dtype)

    return jax.tree.map_with_path(copied, params)


Stacked = TypeVar("Stacked")


def unstack(stacked: Stacked, dtype: DTypeLike) -> tuple[Stacked, ...]:
    """Takes a record whose arrays are stacked over layers apart into one record per layer.

    Matrices come in `dtype`, vectors (the norms' scales) in float32; low-rank terms are merged into
    their matrices, so that they cost nothing per token. Decoding reads every weight once per
    token; as slices of a stacked array inside a loop, XLA's CPU backend copies each before use (2.4
    to 3 times slower). Call it outside of `jax.jit`: one small program then serves all layers,
    where a trace would hold a slice per layer and array, and compile for seconds.
    """
    num_layers = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(layer_of(stacked, layer, dtype=jnp.dtype(dtype)) for layer in range(num_layers))


@partial(jax.jit, static_argnames="dtype")
def layer_of(stacked: Any, layer: Int32[Array, ""], *, dtype: np.dtype) -> Any:
    def at_layer(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)

    def take(x: Array | Adapted) -> Array:
        x = merged(jax.tree.map(at_layer, x)) if isinstance(x, Adapted) else at_layer(x)
        return x.astype(_decoding_dtype(x, dtype))

    return jax.tree.map(take, stacked, is_leaf=lambda x: isinstance(x, Adapted))


def ends(params: Params, dtype: DTypeLike) -> Params:
    """What stands before and after the layers, in the types of `unstack`; without the layers.

    Decoding takes this and unstacked layers, so it is the same program for a model that is trained,
    in float32, and for one that lies frozen in bfloat16 under an adapter.
    """
    to_cast, with_cast = take_ends(params, dtype)
    return with_cast(cast(to_cast, dtype=jnp.dtype(dtype)) if to_cast else [])


def take_ends(
    params: Params, dtype: DTypeLike
) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """The arrays of `ends` that need another type, and what makes the ends of them once they have
    it. The others stay as they are: a compiled program would copy them."""
    bare = replace(params, blocks=None)  # type: ignore[arg-type]
    arrays, structure = jax.tree.flatten(bare)
    places = [i for i, x in enumerate(arrays) if x.dtype != _decoding_dtype(x, dtype)]

    def with_cast(cast: list[Array]) -> Params:
        for i, x in zip(places, cast, strict=True):
            arrays[i] = x
        return structure.unflatten(arrays)

    return [arrays[i] for i in places], with_cast


@partial(jax.jit, static_argnames="dtype")
def cast(arrays: list[Array], *, dtype: np.dtype) -> list[Array]:
    """Each array in the type that decoding reads it in."""
    return [x.astype(_decoding_dtype(x, dtype)) for x in arrays]


def _decoding_dtype(x: Array, dtype: DTypeLike) -> np.dtype:
    return jnp.dtype(dtype if x.ndim > 1 else jnp.float32)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Scales the last axis to unit mean square, in float32; returns x's dtype.

        x / sqrt(mean(x^2) + eps) * scale

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def norm(x: Array, stored: Array, arch: Architecture) -> Array:
    """`rms_norm` by a scale as the family stores it."""
    return rms_norm(x, stored.astype(jnp.float32) + arch.norm_offset, arch.norm_eps)


def embed_scaled(x_BTD: Array, arch: Architecture) -> Array:
    """Embeddings as the stream begins with them. Gemma multiplies by sqrt(D), rounded to the
    compute dtype: in bfloat16, 25.25 for the 25.298 of a model of width 640.
    """
    if not arch.is_embed_scaled:
        return x_BTD
    return x_BTD * jnp.sqrt(jnp.float32(arch.model_dim)).astype(x_BTD.dtype)


Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, whatever the caller wants to keep: a cache, or None)."""


def block(
    x_BTD: Float[Array, "B T D"],
    weights: Block,
    *,
    rotary: Rotary,
    attend: Attend,
    arch: Architecture,
) -> tuple[Float[Array, "B T D"], Any]:
    """One layer, in x's dtype: attention and MLP, each behind an RMSNorm and added to the stream.

    Args:
      weights: one layer's, without the L axis.
      rotary: angles of the tokens in this layer.
      attend: the attention over turned queries and keys; only the caller knows what is visible.
    Returns: the stream, and what `attend` kept.
    """

    def head_vectors(weight: Array, bias: Array | None) -> Array:
        vectors = product(normed_BTD, weight)
        return vectors if bias is None else vectors + bias.astype(vectors.dtype)

    with jax.named_scope("attention"):
        normed_BTD = norm(x_BTD, weights.attn_norm, arch)
        q_BTNH = head_vectors(weights.q, weights.q_bias)
        k_BTKH = head_vectors(weights.k, weights.k_bias)
        v_BTKH = head_vectors(weights.v, weights.v_bias)
        if weights.q_norm is not None and weights.k_norm is not None:
            q_BTNH = norm(q_BTNH, weights.q_norm, arch)
            k_BTKH = norm(k_BTKH, weights.k_norm, arch)
        if arch.query_pre_attn_scalar != arch.head_dim:  # attention divides by sqrt(head_dim)
            q_BTNH = q_BTNH * (arch.head_dim / arch.query_pre_attn_scalar) ** 0.5
        attended_BTNH, kept = attend(rotate(q_BTNH, rotary), rotate(k_BTKH, rotary), v_BTKH)
        flat_BTX = attended_BTNH.reshape(*x_BTD.shape[:2], -1)
        added_BTD = product(flat_BTX, weights.o, in_axes=2)
        if weights.attn_post_norm is not None:
            added_BTD = norm(added_BTD, weights.attn_post_norm, arch)
        x_BTD = x_BTD + added_BTD
    with jax.named_scope("mlp"):
        normed_BTD = norm(x_BTD, weights.mlp_norm, arch)
        if arch.experts is not None:
            matrices = (weights.expert_gate, weights.expert_up, weights.expert_down)
            added_BTD = mix_experts(normed_BTD, weights.router, *matrices, arch=arch)
        else:
            gate_BTF = ACTIVATIONS[arch.activation](product(normed_BTD, weights.gate))
            added_BTD = product(gate_BTF * product(normed_BTD, weights.up), weights.down)
        if weights.mlp_post_norm is not None:
            added_BTD = norm(added_BTD, weights.mlp_post_norm, arch)
        return x_BTD + added_BTD, kept


def embedded(
    params: Params, token_BT: Int32[Array, "B T"], arch: Architecture, compute_dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """The stream before the first layer.

    In two steps, so that the table and its gradient stay where they are: asked for rows at once,
    XLA gathers the table, or builds the stream of all rows on every device.
    """
    x_BTD = constrain(params.embed[token_BT], "B T D", LOOKUP_RULES)
    return embed_scaled(constrain(x_BTD.astype(compute_dtype), "B T D"), arch)


_KEPT = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENDED),
    "block": jax.checkpoint_policies.nothing_saveable,
}


def hidden_states(
    params: Params,
    token_BT: Int32[Array, "B T"],
    position_BT: Int32[Array, "B T"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    *,
    arch: Architecture,
    compute_dtype: DTypeLike,
    remat: Literal["none", "products", "attention", "block"],
) -> Float[Array, "B T D"]:
    """Hidden states of packed rows after the final norm, in `compute_dtype`.

    What a token sees is described at `records.Batch`. The layers run in one `lax.scan`. Between
    forward and backward pass, "block" keeps only the stream between layers and recomputes the rest;
    "attention" keeps the output of attention too, "products" those of all products with weights.
    """
    tables = rotary_tables(position_BT, arch)

    def layer(x_BTD: Array, scanned: tuple[Block, Array | None]) -> tuple[Array, None]:
        weights, is_sliding = scanned

        def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array) -> tuple[Array, None]:
            window = window_of(position_BT, is_sliding, arch)
            return packed_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT, window), None

        rotary = tables.of_layer(is_sliding)
        return block(x_BTD, weights, rotary=rotary, attend=attend, arch=arch)

    if remat != "none":
        layer = jax.checkpoint(layer, prevent_cse=False, policy=_KEPT[remat])
    x_BTD = embedded(params, token_BT, arch, compute_dtype)
    x_BTD, _ = jax.lax.scan(layer, x_BTD, (params.blocks, is_sliding_by_layer(arch)))
    return norm(x_BTD, params.final_norm, arch)


def is_sliding_by_layer(arch: Architecture) -> Bool[Array, " L"] | None:
    """What a scan over layers takes along beside the weights; None where no layer has a window."""
    return None if arch.sliding is None else jnp.array(arch.sliding.is_sliding)


def window_of(
    position_BT: Int32[Array, "B T"], is_sliding: Bool[Array, ""] | None, arch: Architecture
) -> Window | None:
    """The window of one layer of such a scan: beyond all positions where it does not slide."""
    if arch.sliding is None or is_sliding is None:
        return None
    beyond = jnp.int32(arch.max_position)
    return Window(position_BT, jnp.where(is_sliding, arch.sliding.window, beyond))
