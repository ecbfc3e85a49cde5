"""The policy loss: hand-worked values, gradients, and what must change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.config import Grpo, Kl, Uncorrected
from cipo_jax.method.gains import clipped_ratio
from cipo_jax.method.losses import (
    divergence,
    joint_loss,
    policy_loss,
)
from cipo_jax.records import Batch, Stream

GRPO = Grpo()
NO_KL = Kl(weight=0.0)
OFF = Uncorrected()


@pytest.fixture(autouse=True)
def _no_silent_broadcasting():
    with jax.numpy_rank_promotion("raise"):
        yield


def batch_of(*, sampler_logprob, advantage, weight, is_target, stream) -> Batch:
    num_rows, row_tokens = np.shape(is_target)
    ones = np.ones((num_rows, row_tokens), np.int32)
    return Batch.empty(num_rows, row_tokens).replace(
        segment_BT=ones,
        prefix_BT=ones,
        is_target_BT=np.asarray(is_target, bool),
        sampler_logprob_BT=np.asarray(sampler_logprob, np.float32),
        advantage_BT=np.asarray(advantage, np.float32),
        weight_BT=np.asarray(weight, np.float32),
        stream_BT=np.asarray(stream, np.int32),
        num_rows=np.int32(num_rows),
    )


def random_case(seed=0, *, shape=(3, 7), spread=0.4):
    """Log-probs, entropies, reference log-probs and a batch, with about a third no targets."""
    rng = np.random.default_rng(seed)
    is_target = rng.random(shape) < 0.65
    sampler = -rng.exponential(1.0, shape)
    batch = batch_of(
        sampler_logprob=np.where(is_target, sampler, 0),
        advantage=np.where(is_target, rng.normal(size=shape), 0),
        weight=np.where(is_target, rng.random(shape), 0),
        is_target=is_target,
        stream=rng.integers(0, 2, shape),
    )
    logprob, reference = (
        (sampler + spread * rng.normal(size=shape)).astype(np.float32) for _ in range(2)
    )
    entropy = rng.random(shape).astype(np.float32)
    return logprob, entropy, reference, batch


def loss_of(logprob, entropy, reference, batch, *, objective=GRPO, kl=NO_KL, weight=1.0):
    by_stream, _ = policy_loss(
        logprob, entropy, reference, batch, objective=objective, kl=kl, importance=OFF
    )
    return joint_loss(by_stream, correction_weight=weight)


# --- values -----------------------------------------------------------------------------------


# Ratios 1.5, 1.5, 0.5, 0.5, 1.1, clip range [.8, 1.2]:
#   A = +2, w = 1.5: min(3, 2.4)      =  2.4  clipped
#   A = -2, w = 1.5: min(-3, -2.4)    = -3.0  not clipped: the pessimistic side
#   A = +2, w = 0.5: min(1, 1.6)      =  1.0  not clipped
#   A = -2, w = 0.5: min(-1, -1.6)    = -1.6  clipped
#   A = +2, w = 1.1:                     2.2
RATIO = np.array([[1.5, 1.5, 0.5, 0.5, 1.1]], np.float32)
ADVANTAGE = np.array([[2.0, -2.0, 2.0, -2.0, 2.0]], np.float32)


def test_clip_on_all_sides() -> None:
    gain, is_clipped = clipped_ratio(jnp.log(RATIO), jnp.asarray(ADVANTAGE), low=0.2, high=0.2)
    np.testing.assert_allclose(gain, [[2.4, -3.0, 1.0, -1.6, 2.2]], rtol=1e-6)
    assert is_clipped.tolist() == [[True, False, False, True, False]]
    # DAPO's wider upper bound: 1.28 * 2.
    gain, _ = clipped_ratio(jnp.log(RATIO), jnp.asarray(ADVANTAGE), low=0.2, high=0.28)
    assert gain[0, 0] == pytest.approx(2.56)


def test_loss_and_sums_by_hand() -> None:
    # The five tokens above: three of the base stream at weight 1/3, two corrections at 1/2.
    #   base: -(2.4 - 3.0 + 1.0) / 3 = -.133333     correction: -(-1.6 + 2.2) / 2 = -.3
    # A sixth token is no target and full of noise.
    batch = batch_of(
        sampler_logprob=[[-1.0] * 5 + [3.0]],
        advantage=[[2.0, -2.0, 2.0, -2.0, 2.0, 9.0]],
        weight=[[1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 9.0]],
        is_target=[[True] * 5 + [False]],
        stream=[[0, 0, 0, 1, 1, 0]],
    )
    logprob = jnp.concatenate([jnp.log(RATIO) - 1.0, jnp.full((1, 1), 7.0)], axis=1)
    entropy = jnp.array([[1.0, 2, 3, 4, 5, 99]])
    by_stream, sums = policy_loss(
        logprob, entropy, None, batch, objective=Grpo(), kl=NO_KL, importance=OFF
    )
    np.testing.assert_allclose(by_stream, [-0.4 / 3, -0.3], rtol=1e-5)
    assert joint_loss(by_stream, correction_weight=0.5) == pytest.approx(-0.4 / 3 - 0.15)
    means = {name: total / count for name, (total, count) in sums.items()}
    assert means["policy/entropy"] == pytest.approx(3.0)
    assert means["policy/clip_share"] == pytest.approx(2 / 5)
    assert means["policy/ratio"] == pytest.approx((1.5 + 1.5 + 0.5 + 0.5 + 1.1) / 5)
    assert "kl" not in sums


@pytest.mark.parametrize(
    ("estimator", "at_half", "at_minus_half"),
    # d = .5: .5, .125, exp(-.5) - 1 + .5 = .106531.  d = -.5: -.5, .125, exp(.5) - 1.5 = .148721.
    [("k1", 0.5, -0.5), ("k2", 0.125, 0.125), ("k3", 0.106531, 0.148721)],
)
def test_divergence_vectors(estimator, at_half, at_minus_half) -> None:
    got = divergence(jnp.array([[0.5, -0.5, 0.0]]), estimator=estimator)
    np.testing.assert_allclose(got, [[at_half, at_minus_half, 0.0]], atol=1e-6)


def test_k3_is_never_negative_and_stays_finite() -> None:
    d = jnp.array([[-80.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 80.0]])
    got = np.asarray(divergence(d, estimator="k3"))
    assert np.isfinite(got).all()
    assert (got >= -1e-7).all()


def test_kl_adds_its_weighted_mean() -> None:
    logprob, entropy, reference, batch = random_case()
    plain = loss_of(logprob, entropy, reference, batch)
    with_kl = loss_of(logprob, entropy, reference, batch, kl=Kl(weight=0.7, estimator="k3"))
    d = np.where(batch.is_target_BT, logprob - reference, 0).astype(np.float64)
    expected = 0.7 * (batch.weight_BT * (np.exp(-d) - 1 + d)).sum()
    assert with_kl - plain == pytest.approx(expected, rel=1e-5)


def test_kl_to_itself_is_zero_and_needs_a_reference() -> None:
    logprob, entropy, _, batch = random_case()
    kl = Kl(weight=1.0)
    _, sums = policy_loss(logprob, entropy, logprob, batch, objective=Grpo(), kl=kl, importance=OFF)
    assert sums["kl"][0] == 0
    with pytest.raises(ValueError, match=r"kl\.weight is 1\.0"):
        policy_loss(logprob, entropy, None, batch, objective=Grpo(), kl=kl, importance=OFF)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradient_equals_finite_differences(estimator) -> None:
    logprob, entropy, reference, batch = random_case(spread=0.4)
    kl = Kl(weight=0.3, estimator=estimator)

    def loss(x):
        return loss_of(x, entropy, reference, batch, kl=kl, weight=0.6)

    with jax.enable_x64(True):
        x = jnp.asarray(logprob, jnp.float64)
        step = 1e-6 * jnp.eye(x.size).reshape(-1, *x.shape)
        losses = jax.jit(jax.vmap(loss))
        numeric = (losses(x[None] + step) - losses(x[None] - step)) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(x).ravel(), numeric, atol=1e-6)
    ratio = np.exp((logprob - batch.sampler_logprob_BT)[batch.is_target_BT])
    assert ((ratio > 1.2) | (ratio < 0.8)).sum() >= 3, "the case must reach into the clip"


def test_on_policy_gradient_is_reinforce() -> None:
    """At ratio 1 the surrogate's gradient is -weight * advantage, whatever the clip range: also
    with a range of zero width, where `minimum` would halve it."""
    _, entropy, _, batch = random_case()
    logprob = jnp.asarray(batch.sampler_logprob_BT)
    for objective in (Grpo(), Grpo(clip_low=0.0, clip_high=0.0)):
        got = jax.grad(loss_of)(logprob, entropy, None, batch, objective=objective)
        np.testing.assert_allclose(got, -batch.weight_BT * batch.advantage_BT, rtol=1e-6)
    _, sums = policy_loss(logprob, entropy, None, batch, objective=Grpo(), kl=NO_KL, importance=OFF)
    total, count = sums["policy/ratio"]
    assert total == count == batch.is_target_BT.sum()
    assert sums["policy/clip_share"][0] == 0


def test_zero_advantage_gives_zero_gradient() -> None:
    logprob, entropy, reference, batch = random_case()
    batch = batch.replace(advantage_BT=np.zeros_like(batch.advantage_BT))
    assert not np.asarray(jax.grad(loss_of)(logprob, entropy, None, batch)).any()
    # Negative control: a KL penalty trains on them all the same.
    got = jax.grad(loss_of)(logprob, entropy, reference, batch, kl=Kl(weight=1.0))
    assert np.abs(got).max() > 0.01


# --- what must change nothing -----------------------------------------------------------------


def everything(logprob, entropy, reference, batch):
    kl = Kl(weight=0.2)

    def loss(x):
        by_stream, sums = policy_loss(
            x, entropy, reference, batch, objective=Grpo(), kl=kl, importance=OFF
        )
        return joint_loss(by_stream, correction_weight=0.5), (by_stream, sums)

    (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logprob))
    return [np.asarray(x) for x in jax.tree.leaves((aux, gradient))]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, -5.0])
def test_what_is_no_target_cannot_leak(garbage) -> None:
    """Prompt, attempt and padding tokens: their values reach neither a loss nor a gradient."""
    logprob, entropy, reference, batch = random_case()

    def dirty(x):
        return np.where(batch.is_target_BT, x, garbage).astype(np.float32)

    clean = everything(logprob, entropy, reference, batch)
    got = everything(
        dirty(logprob),
        dirty(entropy),
        dirty(reference),
        batch.replace(
            sampler_logprob_BT=dirty(batch.sampler_logprob_BT),
            advantage_BT=dirty(batch.advantage_BT),
            weight_BT=dirty(batch.weight_BT),
        ),
    )
    for a, b in zip(got, clean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not got[-1][~batch.is_target_BT].any()


def test_a_mask_by_multiplication_would_leak() -> None:
    """Negative control of the test above: this is what `where` is for."""
    logprob, _, _, batch = random_case()
    dirty = np.where(batch.is_target_BT, logprob, np.nan)

    def multiplied(x):
        ratio = jnp.exp(x - batch.sampler_logprob_BT)
        return -jnp.sum(ratio * batch.advantage_BT * batch.weight_BT * batch.is_target_BT)

    assert np.isnan(jax.grad(multiplied)(jnp.asarray(dirty))).any()


def test_a_runaway_ratio_stays_finite() -> None:
    logprob, entropy, reference, batch = random_case()
    logprob = logprob + np.where(np.arange(7) == 2, 200.0, 0.0).astype(np.float32)
    for leaf in everything(logprob, entropy, reference, batch):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_corrections_the_loss_is_that_of_plain_rlvr(weight) -> None:
    """Bit for bit: an empty correction stream under any weight, and any stream under weight 0."""
    logprob, entropy, reference, batch = random_case()
    is_base = batch.is_target_BT & (batch.stream_BT == Stream.BASE)
    base_only = batch.replace(is_target_BT=is_base)
    kl = Kl(weight=0.1)

    def value_and_grad(batch, loss):
        return jax.value_and_grad(loss)(jnp.asarray(logprob), batch)

    def plain(x, batch):
        by_stream, _ = policy_loss(
            x, entropy, reference, batch, objective=Grpo(), kl=kl, importance=OFF
        )
        return by_stream[Stream.BASE]

    def joint(x, batch):
        return loss_of(x, entropy, reference, batch, kl=kl, weight=weight)

    expected = value_and_grad(base_only, plain)
    for got in [value_and_grad(base_only, joint)] + [value_and_grad(batch, joint)] * (weight == 0):
        assert got[0] == expected[0]
        np.testing.assert_array_equal(got[1], expected[1])
    # Negative control: with a weight, the corrections count.
    assert (
        value_and_grad(batch, lambda x, b: loss_of(x, entropy, reference, b, kl=kl))[0]
        != (expected[0])
    )


def test_microbatches_add_up() -> None:
    logprob, entropy, reference, batch = random_case(shape=(6, 7))

    def parts(rows):
        part = jax.tree.map(lambda x: x[rows] if np.ndim(x) else x, batch)
        return policy_loss(
            logprob[rows],
            entropy[rows],
            reference[rows],
            part,
            objective=Grpo(),
            kl=Kl(weight=1.0),
            importance=OFF,
        )

    whole = parts(slice(0, 6))
    split = [parts(slice(i, j)) for i, j in ((0, 1), (1, 4), (4, 6))]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *split)
    for a, b in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_no_targets_at_all() -> None:
    logprob, entropy, reference, batch = random_case()
    empty = batch.replace(is_target_BT=np.zeros_like(batch.is_target_BT))
    for leaf in everything(logprob, entropy, reference, empty):
        assert not leaf.any()
