"""Chunked log-probs against the formula written out over the whole vocabulary."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cipo_jax.model import head
from cipo_jax.model.head import logits, token_logprobs
from cipo_jax.model.presets import PRESETS
from tests.batches import random_batch
from tests.weights import drawn

ARCH = PRESETS["tiny-llama"]
ROWS, TOKENS = 3, 20


def inputs(arch=ARCH, dtype=jnp.float32):
    batch = random_batch(ROWS, TOKENS, vocab_size=arch.vocab_size)
    hidden = jax.random.normal(jax.random.key(5), (ROWS, TOKENS, arch.model_dim), dtype)
    return drawn(arch), hidden, batch


@functools.partial(jax.jit, static_argnames=("arch", "chunk"))
def chunked(params, hidden, batch, *, arch=ARCH, temperature=0.7, chunk=12):
    return token_logprobs(
        params,
        hidden,
        batch.token_BT,
        batch.predecessor_BT,
        batch.is_target_BT,
        temperature=temperature,
        chunk=chunk,
        arch=arch,
    )


@jax.jit
def whole(params, hidden, batch, *, temperature=0.7):
    """The formula of the docstring, with every logit at once."""
    head_DV = params.embed.T if params.head is None else params.head
    before = hidden[np.arange(ROWS)[:, None], batch.predecessor_BT]
    law = jax.nn.log_softmax(before @ head_DV / temperature)
    entropy = -jnp.sum(jnp.exp(law) * law, axis=-1)
    logprob = jnp.take_along_axis(law, batch.token_BT[..., None], axis=-1)[..., 0]
    return tuple(jnp.where(batch.is_target_BT, x, 0.0) for x in (logprob, entropy))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])  # a head of its own, and tied
@pytest.mark.parametrize("chunk", [1, 12, 27, 10_000])  # 27: the last one is short
def test_chunked_equals_whole(name, chunk):
    arch = PRESETS[name]
    params, hidden, batch = inputs(arch)
    got = chunked(params, hidden, batch, arch=arch, chunk=chunk)
    expected = whole(params, hidden, batch)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Control: the token before in the row is not the predecessor at the start of a completion.
    shifted = batch.replace(predecessor_BT=np.tile(np.maximum(np.arange(TOKENS) - 1, 0), (ROWS, 1)))
    is_target = batch.is_target_BT
    wrong = chunked(params, hidden, shifted, arch=arch, chunk=chunk)[0]
    assert np.abs(wrong - expected[0])[is_target].max() > 0.1


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])
def test_gradients_equal_those_of_the_whole(name):
    """Of the log-probs and of the entropy, for the hidden states and for the head."""
    arch = PRESETS[name]
    params, hidden, batch = inputs(arch)
    weights = jax.random.normal(jax.random.key(9), (2, ROWS, TOKENS))

    def gradients(law, scale=1.0, **options):
        def loss(params, hidden):
            logprob, entropy = law(params, hidden, batch, **options)
            return jnp.sum(weights[0] * logprob) + scale * jnp.sum(weights[1] * entropy)

        params_grad, hidden_grad = jax.jit(jax.grad(loss, (0, 1)))(params, hidden)
        head_grad = params_grad.embed if params_grad.head is None else params_grad.head
        return hidden_grad, head_grad

    expected = gradients(whole)
    for a, b in zip(gradients(chunked, arch=arch), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Control: without the entropy the gradients are far away.
    for a, b in zip(gradients(chunked, arch=arch, scale=0.0), expected, strict=True):
        assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])
def test_a_split_vocabulary_gives_the_same(name):
    """Log-probs, entropies and both gradients, from four devices with a quarter each."""
    arch = PRESETS[name]
    params, hidden, batch = inputs(arch)
    weights = jax.random.normal(jax.random.key(9), (2, ROWS, TOKENS))
    field, spec = ("embed", P("tensor")) if arch.is_tied else ("head", P(None, "tensor"))
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def split(head, hidden, temperature=0.7):
        def piecewise(piece, hidden):
            return token_logprobs(
                params.replace(**{field: piece}),
                hidden, batch.token_BT, batch.predecessor_BT, batch.is_target_BT,
                temperature=temperature, chunk=12, arch=arch, vocab_axis="tensor",
            )  # fmt: skip

        return jax.shard_map(
            piecewise, mesh=mesh, in_specs=(spec, P()), out_specs=(P(), P()), check_vma=False
        )(head, hidden)

    def one(head, hidden):
        return chunked(params.replace(**{field: head}), hidden, batch, arch=arch)

    def found(law):
        def loss(head, hidden):
            logprob, entropy = law(head, hidden)
            weighed = jnp.sum(weights[0] * logprob) + jnp.sum(weights[1] * entropy)
            return weighed, (logprob, entropy)

        gradients, laws = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            getattr(params, field), hidden
        )
        return *laws, *gradients

    expected = found(one)
    for a, b in zip(found(split), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    # Control: at another temperature everything is different.
    for a, b in zip(found(functools.partial(split, temperature=1.0)), expected, strict=True):
        assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("num_targets", [0, 1, 12, 13, ROWS * TOKENS])
def test_what_is_no_target_is_not_computed(num_targets, monkeypatch):
    """Chunks of twelve targets, wherever in the rows they stand."""
    params, hidden, batch = inputs()
    is_target = np.zeros(ROWS * TOKENS, bool)
    is_target[np.random.default_rng(0).permutation(ROWS * TOKENS)[:num_targets]] = True
    batch = batch.replace(is_target_BT=is_target.reshape(ROWS, TOKENS))
    computed, scores = [], head.scores

    def counting(*args):
        jax.debug.callback(lambda: computed.append(1))
        return scores(*args)

    monkeypatch.setattr(head, "scores", counting)

    def loss(hidden):
        # A program of its own, in which the count is traced.
        return sum(x.sum() for x in chunked.__wrapped__(params, hidden, batch))

    value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    jax.effects_barrier()
    assert len(computed) == 2 * -(-num_targets // 12)  # forward, and once more backward
    expected = sum(x.sum() for x in whole(params, hidden, batch))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert bool(np.any(gradient)) == bool(num_targets)


def sizes(program) -> set[int]:
    """Elements of every array that a program makes, inner programs included."""
    found = set()
    for equation in program.eqns:
        found |= {variable.aval.size for variable in equation.outvars}
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= sizes(inner)
    return found


def test_no_array_has_a_logit_for_every_token():
    """Forward and backward. The vocabulary (320) times the tokens (60) is the largest size there
    could be; the head's gradient (320 x 32) and a chunk's logits (12 x 320) are what remains."""
    params, hidden, batch = inputs()

    def loss(law):
        def of(params, hidden):
            logprob, entropy = law(params, hidden, batch)
            return jnp.sum(logprob) + jnp.sum(entropy)

        return of

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        largest = {
            law: max(sizes(jax.make_jaxpr(transform(loss(law)))(params, hidden).jaxpr))
            for law in (chunked, whole)
        }
        assert largest[chunked] <= ARCH.vocab_size * ARCH.model_dim
        assert largest[whole] == ARCH.vocab_size * ROWS * TOKENS  # Control: it would be seen.


def test_peak_memory_follows_the_chunk_and_not_the_tokens():
    params, _, _ = inputs()
    tokens = 4096
    shape = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    hidden = jax.ShapeDtypeStruct((1, tokens, ARCH.model_dim), jnp.float32)

    def temporary_bytes(chunk):
        def loss(params, hidden, token, predecessor):
            everywhere = jnp.ones(token.shape, bool)
            return token_logprobs(
                params, hidden, token, predecessor, everywhere,
                temperature=1.0, chunk=chunk, arch=ARCH,
            )[0].sum()  # fmt: skip

        program = jax.jit(jax.grad(loss, (0, 1))).lower(params, hidden, shape, shape).compile()
        return program.memory_analysis().temp_size_in_bytes

    all_logits = tokens * ARCH.vocab_size * 4
    assert temporary_bytes(64) < 0.7 * all_logits < all_logits < temporary_bytes(tokens)


def test_greedy_log_probs_are_at_temperature_1():
    params, hidden, batch = inputs()
    for a, b in zip(
        chunked(params, hidden, batch, temperature=0.0),
        chunked(params, hidden, batch, temperature=1.0),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_products_add_up_in_float32():
    params, hidden, batch = inputs(dtype=jnp.bfloat16)
    scores = logits(params, hidden, arch=ARCH)
    assert scores.dtype == jnp.float32
    rounded = params.head.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(scores, hidden.astype(jnp.float32) @ rounded, atol=1e-4)

    def loss(params, hidden):
        return chunked(params, hidden, batch)[0].sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, hidden)
    exact = jax.grad(lambda p, h: whole(p, h, batch)[0].sum(), (0, 1))(
        params, hidden.astype(jnp.float32)
    )
    assert gradients[0].head.dtype == jnp.float32
    assert gradients[1].dtype == jnp.bfloat16
    for a, b in ((gradients[0].head, exact[0].head), (gradients[1], exact[1])):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())


def test_an_empty_chunk_is_refused():
    params, hidden, batch = inputs()
    with pytest.raises(ValueError, match="chunk is 0"):
        chunked(params, hidden, batch, chunk=0)
