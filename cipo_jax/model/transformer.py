"""One decoder for all families: parameters as records, the forward pass as functions.

A family is a set of constants (`presets.Architecture`). The training path scans over stacked
layers; the decoding path (`rollout/decode.py`) walks over single ones. Both call the same `block`;
they differ in the attention that they pass to it. The head is in `head.py`, layers of several
experts are in `experts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from cipo_jax.mesh.sharding import LOOKUP_RULES, constrain
from cipo_jax.model.attention import packed_attention
from cipo_jax.model.blockwise import ATTENDED, Window
from cipo_jax.model.experts import ACTIVATIONS, mix_experts
from cipo_jax.model.letters import filled, shape_of
from cipo_jax.model.linear import Adapted, Weight, product
from cipo_jax.model.presets import Architecture
from cipo_jax.model.rotary import Rotary, rotary_tables, rotate
from cipo_jax.records import Array

INIT_STD = 0.02
"""Standard deviation of freshly drawn matrices, as in the public models' own configs."""


@flax.struct.dataclass
class Block:
    """The layers of the decoder, each field stacked over them. The letters are the logical axes
    that `sharding.py` reads. Fields that the architecture lacks are None. One layer is the same
    record without L.
    """

    attn_norm: Float[jax.Array, "L D"]
    q: Float[jax.Array, "L D N H"] | Adapted
    k: Float[jax.Array, "L D K H"] | Adapted
    v: Float[jax.Array, "L D K H"] | Adapted
    o: Float[jax.Array, "L N H D"] | Adapted
    q_bias: Float[jax.Array, "L N H"] | None
    k_bias: Float[jax.Array, "L K H"] | None
    v_bias: Float[jax.Array, "L K H"] | None
    q_norm: Float[jax.Array, "L H"] | None
    k_norm: Float[jax.Array, "L H"] | None
    attn_post_norm: Float[jax.Array, "L D"] | None
    mlp_norm: Float[jax.Array, "L D"]
    gate: Float[jax.Array, "L D F"] | Adapted | None
    up: Float[jax.Array, "L D F"] | Adapted | None
    down: Float[jax.Array, "L F D"] | Adapted | None
    router: Float[jax.Array, "L D E"] | None
    expert_gate: Float[jax.Array, "L E D F"] | None
    expert_up: Float[jax.Array, "L E D F"] | None
    expert_down: Float[jax.Array, "L E F D"] | None
    mlp_post_norm: Float[jax.Array, "L D"] | None


@flax.struct.dataclass
class Params:
    """The whole decoder. `head` is None where the embedding is also the head."""

    embed: Float[jax.Array, "V D"]
    blocks: Block
    final_norm: Float[jax.Array, " D"]
    head: Float[jax.Array, "D V"] | None


def init(key: PRNGKeyArray, arch: Architecture) -> Params:
    """Random float32 parameters: matrices from N(0, 0.02^2), norms of scale one, biases zero.

    Every matrix that the architecture has takes the next key, in the order of the fields.
    """
    keys = iter(jax.random.split(key, 10))

    def drawn(name: str, letters: str) -> jax.Array | None:
        if not _has(arch, name):
            return None
        shape = shape_of(letters, arch.sizes)
        if name.endswith("bias"):
            return jnp.zeros(shape, jnp.float32)
        if name.endswith("norm"):
            return jnp.full(shape, 1 - arch.norm_offset, jnp.float32)
        return INIT_STD * jax.random.normal(next(keys), shape, jnp.float32)

    return filled(Params, drawn)


def _has(arch: Architecture, name: str) -> bool:
    """Whether the architecture has a field of `Params` or `Block`."""
    match name:
        case "q_bias" | "k_bias" | "v_bias":
            return arch.has_qkv_bias
        case "q_norm" | "k_norm":
            return arch.has_qk_norm
        case "attn_post_norm" | "mlp_post_norm":
            return arch.has_post_norms
        case "gate" | "up" | "down":
            return arch.experts is None
        case "router" | "expert_gate" | "expert_up" | "expert_down":
            return arch.experts is not None
        case "head":
            return not arch.is_tied
    return True


Field = TypeVar("Field")


def present(*fields: Field | None) -> tuple[Field, ...]:
    """Fields that the architecture has.

    Raises: ValueError if the record lacks one.
    """
    found = tuple(field for field in fields if field is not None)
    if len(found) < len(fields):
        raise ValueError(
            "The parameters lack a field that the constants of the model ask for: take both from "
            "the same model."
        )
    return found


def abstract(arch: Architecture) -> Params:
    """`Params` of `jax.ShapeDtypeStruct`, to be sharded, restored or imported; without memory."""
    params: Params = jax.eval_shape(partial(init, arch=arch), jax.random.key(0))
    return params


