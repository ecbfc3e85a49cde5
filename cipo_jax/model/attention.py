"""Attention, and the only place that chooses how it is computed.

Queries, keys and values come in with their positions already turned in; a mask rule and a softmax
are all that is decided here.

    packed rows on a TPU    the splash kernel of jax (`splash.py`)
    packed rows on a GPU    cuDNN, through jax.nn.dot_product_attention
    everywhere else         plain XLA (`blockwise.py`), which is the reference: on CPUs, in float32
                            on GPUs, with a window that differs between layers; and in decoding
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int32

from cipo_jax.mesh.sharding import ACTIVATION_RULES, target_platform
from cipo_jax.model.blockwise import ATTENDED, MASKED, Window, blockwise_attention
from cipo_jax.model.cache import CompletionCache, PromptCache
from cipo_jax.model.splash import splash_attention
from cipo_jax.records import Array


def packed_attention(
    q_BTNH: Float[jax.Array, "B T N H"],
    k_BTKH: Float[jax.Array, "B T K H"],
    v_BTKH: Float[jax.Array, "B T K H"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    window: Window | None = None,
) -> Float[jax.Array, "B T N H"]:
    """Causal attention inside the segments of packed rows, by what suits the devices of the mesh.

        token t sees token s  iff  s <= t and (segment[s] == segment[t] or segment[s] == prefix[t])
                                   and, with a window, position[t] - position[s] < size

    Padding (segment 0) sees padding: its output is never read, and stays finite. Softmax in
    float32.

    Source: grouped heads from Ainslie et al. 2023, arXiv 2305.13245.
    """
    arrays = (q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT)
    platform = target_platform()
    if window is None and platform == "tpu":
        return _over_mesh(splash_attention, *arrays)
    if window is None and platform in ("gpu", "cuda") and q_BTNH.dtype != jnp.float32:
        out_BTNH: jax.Array = checkpoint_name(_over_mesh(fused_attention, *arrays), ATTENDED)
        return out_BTNH
    return blockwise_attention(*arrays, window)


def _over_mesh(
    kernel: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BT: Array,
    prefix_BT: Array,
) -> jax.Array:
    """A kernel on each device's own rows and heads; XLA can't split kernels by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT)
    if k_BTKH.shape[2] % mesh.shape["tensor"]:
        # Key/value heads that tensor does not divide are on all of its devices, but query heads
        # are split, and each device must have the ones that belong to its own.
        share = q_BTNH.shape[2] // k_BTKH.shape[2]
        k_BTKH, v_BTKH = (jnp.repeat(x, share, axis=2) for x in (k_BTKH, v_BTKH))
    heads = PartitionSpec(ACTIVATION_RULES["B"], None, ACTIVATION_RULES["N"], None)
    row = PartitionSpec(ACTIVATION_RULES["B"], None)
    out_BTNH: jax.Array = jax.shard_map(
        kernel, in_specs=(heads,) * 3 + (row,) * 2, out_specs=heads, check_vma=False
    )(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT)
    return out_BTNH


def fused_attention(
    q_BTNH: Float[jax.Array, "B T N H"],
    k_BTKH: Float[jax.Array, "B T K H"],
    v_BTKH: Float[jax.Array, "B T K H"],
    segment_BT: Int32[Array, "B T"],
    prefix_BT: Int32[Array, "B T"],
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[jax.Array, "B T N H"]:
    """`packed_attention` by cuDNN: no scores in memory, but a mask of T^2 entries per row.

    Args:
      implementation: "xla" is the same call with no GPU.
    """
    sees_BTS = (segment_BT[:, None, :] == segment_BT[:, :, None]) | (
        segment_BT[:, None, :] == prefix_BT[:, :, None]
    )
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=sees_BTS[:, None],
        is_causal=True,
        implementation=implementation,
    )


def decode_attention(
    q_BNH: Float[jax.Array, "B N H"],
    prompt: PromptCache,
    completion: CompletionCache,
    sees_prompt_QP: Bool[jax.Array, "Q P"],
    sees_completion_C: Bool[jax.Array, " C"],
) -> Float[jax.Array, "B N H"]:
    """Attention of one new token per sample over its prompt and over its own completion.

    The samples of a prompt read one copy of the prompt's keys and values: their queries become the
    rows of one product. Both parts share one softmax, in float32.

    Args:
      q_BNH: B = Q * G rows, the samples of a prompt next to each other.
      sees_prompt_QP: False at the padding of a prompt, and before a window.
      sees_completion_C: True at the new token and at those before it, as far as a window reaches.
    """
    num_rows, num_heads, head_dim = q_BNH.shape
    num_prompts, num_kv_heads, num_samples, _, _ = completion.v_QKGCH.shape
    group = (num_prompts, num_samples, num_kv_heads, num_heads // num_kv_heads, head_dim)
    # W query heads share a key/value head.
    q_QKGWH = q_BNH.reshape(group).transpose(0, 2, 1, 3, 4)

    def scores(spec: str, keys: jax.Array, is_visible: jax.Array) -> jax.Array:
        score = jnp.einsum(spec, q_QKGWH, keys, preferred_element_type=jnp.float32)
        return jnp.where(is_visible, score * head_dim**-0.5, MASKED)

    prompt_length = sees_prompt_QP.shape[1]
    score_QKGWS = jnp.concatenate(
        [
            scores("QKGWH,QKHP->QKGWP", prompt.k_QKHP, sees_prompt_QP[:, None, None, None, :]),
            scores("QKGWH,QKGHC->QKGWC", completion.k_QKGHC, sees_completion_C),
        ],
        axis=-1,
    )
    weight_QKGWS = jax.nn.softmax(score_QKGWS, axis=-1).astype(q_BNH.dtype)
    out_QKGWH = jnp.einsum("QKGWP,QKPH->QKGWH", weight_QKGWS[..., :prompt_length], prompt.v_QKPH)
    out_QKGWH += jnp.einsum(
        "QKGWC,QKGCH->QKGWH", weight_QKGWS[..., prompt_length:], completion.v_QKGCH
    )
    return out_QKGWH.transpose(0, 2, 1, 3, 4).reshape(num_rows, num_heads, head_dim)
