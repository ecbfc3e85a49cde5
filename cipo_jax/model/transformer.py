"""One decoder for Llama, Qwen2.5 and Qwen3: parameters as records, the forward pass as functions.

The training path scans over stacked layers; the decoding path (`sampler/`) walks over `unstack`ed
ones. Both call the same `block`; they differ in the attention they pass to it. The head is in
`logprobs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int32, PRNGKeyArray

from cipo_jax.model.attention import packed_attention
from cipo_jax.model.linear import Adapted, merged, product
from cipo_jax.model.presets import Architecture
from cipo_jax.sharding import LOOKUP_RULES, constrain

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
    mlp_norm: Float[Array, "L D"]
    gate: Float[Array, "L D F"]
    up: Float[Array, "L D F"]
    down: Float[Array, "L F D"]


@flax.struct.dataclass
class Params:
    """The whole decoder. `head` is None where the embedding is also the head."""

    embed: Float[Array, "V D"]
    blocks: Block
    final_norm: Float[Array, "D"]
    head: Float[Array, "D V"] | None


def init(key: PRNGKeyArray, arch: Architecture) -> Params:
    """Random float32 parameters: matrices from N(0, 0.02^2), norms one, biases zero."""
    layers, vocab, dim = arch.num_layers, arch.vocab_size, arch.model_dim
    heads, kv_heads, width = arch.num_heads, arch.num_kv_heads, arch.head_dim
    keys = iter(jax.random.split(key, 9))

    def matrix(*shape: int) -> Array:
        return INIT_STD * jax.random.normal(next(keys), shape, jnp.float32)

    def bias(*shape: int) -> Array | None:
        return jnp.zeros(shape) if arch.has_qkv_bias else None

    def head_norm() -> Array | None:
        return jnp.ones((layers, width)) if arch.has_qk_norm else None

    return Params(
        embed=matrix(vocab, dim),
        blocks=Block(
            attn_norm=jnp.ones((layers, dim)),
            q=matrix(layers, dim, heads, width),
            k=matrix(layers, dim, kv_heads, width),
            v=matrix(layers, dim, kv_heads, width),
            o=matrix(layers, heads, width, dim),
            q_bias=bias(layers, heads, width),
            k_bias=bias(layers, kv_heads, width),
            v_bias=bias(layers, kv_heads, width),
            q_norm=head_norm(),
            k_norm=head_norm(),
            mlp_norm=jnp.ones((layers, dim)),
            gate=matrix(layers, dim, arch.mlp_dim),
            up=matrix(layers, dim, arch.mlp_dim),
            down=matrix(layers, arch.mlp_dim, dim),
        ),
        final_norm=jnp.ones(dim),
        head=None if arch.is_tied else matrix(dim, vocab),
    )


def abstract(arch: Architecture) -> Params:
    """`Params` of `jax.ShapeDtypeStruct`: what to shard, to restore and to import, with no
    memory.
    """
    return jax.eval_shape(partial(init, arch=arch), jax.random.key(0))


Stacked = TypeVar("Stacked")


def unstack(stacked: Stacked, dtype: DTypeLike) -> tuple[Stacked, ...]:
    """Takes a record whose arrays are stacked over layers apart into one record per layer.

    Matrices come in `dtype`, vectors (the norms' scales) as they are; low-rank terms are merged
    into their matrices, so that they cost nothing per token. Decoding reads every weight once per
    token; as slices of a stacked array inside a loop, XLA's CPU backend copies each before use (2.4
    to 3 times slower). Call it outside of `jax.jit`: one small program then serves all layers,
    where a trace would hold a slice per layer and array, and compile for seconds.
    """
    num_layers = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(_layer(stacked, layer, dtype=jnp.dtype(dtype)) for layer in range(num_layers))


@partial(jax.jit, static_argnames="dtype")
def _layer(stacked: Any, layer: Int32[Array, ""], *, dtype: np.dtype) -> Any:
    def at_layer(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)

    def take(x: Array | Adapted) -> Array:
        x = merged(jax.tree.map(at_layer, x)) if isinstance(x, Adapted) else at_layer(x)
        return x.astype(dtype) if x.ndim > 1 else x

    return jax.tree.map(take, stacked, is_leaf=lambda x: isinstance(x, Adapted))


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Scales the last axis to unit mean square, in float32; returns x's dtype.

        x / sqrt(mean(x^2) + eps) * scale

    Source: Zhang & Sennrich 2019, arXiv 1910.07467.
    """
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(position: Int32[Array, "..."], arch: Architecture) -> tuple[Array, Array]:
    """Cosine and sine of position * frequency, float32 [..., H/2].

        frequency[i] = theta^(-2i/H), i = 0 .. H/2 - 1

    With Llama-3 scaling a frequency whose wavelength exceeds original_max_position /
    low_freq_factor is divided by `factor`, one below original_max_position / high_freq_factor is
    kept, and the blend between is linear in the number of turns within the original context.

    Source: Su et al. 2021, arXiv 2104.09864; Llama 3, arXiv 2407.21783.
    """
    exponent = jnp.arange(0, arch.head_dim, 2, dtype=jnp.float32) / arch.head_dim
    frequency = arch.rope_theta**-exponent
    scaling = arch.rope_scaling
    if scaling is not None:
        turns = scaling.original_max_position * frequency / (2 * jnp.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: Array, rotary: tuple[Array, Array]) -> Array:
    """Turns channel i with channel i + H/2 by the angles of `rotary`, each [B, T, H/2].

    Half-split pairs are the convention of the public checkpoints; GGUF files pair neighbours.
    """
    cos, sin = (angle[:, :, None, :] for angle in rotary)
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, whatever the caller wants to keep: a cache, or None)."""


def block(
    x_BTD: Float[Array, "B T D"],
    weights: Block,
    *,
    rotary: tuple[Array, Array],
    attend: Attend,
    arch: Architecture,
) -> tuple[Float[Array, "B T D"], Any]:
    """One layer, in x's dtype: attention and MLP, each behind an RMSNorm and added to the stream.

    Args:
      weights: one layer's, without the L axis.
      rotary: `rotary_angles` of the tokens.
      attend: the attention over turned queries and keys; only the caller knows what is visible.
    Returns: the stream, and what `attend` kept.
    """

    def head_vectors(weight: Array, bias: Array | None) -> Array:
        vectors = product(normed_BTD, weight)
        return vectors if bias is None else vectors + bias.astype(vectors.dtype)

    with jax.named_scope("attention"):
        normed_BTD = rms_norm(x_BTD, weights.attn_norm, arch.norm_eps)
        q_BTNH = head_vectors(weights.q, weights.q_bias)
        k_BTKH = head_vectors(weights.k, weights.k_bias)
        v_BTKH = head_vectors(weights.v, weights.v_bias)
        if weights.q_norm is not None and weights.k_norm is not None:
            q_BTNH = rms_norm(q_BTNH, weights.q_norm, arch.norm_eps)
            k_BTKH = rms_norm(k_BTKH, weights.k_norm, arch.norm_eps)
        attended_BTNH, kept = attend(rotate(q_BTNH, rotary), rotate(k_BTKH, rotary), v_BTKH)
        flat_BTX = attended_BTNH.reshape(*x_BTD.shape[:2], -1)
        x_BTD = x_BTD + product(flat_BTX, weights.o, in_axes=2)
    with jax.named_scope("mlp"):
        normed_BTD = rms_norm(x_BTD, weights.mlp_norm, arch.norm_eps)
        gate_BTF = jax.nn.silu(product(normed_BTD, weights.gate))
        hidden_BTF = gate_BTF * product(normed_BTD, weights.up)
        return x_BTD + product(hidden_BTF, weights.down), kept


def embedded(
    params: Params, token_BT: Int32[Array, "B T"], compute_dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """The stream before the first layer.

    In two steps, so that the table and its gradient stay where they are: asked for rows at once,
    XLA gathers the table, or builds the stream of all rows on every device.
    """
    x_BTD = constrain(params.embed[token_BT], "B T D", LOOKUP_RULES)
    return constrain(x_BTD.astype(compute_dtype), "B T D")


def hidden_states(
    params: Params,
    token_BT: Int32[Array, "B T"],
    position_BT: Int32[Array, "B T"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    *,
    arch: Architecture,
    compute_dtype: DTypeLike,
    remat: Literal["none", "block"],
) -> Float[Array, "B T D"]:
    """Hidden states of packed rows after the final norm, in `compute_dtype`.

    What a token sees is described at `records.Batch`. The layers run in one `lax.scan`; with remat
    "block" the backward pass keeps only the stream between layers and recomputes the rest.
    """
    rotary = rotary_angles(position_BT, arch)

    def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array) -> tuple[Array, None]:
        return packed_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT), None

    def layer(x_BTD: Array, weights: Block) -> tuple[Array, None]:
        return block(x_BTD, weights, rotary=rotary, attend=attend, arch=arch)

    if remat == "block":
        layer = jax.checkpoint(layer, prevent_cse=False)
    x_BTD = embedded(params, token_BT, compute_dtype)
    x_BTD, _ = jax.lax.scan(layer, x_BTD, params.blocks)
    return rms_norm(x_BTD, params.final_norm, arch.norm_eps)
