"""One token at a time for all samples of all prompts, in one compiled loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, PRNGKeyArray

from cipo_jax.mesh.sharding import ACTIVATION_RULES, DECODING_RULES, constrain, constrain_record
from cipo_jax.model import cache
from cipo_jax.model.attention import decode_attention
from cipo_jax.model.cache import CompletionCache, PromptCache
from cipo_jax.model.decoding import Ends
from cipo_jax.model.head import logits
from cipo_jax.model.presets import Architecture
from cipo_jax.model.rotary import rotary_tables
from cipo_jax.model.transformer import (
    Block,
    block,
    embed_scaled,
    norm,
)
from cipo_jax.records import PromptBatch, Rollouts
from cipo_jax.rollout.draw import draw, row_keys

_FEW_TOKENS = 256
"""A cache for at most so many new tokens is not grown in steps."""


@flax.struct.dataclass
class _Decoding:
    """The state between two steps.

    `step` tokens of every row have been drawn, and the caches hold all of them but the last. In a
    row that has ended, only the first `num_sampled` count.
    """

    step: Int32[jax.Array, ""]
    caches: tuple[CompletionCache, ...]
    token_BC: Int32[jax.Array, "B C"]
    logprob_BC: Float32[jax.Array, "B C"]
    num_sampled_B: Int32[jax.Array, " B"]
    is_finished_B: Bool[jax.Array, " B"]


@partial(jax.jit, static_argnames=("arch", "samples_per_prompt", "max_new_tokens", "eos_ids"))
def complete(
    ends: Ends,
    layers: tuple[Block, ...],
    prompts: PromptBatch,
    prompt_caches: tuple[PromptCache, ...],
    hidden_QD: Float[jax.Array, "Q D"],
    key: PRNGKeyArray,
    temperature: Float32[jax.Array, ""],
    *,
    arch: Architecture,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
) -> Rollouts:
    """The completions, as `sample` describes them.

    Over a mesh, rows are split over data and fsdp and heads over tensor, as everywhere; the weights
    are gathered once, before the loop (`sharding.DECODING_RULES`).

    Args:
      ends: embedding, final norm and head, cast by `decoding.cast`.
      layers: one block per layer, from `decoding.layer_of`.
      prompt_caches, hidden_QD: the results of `read_prompts` for `prompts`, in the compute dtype;
        one cache per layer.
    """
    num_prompts, prompt_length = prompts.token_QP.shape
    num_rows = num_prompts * samples_per_prompt
    dtype = hidden_QD.dtype
    ends = constrain_record(ends, DECODING_RULES)
    layers = tuple(constrain_record(weights, DECODING_RULES) for weights in layers)
    # A table: from positions in the loop, XLA computes cosines again at every use.
    tables = rotary_tables(jnp.arange(prompt_length + max_new_tokens), arch)
    slides = arch.sliding.is_sliding if arch.sliding else (False,) * arch.num_layers
    key_B = row_keys(key, prompts.key_id_Q, samples_per_prompt)
    prompt_length_B = jnp.repeat(prompts.length_Q, samples_per_prompt)
    is_prompt_QP = jnp.arange(prompt_length) < prompts.length_Q[:, None]

    def record(state: _Decoding, logits_BV: jax.Array) -> _Decoding:
        """Draws one more token per row from `logits_BV`; rows that have ended do not change."""
        # The split of V over tensor must end here, at the logits: the blocks that `draw` cuts V
        # into don't respect it, and XLA would gather the head instead, once per token.
        logits_BV = constrain(constrain(logits_BV, "B V"), "B V", {**ACTIVATION_RULES, "V": None})
        token_B, logprob_B = draw(key_B, state.step, logits_BV, temperature)
        is_open_B = ~state.is_finished_B
        at_step = partial(jax.lax.dynamic_update_index_in_dim, index=state.step, axis=1)
        return replace(
            state,
            step=state.step + 1,
            token_BC=at_step(state.token_BC, jnp.where(is_open_B, token_B, 0)),
            logprob_BC=at_step(state.logprob_BC, jnp.where(is_open_B, logprob_B, 0.0)),
            num_sampled_B=state.num_sampled_B + is_open_B,
            is_finished_B=state.is_finished_B | jnp.isin(token_B, jnp.array(eos_ids, jnp.int32)),
        )

    def advance(state: _Decoding) -> _Decoding:
        """Reads the last token of every row, and draws the next."""
        last = state.step - 1
        token_B = jax.lax.dynamic_index_in_dim(state.token_BC, last, axis=1, keepdims=False)
        position_B1 = (prompt_length_B + last)[:, None]
        full, sliding = jax.tree.map(lambda table: table[position_B1], tables)
        index_C = jnp.arange(state.caches[0].v_QKGCH.shape[3])
        sees_all = (is_prompt_QP, index_C <= last)
        sees_window = sees_all
        if arch.sliding:
            back_QP = (prompts.length_Q + last)[:, None] - jnp.arange(prompt_length)
            sees_window = (
                is_prompt_QP & (back_QP < arch.sliding.window),
                (index_C <= last) & (last - index_C < arch.sliding.window),
            )
        x_B1D = embed_scaled(constrain(ends.embed[token_B], "B D"), arch)[:, None, :]
        caches = []
        for weights, prompt, completion, is_sliding in zip(
            layers, prompt_caches, state.caches, slides, strict=True
        ):
            sees = sees_window if is_sliding else sees_all
            attend = partial(_attend, prompt, completion, sees, last)
            rotary = sliding if is_sliding else full
            x_B1D, longer = block(x_B1D, weights, rotary=rotary, attend=attend, arch=arch)
            caches.append(longer)
        hidden_BD = norm(x_B1D[:, 0], ends.final_norm, arch)
        return record(replace(state, caches=tuple(caches)), logits(ends, hidden_BD, arch=arch))

    no_room = cache.empty(num_prompts, samples_per_prompt, arch, dtype)
    state = _Decoding(
        step=jnp.int32(0),
        caches=(no_room,) * arch.num_layers,
        token_BC=jnp.zeros((num_rows, max_new_tokens), jnp.int32),
        logprob_BC=jnp.zeros((num_rows, max_new_tokens), jnp.float32),
        num_sampled_B=jnp.zeros(num_rows, jnp.int32),
        is_finished_B=prompt_length_B == 0,
    )
    logits_QV = logits(ends, hidden_QD, arch=arch)
    state = record(state, jnp.repeat(logits_QV, samples_per_prompt, axis=0))
    for span in spans(max_new_tokens):
        caches = (cache.grown(layer, span) for layer in state.caches)
        state = replace(
            state, caches=tuple(constrain_record(layer, ACTIVATION_RULES) for layer in caches)
        )
        state = jax.lax.while_loop(partial(_is_running, span=span), advance, state)

    by_prompt = (num_prompts, samples_per_prompt)
    is_sampled_BC = jnp.arange(max_new_tokens) < state.num_sampled_B[:, None]
    return Rollouts(
        token_QGC=state.token_BC.reshape(*by_prompt, -1),
        logprob_QGC=state.logprob_BC.reshape(*by_prompt, -1),
        is_sampled_QGC=is_sampled_BC.reshape(*by_prompt, -1),
        is_finished_QG=state.is_finished_B.reshape(by_prompt),
    )


def _attend(
    prompt: PromptCache,
    completion: CompletionCache,
    sees: tuple[jax.Array, jax.Array],
    step: jax.Array,
    q_B1NH: jax.Array,
    k_B1KH: jax.Array,
    v_B1KH: jax.Array,
) -> tuple[jax.Array, CompletionCache]:
    completion = cache.written(completion, k_B1KH[:, 0], v_B1KH[:, 0], step)
    out_BNH = decode_attention(q_B1NH[:, 0], prompt, completion, *sees)
    return out_BNH[:, None], completion


def _is_running(state: _Decoding, *, span: int) -> jax.Array:
    return (state.step < span) & ~jnp.all(state.is_finished_B)


def spans(max_new_tokens: int) -> list[int]:
    """The lengths that the cache has in turn: the last is `max_new_tokens`, the one before it half
    of that, and each earlier one a quarter of the next.

    Attention reads the whole cache, used or not. Over 4096 tokens it reads 1.4 times as much as is
    used, in four loops to compile; doubling all the way would be 1.33 times in six loops, and one
    length 2 times in one. The first token needs no loop.
    """
    if max_new_tokens == 1:
        return []
    spans = [max_new_tokens]
    while spans[0] > _FEW_TOKENS:
        spans.insert(0, -(-spans[0] // (2 if len(spans) == 1 else 4)))
    return spans
