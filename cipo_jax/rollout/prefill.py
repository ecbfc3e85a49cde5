"""The prompts, read once: their keys and values, and the hidden state after the last token."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cipo_jax.mesh.sharding import ACTIVATION_RULES, constrain, constrain_record
from cipo_jax.model.attention import packed_attention
from cipo_jax.model.cache import PromptCache
from cipo_jax.model.presets import Architecture
from cipo_jax.model.rotary import rotary_tables
from cipo_jax.model.transformer import (
    Block,
    Params,
    block,
    embedded,
    is_sliding_by_layer,
    norm,
    window_of,
)
from cipo_jax.records import PromptBatch


@partial(jax.jit, static_argnames=("arch", "compute_dtype"))
def read_prompts(
    params: Params, prompts: PromptBatch, *, arch: Architecture, compute_dtype: np.dtype
) -> tuple[Float[jax.Array, "Q D"], PromptCache]:
    """Runs right-padded prompts through the decoder.

    Returns: the hidden state at each prompt's last token, after the final norm, and the caches
      stacked over layers. No logits: only those of the last token are needed.
    """
    num_prompts, prompt_length = prompts.token_QP.shape
    index_P = jnp.arange(prompt_length, dtype=jnp.int32)
    position_QP = jnp.broadcast_to(index_P, (num_prompts, prompt_length))
    tables = rotary_tables(position_QP, arch)
    segment_QP = (index_P < prompts.length_Q[:, None]).astype(jnp.int32)

    def layer(
        x_QPD: jax.Array, scanned: tuple[Block, jax.Array | None]
    ) -> tuple[jax.Array, PromptCache]:
        weights, is_sliding = scanned

        def attend(
            q_QPNH: jax.Array, k_QPKH: jax.Array, v_QPKH: jax.Array
        ) -> tuple[jax.Array, PromptCache]:
            window = window_of(position_QP, is_sliding, arch)
            out_QPNH = packed_attention(q_QPNH, k_QPKH, v_QPKH, segment_QP, segment_QP, window)
            cache = PromptCache(k_QPKH.transpose(0, 2, 3, 1), v_QPKH.swapaxes(1, 2))
            return out_QPNH, constrain_record(cache, ACTIVATION_RULES)

        rotary = tables.of_layer(is_sliding)
        return block(x_QPD, weights, rotary=rotary, attend=attend, arch=arch)

    x_QPD = embedded(params, jnp.asarray(prompts.token_QP), arch, compute_dtype)
    x_QPD, stacked = jax.lax.scan(layer, x_QPD, (params.blocks, is_sliding_by_layer(arch)))
    last_Q11 = (prompts.length_Q - 1)[:, None, None]
    x_QD = jnp.take_along_axis(x_QPD, last_Q11, axis=1)[:, 0]
    return constrain(norm(x_QD, params.final_norm, arch), "Q D"), stacked
