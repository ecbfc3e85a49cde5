"""One token per row from a law over the vocabulary, and the random keys it is drawn with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Key, PRNGKeyArray

from cipo_jax.model.head import tempered
from cipo_jax.records import Array

_LOWEST = float(np.finfo(np.float32).min) / 2


def row_keys(
    key: PRNGKeyArray, key_id_Q: Int32[Array, " Q"], samples_per_prompt: int
) -> Key[jax.Array, " B"]:
    """Keys of B = Q * G rows, one per sample, from the prompt's identity and the sample's index.

    `draw` folds in the token's position too. So a token depends on who it is, and not on the order
    or the size of the batch it was sampled in.
    """

    def of_prompt(key_id: Int32[jax.Array, ""]) -> Key[jax.Array, " G"]:
        prompt_key = jax.random.fold_in(key, key_id)
        return jax.vmap(lambda sample: jax.random.fold_in(prompt_key, sample))(
            jnp.arange(samples_per_prompt)
        )

    return jax.vmap(of_prompt)(jnp.asarray(key_id_Q)).reshape(-1)


def draw(
    key_B: Key[jax.Array, " B"],
    step: Int32[jax.Array, ""] | int,
    logits_BV: Float32[jax.Array, "B V"],
    temperature: Float32[jax.Array, ""],
) -> tuple[Int32[jax.Array, " B"], Float32[jax.Array, " B"]]:
    """A token per row and its log-prob in nats.

    The vocabulary is cut into J blocks of U tokens, and a law factorises over them exactly:

        p(token) = p(block) * p(token | block),   log p(block) = logsumexp of the block's logits

    A Gumbel draw for each factor needs J + U random numbers instead of J * U (one per vocabulary
    entry takes four times as long as the head itself on a CPU). With the block's maximum in place
    of its mass and no noise, the same two choices give the argmax.

    Args:
      key_B: from `row_keys`.
      step: index of the token in the completion.
      temperature: 0 takes the likeliest token; log-probs are then at temperature 1.
    """
    num_rows, vocab_size = logits_BV.shape
    width = _block_width(vocab_size)
    logits_BJU = logits_BV.reshape(num_rows, -1, width)
    # Finite also where a whole block is ruled out by logits of -inf.
    top_BJ1 = jnp.maximum(jnp.max(logits_BJU, axis=-1, keepdims=True), _LOWEST)
    mass_BJ1 = jnp.sum(jnp.exp(tempered(logits_BJU - top_BJ1, temperature)), axis=-1, keepdims=True)
    top_BJ = tempered(top_BJ1[..., 0], temperature)
    mass_BJ = top_BJ + jnp.log(mass_BJ1[..., 0])

    def noise(row_key: PRNGKeyArray) -> jax.Array:
        # "high": the default's steps of 2^-23 would cut off the tail of the law.
        step_key = jax.random.fold_in(row_key, step)
        return jax.random.gumbel(step_key, (vocab_size // width + width,), mode="high")

    noise_BJ, noise_BU = jnp.split(jax.vmap(noise)(key_B), [vocab_size // width], axis=-1)
    is_greedy = temperature <= 0
    block_B = jnp.argmax(jnp.where(is_greedy, top_BJ, mass_BJ + noise_BJ), axis=-1)
    logits_BU = jnp.take_along_axis(logits_BJU, block_B[:, None, None], axis=1)[:, 0]
    law_BU = tempered(logits_BU, temperature)
    within_B = jnp.argmax(jnp.where(is_greedy, law_BU, law_BU + noise_BU), axis=-1)
    chosen_B = jnp.take_along_axis(law_BU, within_B[:, None], axis=-1)[:, 0]
    token_B = (block_B * width + within_B).astype(jnp.int32)
    return token_B, chosen_B - jax.nn.logsumexp(mass_BJ, axis=-1)


def _block_width(vocab_size: int) -> int:
    """The divisor of the vocabulary size that needs the fewest random numbers; a multiple of 128 if
    there is one, as accelerators lay out memory in such lanes.
    """
    divisors = (width for width in range(1, vocab_size + 1) if vocab_size % width == 0)
    return min(divisors, key=lambda width: (width % 128 != 0, width + vocab_size // width))
