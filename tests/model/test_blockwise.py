"""Attention in blocks against the formula on whole rows, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.model.blockwise import Window, blocks_of, blockwise_attention
from tests.batches import random_batch

ROWS, TOKENS = 2, 75  # which no block length used here divides


def dense(q_BTNH, k_BTKH, v_BTKH, segment_BT, prefix_BT, window=None):
    """The formula, with all scores at once."""
    index = jnp.arange(q_BTNH.shape[1])
    same = segment_BT[:, None, :] == segment_BT[:, :, None]
    sees = (same | (segment_BT[:, None, :] == prefix_BT[:, :, None])) & (index <= index[:, None])
    if window is not None:
        back = window.position_BT[:, :, None] - window.position_BT[:, None, :]
        sees &= back < window.size
    k, v = (jnp.repeat(x, q_BTNH.shape[2] // x.shape[2], axis=2) for x in (k_BTKH, v_BTKH))
    score = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k) / np.sqrt(q_BTNH.shape[-1])
    weight = jax.nn.softmax(jnp.where(sees[:, None], score, -jnp.inf), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weight, v)


@pytest.fixture(scope="module")
def batch():
    batch = random_batch(ROWS, TOKENS, vocab_size=9, seed=2)
    # Several units in a row, and padding at its end.
    assert (batch.prefix_BT.max(axis=1) > 3).all()
    assert (batch.segment_BT[:, -1] == 0).all()
    return batch


@pytest.fixture(scope="module")
def vectors():
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (4, 2, 2, 4)
    shapes = [(ROWS, TOKENS, n, 8) for n in heads]
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(attend, batch, vectors, window=None):
    """Outputs, and the gradients of a random linear function of them, where not padding."""
    *inputs, direction = vectors
    is_token = (batch.segment_BT > 0)[..., None, None]

    def loss(q, k, v):
        out = attend(q, k, v, batch.segment_BT, batch.prefix_BT, window)
        return jnp.sum(jnp.where(is_token, out * direction, 0.0)), jnp.where(is_token, out, 0.0)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    return out, *grads


def gap(actual, expected):
    return max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("size", [None, 5], ids=["whole", "window"])
@pytest.mark.parametrize("block", [16, 128])
def test_equals_the_formula(batch, vectors, block, size):
    attend = partial(blockwise_attention, longest_block=block)
    window = None if size is None else Window(batch.position_BT, jnp.int32(size))
    expected = value_and_gradients(dense, batch, vectors, window)
    assert gap(value_and_gradients(attend, batch, vectors, window), expected) < 2e-6
    # Control: a completion that does not see its prompt.
    blind = batch.replace(prefix_BT=batch.segment_BT)
    assert gap(value_and_gradients(attend, blind, vectors, window), expected) > 1e-2


def test_only_blocks_that_see_each_other_are_computed():
    """Four units of one block each: four pairs on the diagonal, of ten that are causal. A unit of
    four blocks, a prompt and three completions: they see their prompt besides, so three more."""
    segment = jnp.repeat(jnp.arange(1, 5), 8)[None]

    def num_pairs(prefixes, window=None):
        prefix = jnp.repeat(jnp.array(prefixes), 8)[None]
        return int(blocks_of(segment, prefix, window, longest_block=8).num_pairs)

    assert num_pairs([1, 2, 3, 4]) == 4
    assert num_pairs([1, 1, 1, 1]) == 4 + 3
    # A completion follows its prompt's 8 tokens. Its first token sees 4 back, so the prompt's last.
    position = jnp.concatenate([jnp.arange(8), *[8 + jnp.arange(8)] * 3])[None]
    assert num_pairs([1, 1, 1, 1], Window(position, jnp.int32(4))) == 4 + 3
    # With a window of one token nobody sees more than itself.
    assert num_pairs([1, 1, 1, 1], Window(position, jnp.int32(1))) == 4


def test_scores_exist_for_a_pair_of_blocks_at_a_time(batch, vectors):
    def has_all_scores(block):
        *inputs, _ = vectors

        def loss(q, k, v):
            ids = batch.segment_BT, batch.prefix_BT
            out = blockwise_attention(q, k, v, *ids, longest_block=block)
            return jnp.sum(out**2)

        return f"{TOKENS}x{TOKENS}x" in jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).as_text()

    assert not has_all_scores(16)
    assert has_all_scores(128)


def test_padding_is_finite_and_gives_no_gradient(batch, vectors):
    out, *grads = value_and_gradients(blockwise_attention, batch, vectors)
    assert all(bool(jnp.isfinite(x).all()) for x in (out, *grads))
    *inputs, _ = vectors
    whole = blockwise_attention(*inputs, batch.segment_BT, batch.prefix_BT)
    assert bool(jnp.isfinite(whole).all())
    assert all(float(jnp.abs(g[batch.segment_BT == 0]).max()) == 0 for g in grads)
