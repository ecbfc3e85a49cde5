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
from jax import Array
from jaxtyping import Bool, Float, Float32, Int32

from cipo_jax.mesh.collectives import reduce_scatter
from cipo_jax.mesh.sharding import MeshAxis
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params


def logits(
    params: Params, hidden: Float[Array, "... D"], *, arch: Architecture
) -> Float32[Array, "... V"]:
    """Scores of the whole vocabulary: a product in hidden's dtype, accumulated in float32."""
    return _scores(hidden, _head(params, arch))


def tempered(logits: Float32[Array, "... V"], temperature: Array | float) -> Array:
    """Logits of the law at `temperature`. Greedy decoding (temperature 0) has no law of its own:
    its log-probs are stated at temperature 1.
    """
    return logits * (1.0 / jnp.where(temperature > 0, temperature, 1.0))


def token_logprobs(
    params: Params,
    hidden_BTD: Float[Array, "B T D"],
    token_BT: Int32[Array, "B T"],
    predecessor_BT: Int32[Array, "B T"],
    is_target_BT: Bool[Array, "B T"],
    *,
    temperature: Array | float,
    chunk: int,
    arch: Architecture,
    row_axes: tuple[str, ...] = (),
    vocab_axis: MeshAxis | None = None,
    width_axis: MeshAxis | None = None,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Log-prob of each target, and entropy of the law that it was drawn from, both in nats.

        logprob[b,t] = log softmax(logits(hidden[b, predecessor[b,t]]) / temperature)[token[b,t]]
        entropy[b,t] = -sum over v of p(v) log p(v),  p the same law

    Computed for `chunk` targets at a time, forward and backward: logits are computed again in the
    backward pass, and no array of B * T * V elements ever exists. Targets are brought together
    first, so what is no target (prompts, attempts that are shown, padding) costs nothing.

    Args:
      hidden_BTD: of `hidden_states`, after the final norm.
      predecessor_BT: index in the row of the token whose hidden state predicts this one.
      is_target_BT: which tokens; both results are 0 elsewhere.
      temperature: above 0; 0 means 1. Not differentiated.
      chunk: targets whose logits exist at one time, at least 1.
      row_axes: inside of a `shard_map`, the mesh axes that the rows are split over. All devices
        then take the same number of chunks, as they may have to meet in each.
      vocab_axis: inside of a `shard_map`, the mesh axis that the vocabulary is split over: the head
        of `params` is this device's piece. Devices exchange a few numbers per target in each chunk.
      width_axis: inside of a `shard_map`, the mesh axis that the width D of the head is split over,
        and not that of hidden_BTD. The head is gathered once in each direction, in the dtype of
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

    # Of the targets in their order; behind them an index that no token has.
    (index_X,) = jnp.nonzero(
        jnp.ravel(is_target_BT), size=num_chunks * chunk, fill_value=num_tokens
    )
    first_of_row_B1 = row_length * jnp.arange(num_rows)[:, None]
    predecessor_X = jnp.ravel(first_of_row_B1 + predecessor_BT).at[index_X].get(mode="clip")
    before_XD = hidden_BTD.reshape(num_tokens, -1)[predecessor_X]
    logprob_CX, entropy_CX = _laws(
        before_XD.reshape(num_chunks, chunk, -1),
        jnp.ravel(token_BT).at[index_X].get(mode="clip").reshape(num_chunks, chunk),
        _head(params, arch),
        temperature,
        -(-num_targets // chunk),
        vocab_axis,
        width_axis,
    )

    def restored(x_CX: Array) -> Array:
        nothing = jnp.zeros(num_tokens, x_CX.dtype)
        return nothing.at[index_X].set(x_CX.ravel(), mode="drop").reshape(num_rows, row_length)

    return restored(logprob_CX), restored(entropy_CX)


def _head(params: Params, arch: Architecture) -> Float[Array, "V D"]:
    if arch.is_tied:
        return params.embed
    assert params.head is not None
    return params.head.T


def _scores(hidden: Array, head_VD: Array) -> Array:
    with jax.named_scope("head"):
        head_VD = head_VD.astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, head_VD, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _laws(
    before_CXD: Array,
    token_CX: Array,
    head_VD: Array,
    temperature: Array | float,
    num_used: Array,
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
) -> tuple[Array, Array]:
    """Log-probs and entropies of the first `num_used` chunks of X tokens; 0 in the others.

    The backward pass is written out: it computes the logits of a chunk again instead of keeping
    them, does its products in the compute dtype, and adds each chunk to one gradient of the head.
    """
    laws, _ = _laws_forward(
        before_CXD, token_CX, head_VD, temperature, num_used, vocab_axis, width_axis
    )
    return laws


def _laws_forward(
    before_CXD: Array,
    token_CX: Array,
    head_VD: Array,
    temperature: Array | float,
    num_used: Array,
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    cast_VD = _gathered(head_VD, before_CXD, width_axis)

    def law(c: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        logits_XV = tempered(_scores(before_CXD[c], cast_VD), temperature)
        normaliser_X = jax.nn.logsumexp(logits_XV, axis=-1)
        if vocab_axis is not None:  # of the pieces' normalisers
            normaliser_X = jax.nn.logsumexp(jax.lax.all_gather(normaliser_X, vocab_axis), axis=0)
        # No token of this piece has the index: 0 is added.
        index_X1 = _index_in_piece(token_CX[c], cast_VD, vocab_axis)[:, None]
        chosen_X1 = jnp.take_along_axis(logits_XV, index_X1, axis=-1, mode="fill", fill_value=0)
        prob_XV = jnp.exp(logits_XV - normaliser_X[:, None])
        chosen_X, mean_X = chosen_X1[:, 0], jnp.sum(prob_XV * logits_XV, axis=-1)
        if vocab_axis is not None:
            chosen_X, mean_X = jax.lax.psum((chosen_X, mean_X), vocab_axis)
        entropy_X = normaliser_X - mean_X
        found = (chosen_X - normaliser_X, entropy_X, normaliser_X)
        logprob_CX, entropy_CX, normaliser_CX = (
            all_CX.at[c].set(x_X) for all_CX, x_X in zip(so_far, found, strict=True)
        )
        return logprob_CX, entropy_CX, normaliser_CX

    nothing_CX = jnp.zeros(token_CX.shape, jnp.float32)
    logprob_CX, entropy_CX, normaliser_CX = _for_chunks(
        token_CX.shape[0], num_used, law, (nothing_CX, nothing_CX, nothing_CX)
    )
    inputs = (before_CXD, token_CX, head_VD, temperature, num_used)
    return (logprob_CX, entropy_CX), (*inputs, normaliser_CX, entropy_CX)


def _laws_backward(
    vocab_axis: MeshAxis | None,
    width_axis: MeshAxis | None,
    kept: tuple[Array, ...],
    cotangent: tuple[Array, Array],
) -> tuple[Any, ...]:
    # d logprob / d logit[v] = [v is the token] - p[v]
    # d entropy / d logit[v] = -p[v] (log p[v] + entropy)
    before_CXD, token_CX, head_VD, temperature, num_used, normaliser_CX, entropy_CX = kept
    if vocab_axis is not None:
        # A `shard_map` deals out the cotangent of a result that all devices of an axis have in
        # shares, and adds up their gradients of what all of them were given.
        cotangent = jax.lax.psum(cotangent, vocab_axis)
    d_logprob_CX, d_entropy_CX = cotangent
    cast_VD = _gathered(head_VD, before_CXD, width_axis)

    def add(c: Array, so_far: tuple[Array, Array]) -> tuple[Array, Array]:
        d_before_CXD, d_head_VD = so_far
        logits_XV = tempered(_scores(before_CXD[c], cast_VD), temperature)
        logprob_XV = logits_XV - normaliser_CX[c][:, None]
        prob_XV = jnp.exp(logprob_XV)
        index_X1 = _index_in_piece(token_CX[c], cast_VD, vocab_axis)[:, None]
        is_token_XV = jnp.arange(cast_VD.shape[0]) == index_X1
        d_logits_XV = d_logprob_CX[c][:, None] * (is_token_XV - prob_XV)
        surprise_XV = logprob_XV + entropy_CX[c][:, None]
        d_logits_XV -= d_entropy_CX[c][:, None] * prob_XV * surprise_XV
        d_scores_XV = tempered(d_logits_XV, temperature).astype(before_CXD.dtype)
        d_before_XD = jnp.einsum("XV,VD->XD", d_scores_XV, cast_VD)
        d_head_VD += jnp.einsum(
            "XV,XD->VD", d_scores_XV, before_CXD[c], preferred_element_type=jnp.float32
        )
        return d_before_CXD.at[c].set(d_before_XD), d_head_VD

    nothing = (jnp.zeros_like(before_CXD), jnp.zeros(cast_VD.shape, jnp.float32))
    d_before_CXD, d_head_VD = _for_chunks(token_CX.shape[0], num_used, add, nothing)
    if width_axis is not None:
        d_head_VD = reduce_scatter(d_head_VD, width_axis, dimension=1)
    return d_before_CXD, None, d_head_VD.astype(head_VD.dtype), None, None


def _gathered(head_VD: Array, before_CXD: Array, width_axis: MeshAxis | None) -> Array:
    """The head in the compute dtype, whole along D."""
    cast_VD = head_VD.astype(before_CXD.dtype)
    if width_axis is None:
        return cast_VD
    return jax.lax.all_gather(cast_VD, width_axis, axis=1, tiled=True)


def _index_in_piece(token_X: Array, piece_VD: Array, vocab_axis: MeshAxis | None) -> Array:
    """Where in this device's piece of the vocabulary a token is; outside of [0, V) if in none."""
    if vocab_axis is None:
        return token_X
    size = piece_VD.shape[0]
    index_X = token_X - size * jax.lax.axis_index(vocab_axis)
    # Negative indices would count from the end.
    return jnp.where(index_X < 0, size, index_X)


_laws.defvjp(_laws_forward, _laws_backward)

_State = TypeVar("_State")


def _for_chunks(
    num_chunks: int, num_used: Array, body: Callable[[Array, _State], _State], state: _State
) -> _State:
    """`state = body(chunk, state)` for each chunk in use. The number of all stands in the condition
    for those who ask a program how long its loops can be."""
    _, state = jax.lax.while_loop(
        lambda counted: (counted[0] < num_chunks) & (counted[0] < num_used),
        lambda counted: (counted[0] + 1, body(*counted)),
        (jnp.int32(0), state),
    )
    return state