def read_only(params: Params, compute_dtype: DTypeLike) -> Params:
    """A copy of a model that is never updated: in bfloat16, half the memory and the same log-probs.

    Matrices, biases and the embedding get `compute_dtype`, which every product casts them to; the
    scales of norms stay in float32, in which norms compute. No array is shared with `params`.
    """

    def copied(path: Sequence[jax.tree_util.GetAttrKey], x: jax.Array) -> jax.Array:
        dtype = jnp.float32 if path[-1].name.endswith("norm") else compute_dtype
        return jnp.copy(x) if x.dtype == dtype else x.astype(dtype)

    copy: Params = jax.tree.map_with_path(copied, params)
    return copy


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Scales the last axis to unit mean square, in float32; returns x's dtype.

        x / sqrt(mean(x^2) + eps) * scale

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def norm(x: jax.Array, stored: jax.Array, arch: Architecture) -> jax.Array:
    """`rms_norm` by a scale as the family stores it."""
    return rms_norm(x, stored.astype(jnp.float32) + arch.norm_offset, arch.norm_eps)


def embed_scaled(x_BTD: jax.Array, arch: Architecture) -> jax.Array:
    """Embeddings as the stream begins with them. Gemma multiplies by sqrt(D), rounded to the
    compute dtype: in bfloat16, 25.25 for the 25.298 of a model of width 640.
    """
    if not arch.is_embed_scaled:
        return x_BTD
    return x_BTD * jnp.sqrt(jnp.float32(arch.model_dim)).astype(x_BTD.dtype)


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, something the caller keeps: a cache, or None)."""


def block(
    x_BTD: Float[jax.Array, "B T D"],
    weights: Block,
    *,
    rotary: Rotary,
    attend: Attend,
    arch: Architecture,
) -> tuple[Float[jax.Array, "B T D"], Any]:
    """One layer, in x's dtype: attention and MLP, each behind an RMSNorm and added to the stream.

    Args:
      weights: one layer's, without the L axis.
      rotary: angles of the tokens in this layer.
      attend: the attention over turned queries and keys; only the caller knows what is visible.
    Returns: the stream, and what `attend` kept.
    """

    def head_vectors(weight: Weight, bias: jax.Array | None) -> jax.Array:
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
            matrices = present(
                weights.router, weights.expert_gate, weights.expert_up, weights.expert_down
            )
            added_BTD = mix_experts(
                normed_BTD, *matrices, experts=arch.experts, activation=arch.activation
            )
        else:
            mlp: tuple[Weight, ...] = present(weights.gate, weights.up, weights.down)
            gate, up, down = mlp
            gate_BTF = ACTIVATIONS[arch.activation](product(normed_BTD, gate))
            added_BTD = product(gate_BTF * product(normed_BTD, up), down)
        if weights.mlp_post_norm is not None:
            added_BTD = norm(added_BTD, weights.mlp_post_norm, arch)
        return x_BTD + added_BTD, kept


def embedded(
    params: Params, token_BT: Int32[Array, "B T"], arch: Architecture, compute_dtype: DTypeLike
) -> Float[jax.Array, "B T D"]:
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
) -> Float[jax.Array, "B T D"]:
    """Hidden states of packed rows after the final norm, in `compute_dtype`.

    `records.Batch` says which tokens a token sees. The layers run in one `lax.scan`. Between
    forward and backward pass, "block" keeps only the stream between layers and recomputes the rest;
    "attention" keeps the output of attention too, "products" those of all products with weights.
    """
    tables = rotary_tables(position_BT, arch)

    def layer(x_BTD: jax.Array, scanned: tuple[Block, jax.Array | None]) -> tuple[jax.Array, None]:
        weights, is_sliding = scanned

        def attend(
            q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
        ) -> tuple[jax.Array, None]:
            window = window_of(position_BT, is_sliding, arch)
            return packed_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT, window), None

        rotary = tables.of_layer(is_sliding)
        return block(x_BTD, weights, rotary=rotary, attend=attend, arch=arch)

    if remat != "none":
        layer = jax.checkpoint(layer, prevent_cse=False, policy=_KEPT[remat])
    x_BTD = embedded(params, token_BT, arch, compute_dtype)
    x_BTD, _ = jax.lax.scan(layer, x_BTD, (params.blocks, is_sliding_by_layer(arch)))
    return norm(x_BTD, params.final_norm, arch)


def is_sliding_by_layer(arch: Architecture) -> Bool[jax.Array, " L"] | None:
    """A flag per layer, for a scan over the weights; None where no layer has a window."""
    return None if arch.sliding is None else jnp.array(arch.sliding.is_sliding)


def window_of(
    position_BT: Int32[Array, "B T"], is_sliding: Bool[jax.Array, ""] | None, arch: Architecture
) -> Window | None:
    """The window of one layer of a scan; wider than all positions where it does not slide."""
    if arch.sliding is None or is_sliding is None:
        return None
    beyond = jnp.int32(arch.max_position)
    return Window(position_BT, jnp.where(is_sliding, arch.sliding.window, beyond))
