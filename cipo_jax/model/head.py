"""From hidden states to log-probs: the one head, the one temperature, the one shift.

Both the sampler and the train step come through here, so the law that was sampled from and the law
that is trained are the same code. Which tokens count is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from cipo_jax.mesh.collectives import reduce_scatter
from cipo_jax.mesh.sharding import MeshAxis
from cipo_jax.model.decoding import Ends
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, present
from cipo_jax.records import Array


def logits(
    params: Params | Ends, hidden: Float[jax.Array, "... D"], *, arch: Architecture
) -> Float32[jax.Array, "... V"]:
    """Scores of the whole vocabulary: a product in hidden's dtype, accumulated in float32."""
    return scores(hidden, _head(params, arch))


def tempered(
    logits: Float32[jax.Array, "*shape"], temperature: Float32[jax.Array, ""] | float
) -> Float32[jax.Array, "*shape"]:
    """Logits of the law at `temperature`. Greedy decoding (temperature 0) has no law of its own:
    its log-probs are stated at temperature 1.
    """
    return logits * (1.0 / jnp.where(temperature > 0, temperature, 1.0))


def token_logprobs(
    params: Params,
    hidden_BTD: Float[jax.Array, "B T D"],
    token_BT: Int32[Array, "B T"],
    predecessor_BT: Int32[Array, "B T"],
    is_target_BT: Bool[Array, "B T"],
    *,
    temperature: Float32[jax.Array, ""] | float,
    chunk: int,
    arch: Architecture,
    row_axes: tuple[str, ...] = (),
    vocab_axis: MeshAxis | None = None,
    width_axis: MeshAxis | None = None,
) -> tuple[Float32[jax.Array, "B T"], Float32[jax.Array, "B T"]]:
    """Log-prob of each target, and entropy of the law that it was drawn from, both in nats.

        logprob[b,t] = log softmax(logits(hidden[b, predecessor[b,t]]) / temperature)[token[b,t]]
        entropy[b,t] = -sum over v of p(v) log p(v),  p the same law

    Computed for `chunk` targets at a time, forward and backward: logits are computed again in the
    backward pass, and no array of B * T * V elements ever exists. Targets are brought together
    first, so all else (prompts, attempts that are shown, padding) costs nothing.

    Args:
      hidden_BTD: from `hidden_states`, after the final norm.
      predecessor_BT: index in the row of the token whose hidden state predicts this one.
      is_target_BT: which tokens; both results are 0 elsewhere.
      temperature: above 0; 0 means 1. Not differentiated.
      chunk: targets whose logits exist at one time, at least 1.
      row_axes: inside of a `shard_map`, the mesh axes that the rows are split over. All devices
        then take the same number of chunks, as they may have to meet in each.
      vocab_axis: inside of a `shard_map`, the mesh axis that the vocabulary is split over: the head
        of `params` is this device's piece. Devices exchange a few numbers per target in each chunk.
      width_axis: inside of a `shard_map`, the mesh axis that the width D of the head is split over;
        that of hidden_BTD is whole. The head is gathered once in each direction, in the dtype of
        hidden_BTD, and its gradient scattered once, in float32.
    """
    if chunk < 1:
        raise ValueError(
            f"chunk is {chunk}: it is the number of tokens whose logits exist at one time, at "
            "least 1 (train.logprob_chunk)."
        )
    num_rows, row_length = token_BT.shape
    num_tokens = num_rows * row_length
    chunk = min(chunk, num_tokens)
    num_chunks = -(-num_tokens // chunk)
    num_targets = jnp.sum(is_target_BT)
    if row_axes:
        num_targets = jax.lax.pmax(num_targets, row_axes)

    # The targets in their order; behind them an index that no token has.
    (index_I,) = jnp.nonzero(
        jnp.ravel(is_target_BT), size=num_chunks * chunk, fill_value=num_tokens
    )
    first_of_row_B1 = row_length * jnp.arange(num_rows)[:, None]
    predecessor_I = jnp.ravel(first_of_row_B1 + predecessor_BT).at[index_I].get(mode="clip")
    before_ID = hidden_BTD.reshape(num_tokens, -1)[predecessor_I]
    logprob_JU, entropy_JU = _laws(
        before_ID.reshape(num_chunks, chunk, -1),
        jnp.ravel(token_BT).at[index_I].get(mode="clip").reshape(num_chunks, chunk),
        _head(params, arch),
        temperature,
        -(-num_targets // chunk),
        vocab_axis,
        width_axis,
    )

    def restored(x_JU: jax.Array) -> jax.Array:
        nothing = jnp.zeros(num_tokens, x_JU.dtype)
        return nothing.at[index_I].set(x_JU.ravel(), mode="drop").reshape(num_rows, row_length)

    return restored(logprob_JU), restored(entropy_JU)


def _head(params: Params | Ends, arch: Architecture) -> jax.Array:
    if arch.is_tied:
        return params.embed
    (head_DV,) = present(params.head)
    return head_DV.T


def scores(
    hidden: Float[jax.Array, "... D"], head_VD: Float[jax.Array, "V D"]
) -> Float32[jax.Array, "... V"]:
    """The one product with the head: in hidden's dtype, accumulated in float32."""
    with jax.named_scope("head"):
        head_VD = head_VD.astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, head_VD, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _laws(
    before_JUD: jax.Array,
    token_JU: jax.Array,
    head_VD: jax.Array,
    temperature: jax.Array | float,
    num_used: jax.Array,
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies of the first `num_used` chunks of U tokens; 0 in the others.

    The backward pass is written out: it computes the logits of a chunk again instead of keeping
    them, does its products in the compute dtype, and adds each chunk to one gradient of the head.
    """
    laws, _ = _laws_forward(
        before_JUD, token_JU, head_VD, temperature, num_used, vocab_axis, width_axis
    )
    return laws


def _laws_forward(
    before_JUD: jax.Array,
    token_JU: jax.Array,
    head_VD: jax.Array,
    temperature: jax.Array | float,
    num_used: jax.Array,
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    cast_VD = _gathered(head_VD, before_JUD, width_axis)

    def law(
        chunk: jax.Array, so_far: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits_UV = tempered(scores(before_JUD[chunk], cast_VD), temperature)
        normaliser_U = jax.nn.logsumexp(logits_UV, axis=-1)
        if vocab_axis is not None:  # so far, each is the normaliser of a piece
            normaliser_U = jax.nn.logsumexp(jax.lax.all_gather(normaliser_U, vocab_axis), axis=0)
        # No token of this piece has the index: 0 is added.
        index_U1 = _index_in_piece(token_JU[chunk], cast_VD, vocab_axis)[:, None]
        chosen_U1 = jnp.take_along_axis(logits_UV, index_U1, axis=-1, mode="fill", fill_value=0)
        prob_UV = jnp.exp(logits_UV - normaliser_U[:, None])
        chosen_U, mean_U = chosen_U1[:, 0], jnp.sum(prob_UV * logits_UV, axis=-1)
        if vocab_axis is not None:
            chosen_U, mean_U = jax.lax.psum((chosen_U, mean_U), vocab_axis)
        entropy_U = normaliser_U - mean_U
        found = (chosen_U - normaliser_U, entropy_U, normaliser_U)
        logprob_JU, entropy_JU, normaliser_JU = (
            all_JU.at[chunk].set(x_U) for all_JU, x_U in zip(so_far, found, strict=True)
        )
        return logprob_JU, entropy_JU, normaliser_JU

    nothing_JU = jnp.zeros(token_JU.shape, jnp.float32)
    logprob_JU, entropy_JU, normaliser_JU = _for_chunks(
        token_JU.shape[0], num_used, law, (nothing_JU, nothing_JU, nothing_JU)
    )
    inputs = (before_JUD, token_JU, head_VD, temperature, num_used)
    return (logprob_JU, entropy_JU), (*inputs, normaliser_JU, entropy_JU)


def _laws_backward(
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
    kept: tuple[Any, ...],
    cotangent: tuple[jax.Array, jax.Array],
) -> tuple[Any, ...]:
    # d logprob / d logit[v] = [v is the token] - p[v]
    # d entropy / d logit[v] = -p[v] (log p[v] + entropy)
    before_JUD, token_JU, head_VD, temperature, num_used, normaliser_JU, entropy_JU = kept
    if vocab_axis is not None:
        # Where all devices of an axis hold the same result, a `shard_map` gives each a share of its
        # cotangent, and adds up their gradients of what all of them were given.
        cotangent = jax.lax.psum(cotangent, vocab_axis)
    d_logprob_JU, d_entropy_JU = cotangent
    cast_VD = _gathered(head_VD, before_JUD, width_axis)

    def add(chunk: jax.Array, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_before_JUD, d_head_VD = so_far
        logits_UV = tempered(scores(before_JUD[chunk], cast_VD), temperature)
        logprob_UV = logits_UV - normaliser_JU[chunk][:, None]
        prob_UV = jnp.exp(logprob_UV)
        index_U1 = _index_in_piece(token_JU[chunk], cast_VD, vocab_axis)[:, None]
        is_token_UV = jnp.arange(cast_VD.shape[0]) == index_U1
        d_logits_UV = d_logprob_JU[chunk][:, None] * (is_token_UV - prob_UV)
        surprise_UV = logprob_UV + entropy_JU[chunk][:, None]
        d_logits_UV -= d_entropy_JU[chunk][:, None] * prob_UV * surprise_UV
        d_scores_UV = tempered(d_logits_UV, temperature).astype(before_JUD.dtype)
        d_before_UD = jnp.einsum("UV,VD->UD", d_scores_UV, cast_VD)
        d_head_VD += jnp.einsum(
            "UV,UD->VD", d_scores_UV, before_JUD[chunk], preferred_element_type=jnp.float32
        )
        return d_before_JUD.at[chunk].set(d_before_UD), d_head_VD

    nothing = (jnp.zeros_like(before_JUD), jnp.zeros(cast_VD.shape, jnp.float32))
    d_before_JUD, d_head_VD = _for_chunks(token_JU.shape[0], num_used, add, nothing)
    if width_axis is not None:
        d_head_VD = reduce_scatter(d_head_VD, width_axis, dimension=1)
    return d_before_JUD, None, d_head_VD.astype(head_VD.dtype), None, None


def _gathered(head_VD: jax.Array, before_JUD: jax.Array, width_axis: MeshAxis | None) -> jax.Array:
    """The head in the compute dtype, whole along D."""
    cast_VD = head_VD.astype(before_JUD.dtype)
    if width_axis is None:
        return cast_VD
    whole_VD: jax.Array = jax.lax.all_gather(cast_VD, width_axis, axis=1, tiled=True)
    return whole_VD


def _index_in_piece(
    token_U: jax.Array, piece_VD: jax.Array, vocab_axis: MeshAxis | None
) -> jax.Array:
    """The token's index in this device's piece of the vocabulary; V or more if it is in another."""
    if vocab_axis is None:
        return token_U
    size = piece_VD.shape[0]
    index_U = token_U - size * jax.lax.axis_index(vocab_axis)
    # Negative indices would count from the end.
    return jnp.where(index_U < 0, size, index_U)


_laws.defvjp(_laws_forward, _laws_backward)

_Carry = TypeVar("_Carry")


def _for_chunks(
    num_chunks: int, num_used: jax.Array, body: Callable[[jax.Array, _Carry], _Carry], state: _Carry
) -> _Carry:
    """`state = body(chunk, state)` for each chunk in use. The condition names the number of all
    chunks for those who ask a program how long its loops can be."""
    _, state = jax.lax.while_loop(
        lambda counted: (counted[0] < num_chunks) & (counted[0] < num_used),
        lambda counted: (counted[0] + 1, body(*counted)),
        (jnp.int32(0), state),
    )
    return state
