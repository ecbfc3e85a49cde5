"""Keys and values of one layer while decoding: those of the prompts and those of the samples.

Heads come before time, and the channels of keys too, so that `decode_attention` reads both in the
order of memory. On a CPU, keys in the order of the values take twice as long.
"""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from cipo_jax.model.presets import Architecture


@flax.struct.dataclass
class PromptCache:
    """Keys and values of Q prompts: written by the prefill, shared by the samples of a prompt."""

    k_QKHP: Float[jax.Array, "Q K H P"]
    v_QKPH: Float[jax.Array, "Q K P H"]


@flax.struct.dataclass
class CompletionCache:
    """Keys and values of Q * G completions so far. All are at the same step: one slice per step."""

    k_QKGHC: Float[jax.Array, "Q K G H C"]
    v_QKGCH: Float[jax.Array, "Q K G C H"]


def empty(
    num_prompts: int, num_samples: int, arch: Architecture, dtype: DTypeLike
) -> CompletionCache:
    """A cache with no room yet; `grown` gives it some."""
    rows = (num_prompts, arch.num_kv_heads, num_samples)
    return CompletionCache(
        jnp.zeros((*rows, arch.head_dim, 0), dtype), jnp.zeros((*rows, 0, arch.head_dim), dtype)
    )


def grown(cache: CompletionCache, length: int) -> CompletionCache:
    """The same cache with room for `length` tokens."""
    missing = (0, length - cache.v_QKGCH.shape[3])
    return CompletionCache(
        jnp.pad(cache.k_QKGHC, [(0, 0)] * 4 + [missing]),
        jnp.pad(cache.v_QKGCH, [(0, 0)] * 3 + [missing, (0, 0)]),
    )


def written(
    cache: CompletionCache,
    k_BKH: Float[jax.Array, "B K H"],
    v_BKH: Float[jax.Array, "B K H"],
    step: Int32[jax.Array, ""],
) -> CompletionCache:
    """The cache with the keys and values of one more token per sample, at index `step`."""
    num_prompts, _, num_samples, _, _ = cache.v_QKGCH.shape

    def by_prompt(new_BKH: jax.Array) -> jax.Array:
        return new_BKH.reshape(num_prompts, num_samples, *new_BKH.shape[1:]).swapaxes(1, 2)

    at_step = partial(jax.lax.dynamic_update_index_in_dim, index=step)
    return CompletionCache(
        at_step(cache.k_QKGHC, by_prompt(k_BKH), axis=4),
        at_step(cache.v_QKGCH, by_prompt(v_BKH), axis=3),
    )
