"""Rollouts: prompts in, completions with the log-probs of their tokens out.

Token ids only: no text, no reward, no stream. A call runs `read_prompts`
once, `unstack` and `ends` to take the model apart, and `complete`, which draws one token after the
other.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from cipo_jax.mesh.sharding import ACTIVATION_RULES, PARAM_RULES, abstract_on
from cipo_jax.model.cache import PromptCache
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, ends, unstack
from cipo_jax.records import PromptBatch, Rollouts
from cipo_jax.rollout.decode import complete
from cipo_jax.rollout.prefill import read_prompts

__all__ = ["lowered", "sample"]


def sample(
    params: Params,
    prompts: PromptBatch,
    key: PRNGKeyArray,
    temperature: Array | float,
    *,
    arch: Architecture,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    compute_dtype: DTypeLike,
) -> Rollouts:
    """Draws `samples_per_prompt` completions of each prompt from the model's full distribution.

    A completion ends with the first token of `eos_ids`, which is drawn and recorded like any other,
    or after `max_new_tokens`; decoding stops when all have ended. Each prompt is read once, and its
    keys and values are shared by its samples. The random numbers of a token come from `key`, its
    prompt's `key_id`, the sample's index and the token's, so results do not depend on the order or
    the padding of the batch.

    Rows of `prompts` with length 0 fill up a batch: they are finished from the start, have no
    tokens, and keep nobody waiting.

    The same shapes (Q, P, samples, new tokens) reuse the same compiled programs, whatever the
    weights, prompts, key and temperature.

    Args:
      temperature: at 0 the likeliest token is taken, and log-probs are at temperature 1.
      compute_dtype: of the matrix products; logits, softmax and log-probs are float32.
    Raises: ValueError for a prompt or completion length that the architecture has no positions for,
      and for end-of-sequence ids outside the vocabulary.
    """
    _check(arch, prompts.token_QP.shape[1], samples_per_prompt, max_new_tokens, eos_ids)
    dtype = jnp.dtype(compute_dtype)
    hidden_QD, stacked = read_prompts(params, prompts, arch=arch, compute_dtype=dtype)
    prompt_caches = unstack(stacked, dtype)
    # Or it would lie in memory a second time for as long as tokens are drawn.
    del stacked
    return complete(
        ends(params, dtype),
        unstack(params.blocks, dtype),
        prompts,
        prompt_caches,
        hidden_QD,
        key,
        jnp.asarray(temperature, jnp.float32),
        arch=arch,
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
    )


def lowered(
    params: Params,
    mesh: Mesh,
    *,
    num_prompts: int,
    prompt_tokens: int,
    samples_per_prompt: int,
    max_new_tokens: int,
    arch: Architecture,
    eos_ids: tuple[int, ...],
    compute_dtype: DTypeLike,
) -> dict[str, jax.stages.Lowered]:
    """The two large programs of `sample` for these shapes, `prefill` and `decode`, to be compiled
    for devices that need not be there.

    Args:
      params: `jax.ShapeDtypeStruct`s with shardings of `mesh`.
      num_prompts: a multiple of what the mesh splits rows into.
    """
    dtype = jnp.dtype(compute_dtype)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((arch.num_layers, *x.shape), x.dtype)

    def one_layer(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

    layers = jax.eval_shape(partial(unstack, dtype=dtype), params.blocks)
    blocks = abstract_on(jax.tree.map(stacked, layers[0]), mesh, PARAM_RULES)
    prompts = PromptBatch(ints(num_prompts, prompt_tokens), ints(num_prompts), ints(num_prompts))
    head = (num_prompts, arch.num_kv_heads)
    cache = PromptCache(
        jax.ShapeDtypeStruct((*head, arch.head_dim, prompt_tokens), dtype),
        jax.ShapeDtypeStruct((*head, prompt_tokens, arch.head_dim), dtype),
    )
    prompts = abstract_on(prompts, mesh, ACTIVATION_RULES)
    cache = abstract_on(cache, mesh, ACTIVATION_RULES)
    hidden_QD = jax.ShapeDtypeStruct(
        (num_prompts, arch.model_dim),
        dtype,
        sharding=NamedSharding(mesh, PartitionSpec(ACTIVATION_RULES["Q"])),
    )
    with jax.set_mesh(mesh):
        return {
            "prefill": read_prompts.lower(params, prompts, arch=arch, compute_dtype=dtype),
            "decode": complete.lower(
                abstract_on(jax.eval_shape(partial(ends, dtype=dtype), params), mesh, PARAM_RULES),
                (jax.tree.map(one_layer, blocks),) * arch.num_layers,
                prompts,
                (cache,) * arch.num_layers,
                hidden_QD,
                jax.eval_shape(jax.random.key, 0),
                jax.ShapeDtypeStruct((), jnp.float32),
                arch=arch,
                samples_per_prompt=samples_per_prompt,
                max_new_tokens=max_new_tokens,
                eos_ids=eos_ids,
            ),
        }


def _check(
    arch: Architecture,
    prompt_length: int,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
) -> None:
    if min(prompt_length, samples_per_prompt, max_new_tokens) < 1:
        raise ValueError(
            f"prompt length {prompt_length}, samples_per_prompt {samples_per_prompt} and "
            f"max_new_tokens {max_new_tokens} must each be at least 1."
        )
    if prompt_length + max_new_tokens > arch.max_position:
        raise ValueError(
            f"A prompt of {prompt_length} tokens and {max_new_tokens} new ones need positions "
            f"beyond the model's {arch.max_position}: lower prompts.max_prompt_tokens, "
            "prompts.max_correction_prompt_tokens or sampling.max_new_tokens."
        )
    outside = [token for token in eos_ids if not 0 <= token < arch.vocab_size]
    if outside:
        raise ValueError(
            f"eos_ids {outside} are outside the vocabulary of {arch.vocab_size}: the tokenizer "
            "does not belong to this model."
        )
