"""The gap between sampler and trainer by bucket, against a walk over the completions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.config import ParityMask, ParityOff, ParityStop, ParityWarn
from cipo_jax.method import gaps
from cipo_jax.method.gaps import BUCKETS, Gaps
from tests.batches import random_batch

measure = jax.jit(gaps.measure)
mask_outliers = jax.jit(gaps.mask_outliers, static_argnames="parity")

ROWS, TOKENS = 4, 1000  # rows long enough for several buckets


@pytest.fixture(scope="module")
def batch():
    return random_batch(ROWS, TOKENS, vocab_size=320, num_used=3)


@pytest.fixture(scope="module")
def logprob(batch):
    noise = np.random.default_rng(1).normal(0, 0.3, batch.token_BT.shape)
    noise[~batch.is_target_BT] = np.nan
    return (batch.sampler_logprob_BT + noise).astype(np.float32)


def completions(batch):
    """(row, indices, length of the prompt) of every completion."""
    for row in range(ROWS):
        segments = batch.segment_BT[row]
        for segment in np.unique(segments[batch.is_target_BT[row]]):
            (indices,) = np.nonzero(segments == segment)
            prompt = np.sum(segments == batch.prefix_BT[row, indices[0]])
            yield row, indices, int(prompt)


def walked(batch, logprob):
    """Every gap under the names of its buckets, one token at a time."""
    found = {name: [] for name in BUCKETS}
    for row, indices, prompt in completions(batch):
        for place, index in enumerate(indices):
            gap = abs(logprob[row, index] - batch.sampler_logprob_BT[row, index])
            found["all"].append(gap)
            if place == 0:
                found["first"].append(gap)
            if place == len(indices) - 1:
                found["last"].append(gap)
            found[f"position_{max(p for p in gaps.POSITIONS if p <= place)}"].append(gap)
            found[f"prompt_{max(p for p in gaps.PROMPTS if p <= prompt)}"].append(gap)
    return found


def test_buckets_are_those_of_a_walk_over_the_completions(batch, logprob):
    found, expected = measure(logprob, batch), walked(batch, logprob)
    for i, name in enumerate(BUCKETS):
        assert found.count[i] == len(expected[name]), name
        np.testing.assert_allclose(found.total[i], sum(expected[name]), rtol=1e-5)
        np.testing.assert_allclose(found.largest[i], max(expected[name], default=0), rtol=1e-6)
    filled = {name for name in BUCKETS if expected[name]}
    assert {"position_0", "position_16", "position_64", "prompt_0", "prompt_64"} <= filled
    assert len(filled) < len(BUCKETS)  # and an empty one is 0


def test_parts_add_up(batch, logprob):
    def rows(x, part):
        return x[part] if np.ndim(x) else x

    parts = [slice(0, 2), slice(2, 4)]
    added = Gaps.none()
    for part in parts:
        added += measure(logprob[part], jax.tree.map(lambda x, p=part: rows(x, p), batch))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, measure(logprob, batch)
    )


def test_completions_beyond_the_limits_are_masked_whole(batch, logprob):
    parity = ParityMask(mean_nats=0.25, max_nats=1.0)
    masked, num_masked = mask_outliers(logprob, batch, parity=parity)
    kept, expected = np.asarray(masked.is_target_BT), 0
    outcomes = set()
    for row, indices, _ in completions(batch):
        gap = np.abs(logprob - batch.sampler_logprob_BT)[row, indices]
        is_within = gap.mean() <= 0.25 and gap.max() <= 1.0
        outcomes.add((is_within, bool(gap.max() <= 1.0)))
        assert (kept[row, indices] == is_within).all()
        expected += 0 if is_within else len(indices)
    assert num_masked == expected
    # Some are kept, and some go for either limit.
    assert outcomes == {(True, True), (False, True), (False, False)}
    assert not kept[~batch.is_target_BT].any()
    np.testing.assert_array_equal(masked.weight_BT, batch.weight_BT)


def test_a_gap_that_is_not_finite_is_beyond_every_limit(batch):
    logprob = np.array(batch.sampler_logprob_BT)
    row, indices, _ = next(completions(batch))
    logprob[row, indices[0]] = np.nan
    _, num_masked = mask_outliers(logprob, batch, parity=ParityMask(mean_nats=9.0, max_nats=9.0))
    assert num_masked == len(indices)
    found = measure(jnp.asarray(logprob), batch)
    assert gaps.is_beyond(found, num_masked, parity=ParityStop(mean_nats=9.0, max_nats=9.0))


def test_limits_of_a_step(batch, logprob):
    found, none = measure(logprob, batch), jnp.float32(0)
    mean, largest = found.total[0] / found.count[0], found.largest[0]

    def is_beyond(mean_nats, max_nats):
        parity = ParityWarn(mean_nats=float(mean_nats), max_nats=float(max_nats))
        return bool(gaps.is_beyond(found, none, parity=parity))

    assert not is_beyond(1.01 * mean, 1.01 * largest)
    assert is_beyond(0.99 * mean, 1.01 * largest)
    assert is_beyond(1.01 * mean, 0.99 * largest)
    assert not gaps.is_beyond(found, none, parity=ParityOff())
    idle = dataclasses.replace(batch, is_target_BT=np.zeros_like(batch.is_target_BT))
    assert not gaps.is_beyond(measure(logprob, idle), none, parity=ParityWarn())


def test_limits_that_limit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"parity.max_nats is inf"):
        ParityWarn(max_nats=float("inf"))
    with pytest.raises(ValueError, match=r"parity.mean_nats is 0"):
        ParityMask(mean_nats=0.0)
