"""What a token gains under each objective: hand-worked values, differences and limits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.config import (
    Cispo,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    Kl,
    MaskedSequence,
    MaskedToken,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
    SequenceTis,
    TokenTis,
    Train,
    Uncorrected,
)
from cipo_jax.method.gains import clipped_ratio, clipped_weight, token_gain
from cipo_jax.method.importance import importance_weight
from cipo_jax.method.losses import divergence, policy_loss
from cipo_jax.method.mix import Completion, Group, Mixed, mix
from cipo_jax.method.sequences import sequence_mean, sequence_sum
from cipo_jax.records import Batch, Stream

pytestmark = pytest.mark.slow

KL = Kl(weight=0.1)
WIDE = {"clip_low": 0.2, "clip_high": 0.28}
# Every objective, with clip ranges that the random cases below reach into.
OBJECTIVES = {
    "grpo": Grpo(**WIDE, entropy_bonus=0.01),
    "grpo dual": Grpo(**WIDE, dual_clip=1.4),
    "dr_grpo": DrGrpo(**WIDE),
    "dapo": Dapo(),
    "gspo": Gspo(clip_low=0.05, clip_high=0.1),
    "cispo": Cispo(min_weight=0.8, max_weight=1.3),
    "rloo": Rloo(),
    "reinforce++": ReinforcePlusPlus(),
    "reinforce++ baseline": ReinforcePlusPlusBaseline(),
}
CORRECTIONS = {
    "none": Uncorrected(),
    "token": TokenTis(max_weight=1.2),
    "sequence": SequenceTis(max_weight=1.2),
    "masked token": MaskedToken(min_weight=0.8, max_weight=1.3),
    "masked sequence": MaskedSequence(min_weight=0.7, max_weight=1.5),
}


def row_of(*, segment, logprob, old=None, sampler=None, advantage, is_target=None) -> tuple:
    """Log-probs and a batch of one row; every token is a target where nothing else is said."""
    shape = np.shape([segment])
    batch = Batch.empty(*shape).replace(
        segment_BT=np.array([segment], np.int32),
        is_target_BT=np.ones(shape, bool) if is_target is None else np.array([is_target]),
        sampler_logprob_BT=np.array([old if sampler is None else sampler], np.float32),
        advantage_BT=np.array([advantage], np.float32),
        weight_BT=np.ones(shape, np.float32),
        num_rows=np.int32(1),
        old_logprob_BT=None if old is None else np.array([old], np.float32),
    )
    return jnp.array([logprob], jnp.float32), batch


# --- by hand ----------------------------------------------------------------------------------


def test_dual_clip_bounds_what_a_bad_token_costs() -> None:
    # Clip .2, dual 3.  A = -2: w = 5: min(-10, -2.4) = -10, but at most 3 * 2 lost: -6, gradient 0.
    #                           w = 1.5: -3, as without.  w = .5: min(-1, -1.6) = -1.6, clipped.
    #                   A = +2, w = 5: 2.4: the dual clip is for negative advantages alone.
    ratio, advantage = jnp.array([[5.0, 1.5, 0.5, 5.0]]), jnp.array([[-2.0, -2.0, -2.0, 2.0]])
    gain, is_bounded = clipped_ratio(jnp.log(ratio), advantage, low=0.2, high=0.2, dual=3.0)
    np.testing.assert_allclose(gain, [[-6.0, -3.0, -1.6, 2.4]], rtol=1e-6)
    assert is_bounded.tolist() == [[True, False, True, True]]
    without, _ = clipped_ratio(jnp.log(ratio), advantage, low=0.2, high=0.2)
    np.testing.assert_allclose(without, [[-10.0, -3.0, -1.6, 2.4]], rtol=1e-6)


# Three sequences in a row, behind a prompt that is no target:
#   2: ratios 2, .5, 1, product 1           A = +2
#   3: ratios 1.1, 1.1, product 1.21        A = +2
#   4: the same                             A = -2
SEGMENT = [1, 2, 2, 2, 3, 3, 4, 4]
RATIO = np.array([9.0, 2.0, 0.5, 1.0, 1.1, 1.1, 1.1, 1.1])
ADVANTAGE = [7.0, 2.0, 2.0, 2.0, 2.0, 2.0, -2.0, -2.0]
IS_TARGET = [False] + [True] * 7


def three_sequences() -> tuple:
    old = np.full(8, -1.5)
    return row_of(
        segment=SEGMENT,
        logprob=np.where(IS_TARGET, old + np.log(RATIO), 0),
        old=np.where(IS_TARGET, old, 0),
        advantage=np.where(IS_TARGET, ADVANTAGE, 0),
        is_target=IS_TARGET,
    )


@pytest.mark.parametrize(
    ("objective", "gain", "is_bounded"),
    [
        # Geometric means 1, 1.1, 1.1. Clip 4e-4 above: 1.0004 * 2; the bad sequence is not clipped.
        (Gspo(), [2, 2, 2, 2.0008, 2.0008, -2.2, -2.2], [0, 0, 0, 1, 1, 0, 0]),
        # Products 1, 1.21, 1.21. Clip .2 above: 1.2 * 2.
        (Rloo(), [2, 2, 2, 2.4, 2.4, -2.42, -2.42], [0, 0, 0, 1, 1, 0, 0]),
        # Each token for itself: 1.2 * 2, .5 * 2 (the lower clip is for bad tokens), 2, 2.2, -2.2.
        (Grpo(), [2.4, 1, 2, 2.2, 2.2, -2.2, -2.2], [1, 0, 0, 0, 0, 0, 0]),
        # Weights at most 1.5, times A * logprob = A * (-1.5 + log w).
        (
            Cispo(max_weight=1.5),
            [
                1.5 * 2 * (-1.5 + np.log(2)),
                0.5 * 2 * (-1.5 - np.log(2)),
                2 * -1.5,
                1.1 * 2 * (-1.5 + np.log(1.1)),
                1.1 * 2 * (-1.5 + np.log(1.1)),
                1.1 * -2 * (-1.5 + np.log(1.1)),
                1.1 * -2 * (-1.5 + np.log(1.1)),
            ],
            [1, 0, 0, 0, 0, 0, 0],
        ),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_ratio_of_a_token_and_of_a_sequence(objective, gain, is_bounded) -> None:
    logprob, batch = three_sequences()
    got, bounded = token_gain(logprob, batch.old_logprob_BT, batch, objective=objective)
    np.testing.assert_allclose(got[0, 1:], gain, rtol=2e-6)
    assert bounded[0, 1:].tolist() == [bool(x) for x in is_bounded]


@pytest.mark.parametrize(
    ("importance", "weight"),
    # The trainer's log-probs are above the sampler's by log q, q as RATIO above: tokens 2, .5, 1,
    # 1.1, 1.1, 1.1, 1.1; sequences 1, 1.21, 1.21.
    [
        (Uncorrected(), [1, 1, 1, 1, 1, 1, 1]),
        (TokenTis(max_weight=1.05), [1.05, 0.5, 1, 1.05, 1.05, 1.05, 1.05]),
        (SequenceTis(max_weight=1.05), [1, 1, 1, 1.05, 1.05, 1.05, 1.05]),
        (MaskedToken(min_weight=0.6, max_weight=1.9), [0, 0, 1, 1.1, 1.1, 1.1, 1.1]),
        (MaskedSequence(max_weight=1.2), [1, 1, 1, 0, 0, 0, 0]),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_importance_weights(importance, weight) -> None:
    logprob, batch = three_sequences()
    got, is_bounded = importance_weight(logprob, batch, importance=importance)
    np.testing.assert_allclose(got[0, 1:], weight, rtol=1e-6)
    changed = ~np.isclose(weight, 1) & ~np.isclose(weight, RATIO[1:])
    changed &= ~np.isclose(weight, [1, 1, 1, 1.21, 1.21, 1.21, 1.21])
    np.testing.assert_array_equal(is_bounded[0, 1:], changed)


def test_importance_multiplies_the_policy_term_alone() -> None:
    """q = .5 everywhere: half the policy term, all of the divergence and of the entropy."""
    logprob, batch = three_sequences()
    batch = dataclasses.replace(
        batch, sampler_logprob_BT=np.asarray(batch.old_logprob_BT) + np.log(2) * np.array(IS_TARGET)
    )
    entropy, reference = jnp.full((1, 8), 0.3), logprob - 0.5
    kl = Kl(weight=0.1, estimator="k2")

    def loss(importance, kl, bonus):
        objective = Grpo(entropy_bonus=bonus)
        by_stream, _ = policy_loss(
            logprob, entropy, reference, batch, objective=objective, kl=kl, importance=importance
        )
        return by_stream[Stream.BASE]

    half = TokenTis(max_weight=2.0)
    policy_term = loss(half, dataclasses.replace(kl, weight=0.0), 0.0)
    # 7 targets: k2 = .125 each at weight .1; entropy .3 each at weight .01.
    assert loss(half, kl, 0.01) - policy_term == pytest.approx(7 * (0.0125 - 0.003), rel=1e-5)
    gain, _ = token_gain(logprob, batch.old_logprob_BT, batch, objective=Grpo())
    assert policy_term == pytest.approx(-0.5 * float(gain.sum()), rel=1e-5)


# --- sums over sequences ----------------------------------------------------------------------


def test_sums_over_sequences() -> None:
    value = np.array([[9.0, 1, 2, 4, 10, 20, 5, 7]])
    segment, is_target = np.array([SEGMENT]), np.array([IS_TARGET])
    total = sequence_sum(value, segment, is_target)
    np.testing.assert_array_equal(total, [[0, 7, 7, 7, 30, 30, 12, 12]])
    mean = sequence_mean(value, segment, is_target)
    np.testing.assert_allclose(mean, [[0, 7 / 3, 7 / 3, 7 / 3, 15, 15, 6, 6]], rtol=1e-6)
    # What is no target is not read, whatever it holds.
    dirty = np.where(is_target, value, np.nan), np.where(is_target, segment, -(10**6)), is_target
    np.testing.assert_array_equal(sequence_sum(*dirty), total)


def test_no_array_of_tokens_times_tokens() -> None:
    """Largest intermediate array of the loss and its gradient: rows times tokens, and a place for
    what is no target."""
    rows, tokens = 3, 64
    shape = (rows, tokens)
    batch = row_of(segment=[1], logprob=[0.0], old=[0.0], advantage=[1.0])[1]
    batch = jax.tree.map(lambda x: np.broadcast_to(x, shape) if np.ndim(x) else x, batch)

    def sizes(function):
        jaxpr = jax.make_jaxpr(jax.grad(function))(jnp.zeros(shape)).jaxpr
        found, stack = [], [jaxpr]
        while stack:
            for eqn in stack.pop().eqns:
                found += [v.aval.size for v in eqn.outvars]
                stack += [
                    getattr(p, "jaxpr", p)
                    for p in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))
                    if hasattr(p, "eqns") or hasattr(p, "jaxpr")
                ]
        return max(found)

    def loss(x):
        by_stream, _ = policy_loss(
            x,
            x,
            None,
            batch,
            objective=Gspo(),
            kl=Kl(),
            importance=SequenceTis(),
        )
        return by_stream.sum()

    assert sizes(loss) <= 4 * rows * (tokens + 1)
    # Control: a mask of tokens times tokens would be found.
    same = batch.segment_BT[:, :, None] == batch.segment_BT[:, None, :]
    assert sizes(lambda x: jnp.sum(jnp.where(same, x[:, None, :], 0.0) ** 2)) >= rows * tokens**2


# --- random packed cases ----------------------------------------------------------------------


MAX_NEW_TOKENS = 9
ROWS, ROW = 18, 48


def random_groups(seed=0, *, num_groups=6, num_samples=3, spread=0.25) -> list[Group]:
    rng = np.random.default_rng(seed)

    def one(stream):
        lengths = rng.integers(4, MAX_NEW_TOKENS + 1, num_samples)
        return Group(
            stream=stream,
            prompt_P=rng.integers(1, 90, rng.integers(4, 6)),
            completions=[
                Completion(
                    token_C=rng.integers(1, 90, length),
                    logprob_C=-rng.exponential(1.0, length).astype(np.float32),
                )
                for length in lengths
            ],
            advantage_G=rng.normal(size=num_samples),
            is_valid_G=np.ones(num_samples, bool),
        )

    return [one(Stream(i % 2)) for i in range(num_groups)]


def shifted(groups, seed, spread) -> list[Group]:
    """The groups with other log-probs: a draw that belongs to each token, not to its place."""

    def moved(completion):
        tag = [seed, *completion.token_C.tolist()]
        noise = np.random.default_rng(tag).normal(size=len(completion.token_C))
        moved = completion.logprob_C + spread * noise.astype(np.float32)
        return dataclasses.replace(completion, logprob_C=moved.astype(np.float32))

    return [
        dataclasses.replace(group, completions=[moved(c) for c in group.completions])
        for group in groups
    ]


def laid_out(groups, objective, *, row_tokens, rows, share=True) -> tuple:
    """(log-probs, reference, batch, places) with old log-probs apart from the sampler's."""
    train = Train(row_tokens=row_tokens, share_prompts=share)

    def lay(groups) -> Mixed:
        return mix(
            groups,
            objective=objective,
            train=train,
            max_new_tokens=MAX_NEW_TOKENS,
            max_rows=rows,
            keep_zero_signal=True,
        )

    mixed = lay(groups)
    old, new, reference = (
        lay(shifted(groups, seed, spread)).batch.sampler_logprob_BT
        for seed, spread in ((1, 0.15), (2, 0.25), (3, 0.4))
    )
    batch = dataclasses.replace(mixed.batch, old_logprob_BT=old)
    return new, reference, batch, mixed.places


@functools.partial(
    jax.jit,
    static_argnames=("objective", "importance", "kl"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def everything(logprob, reference, batch, objective, importance, kl=KL):
    """Losses of both streams, metric sums, and the gradient of each token; -log-prob serves as the
    entropy."""

    def loss(x):
        by_stream, sums = policy_loss(
            x, -x, reference, batch, objective=objective, kl=kl, importance=importance
        )
        return by_stream.sum(), (by_stream, sums)

    (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(logprob)
    return *aux, gradient


CASES = [
    pytest.param(objective, importance, id=f"{name}, {correction}")
    for (name, objective), (correction, importance) in zip(
        OBJECTIVES.items(), (list(CORRECTIONS.items()) * 2)[: len(OBJECTIVES)], strict=True
    )
]


@pytest.mark.parametrize(("objective", "importance"), CASES)
def test_gradient_equals_finite_differences(objective, importance) -> None:
    new, reference, batch, _ = laid_out(random_groups(), objective, row_tokens=40, rows=8)
    with jax.enable_x64(True):
        x = jnp.asarray(new, jnp.float64)
        wide = jax.tree.map(
            lambda y: jnp.asarray(y, jnp.float64) if np.asarray(y).dtype == np.float32 else y, batch
        )
        got = everything(x, reference, wide, objective, importance)[-1]

        def loss(x):
            by_stream, _, _ = everything(x, reference, wide, objective, importance)
            return float(by_stream.sum())

        for b, t in np.argwhere(batch.is_target_BT)[::7]:
            if isinstance(objective, Cispo):
                break
            step = jnp.zeros_like(x).at[b, t].set(1e-6)
            numeric = (loss(x + step) - loss(x - step)) / 2e-6
            assert float(got[b, t]) == pytest.approx(numeric, abs=1e-6)
        if isinstance(objective, Cispo):
            # Its weight has no gradient: hold it, and the rest is weight * A * logprob.
            weight = jnp.clip(jnp.exp(x - wide.sampler_logprob_BT), 0.8, 1.3)
            q = 1.0
            if not isinstance(importance, Uncorrected):
                weight = jnp.clip(jnp.exp(x - wide.old_logprob_BT), 0.8, 1.3)
                q, _ = importance_weight(wide.old_logprob_BT, wide, importance=importance)
            d = x - reference
            rest = 0.1 * (1 - jnp.exp(-d))  # of k3
            expected = wide.weight_BT * (-q * weight * wide.advantage_BT + rest)
            np.testing.assert_allclose(
                got, jnp.where(batch.is_target_BT, expected, 0), atol=1e-9, rtol=1e-6
            )
    _, sums, _ = everything(new, reference, batch, objective, importance)
    assert sums["policy/clip_share"][0] > 1, "the case must reach into the clip"


@pytest.mark.parametrize(("objective", "importance"), CASES)
def test_packed_is_unpacked_split_is_whole_permuted_is_permuted(objective, importance) -> None:
    groups = random_groups(1)

    def found(groups, *, row_tokens=ROW, share=True):
        """All arrays are filled up to one shape, so that they share a compiled program."""
        *arrays, places = laid_out(groups, objective, row_tokens=row_tokens, rows=ROWS, share=share)
        missing = [(0, 0), (0, ROW - row_tokens)]
        arrays = jax.tree.map(lambda x: np.pad(x, missing) if np.ndim(x) else x, arrays)
        by_stream, sums, gradient = everything(*arrays, objective, importance)
        per_token = places.back(np.asarray(gradient))
        return by_stream, sums, per_token, arrays

    # One sequence to a row (the shortest has 8 tokens): nothing to mix up.
    reference = found(groups, row_tokens=14, share=False)
    assert np.abs(reference[0]).min() > 1e-3
    assert int(reference[3][2].num_rows) == ROWS

    def same(one, other):
        return all(
            np.allclose(a, b, atol=1e-6, rtol=1e-6)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        )

    packed = found(groups)
    assert int(packed[3][2].num_rows) < ROWS // 2
    assert same(packed[:3], reference[:3])
    order = np.random.default_rng(0).permutation(len(groups))
    permuted = found([groups[i] for i in order])
    assert same(permuted[:2], packed[:2])
    assert same(permuted[2], packed[2][order])

    # Rows in two halves, added up.
    def some_rows(rows):
        def cut(x):
            return np.pad(x[rows], [(0, ROWS - len(x[rows])), (0, 0)]) if np.ndim(x) else x

        return everything(*jax.tree.map(cut, packed[3]), objective, importance)

    halves = [some_rows(slice(0, 2)), some_rows(slice(2, ROWS))]
    assert all(half[1]["policy/ratio"][1] > 0 for half in halves)
    assert same(jax.tree.map(lambda *x: sum(x), *[h[:2] for h in halves]), packed[:2])

    # Control: one sequence that is not there, or stands in another stream, is seen.
    assert not same(found(groups[:-1])[0], packed[0])
    if isinstance(objective, Gspo | Rloo) or "sequence" in importance.kind:
        # Control: sequences that are taken for one are seen.
        new, ref, batch = packed[3]
        merged = dataclasses.replace(batch, segment_BT=np.ones_like(batch.segment_BT))
        assert not same(everything(new, ref, merged, objective, importance)[0], packed[0])


# --- limits -----------------------------------------------------------------------------------


def gradient_of(objective, logprob, batch, importance=CORRECTIONS["none"]):
    return np.asarray(everything(logprob, None, batch, objective, importance, kl=Kl())[-1])


@pytest.mark.parametrize(
    ("name", "correction"),
    [(name, "none") for name in OBJECTIVES if name != "grpo"]  # its entropy bonus is no REINFORCE
    + [(name, "token") for name in ("grpo dual", "gspo", "cispo", "rloo")],
)
def test_on_the_first_update_every_objective_is_reinforce(name, correction) -> None:
    """At ratio 1: -weight * q * A at each token. With importance correction the ratio is exactly 1,
    however far the sampler is off; without, it is 1 where the sampler is not off."""
    new, _, batch, _ = laid_out(random_groups(2), OBJECTIVES[name], row_tokens=48, rows=8)
    batch = dataclasses.replace(batch, old_logprob_BT=None)
    importance = CORRECTIONS[correction]
    q = np.ones_like(new)
    if correction == "none":
        new = batch.sampler_logprob_BT
    else:
        q = np.minimum(np.exp(new - batch.sampler_logprob_BT), 1.2)
        assert ((q > 1.15) & batch.is_target_BT).any(), "the sampler must be off"
    got = gradient_of(OBJECTIVES[name], new, batch, importance)
    expected = np.where(batch.is_target_BT, -batch.weight_BT * q * batch.advantage_BT, 0)
    if name == "rloo":  # the gain is the sequence's, and so is its gradient: length times a token's
        length = sequence_sum(np.ones_like(new), batch.segment_BT, batch.is_target_BT)
        if correction == "none":
            expected = expected * length
        else:  # the mean of q over the sequence times its length
            expected = np.asarray(sequence_sum(expected, batch.segment_BT, batch.is_target_BT))
    elif name == "gspo" and correction == "token":
        expected = np.asarray(sequence_mean(expected, batch.segment_BT, batch.is_target_BT))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_limits_in_which_two_objectives_meet() -> None:
    clip = {"clip_low": 0.1, "clip_high": 0.1}
    single = [
        dataclasses.replace(
            group,
            completions=[
                Completion(token_C=c.token_C[:1], logprob_C=c.logprob_C[:1])
                for c in group.completions
            ],
        )
        for group in random_groups(4)
    ]

    def loss(groups, objective):
        new, _, batch, _ = laid_out(groups, objective, row_tokens=48, rows=8)
        return np.asarray(everything(new, None, batch, objective, Uncorrected(), kl=Kl())[0])

    several = random_groups(4)
    grpo = Grpo(**clip)
    # Sequences of one token: their ratio is the token's, as geometric mean and as product.
    for objective in (Gspo(**clip), Rloo(**clip)):
        np.testing.assert_allclose(loss(single, objective), loss(single, grpo), rtol=1e-6)
        assert np.abs(loss(several, objective) - loss(several, grpo)).max() > 1e-3  # control
    # DAPO with equal clips is GRPO's token mean.
    token_mean = Grpo(**clip, aggregation="token-mean")
    np.testing.assert_array_equal(loss(several, Dapo(**clip)), loss(several, token_mean))
    assert np.abs(loss(several, Dapo()) - loss(several, token_mean)).max() > 1e-4
    # Dr. GRPO is GRPO under its aggregation; a dual clip out of reach is none.
    np.testing.assert_array_equal(
        loss(several, DrGrpo(**clip)),
        loss(several, Grpo(**clip, aggregation="seq-mean-token-sum-norm")),
    )
    np.testing.assert_array_equal(loss(several, Grpo(**clip, dual_clip=100.0)), loss(several, grpo))


def test_cispo_gradient_is_the_bounded_weight_times_the_score() -> None:
    # w = 8, .1, 1 with bounds [.5, 5]: 5 A, .5 A, A; PPO's clip would cut the first of these.
    old = jnp.log(jnp.array([[0.1, 0.9, 0.5]]))
    logprob = old + jnp.log(jnp.array([[8.0, 0.1, 1.0]]))
    advantage = jnp.array([[2.0, 3.0, -4.0]])

    def gain(x):
        return clipped_weight(x, old, advantage, low=0.5, high=5.0)[0].sum()

    np.testing.assert_allclose(jax.grad(gain)(logprob), [[10.0, 1.5, -4.0]], rtol=1e-5)
    cut = jax.grad(lambda x: clipped_ratio(x - old, advantage, low=0.2, high=0.2)[0].sum())
    assert cut(logprob)[0, 0] == 0


def test_k1_in_the_loss_pulls_nowhere_and_k2_pulls_home() -> None:
    """Mean gradient over all tokens of a small law, exactly: sum over v of p(v) d k(v) / d logits.

    k1 has mean zero; k2 has the gradient of KL(p || q); k3 that of KL(q || p)."""
    logits = jnp.array([0.3, -0.2, 0.9])
    reference = jax.nn.log_softmax(jnp.array([0.1, 0.5, -0.4]))
    prob = jax.nn.softmax(logits)

    def mean_gradient(estimator):
        def expected(logits):
            d = jax.nn.log_softmax(logits) - reference
            return jnp.sum(prob * divergence(d[None], estimator=estimator)[0])

        return jax.grad(expected)(logits)

    def reverse(logits):
        return jnp.sum(jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - reference))

    def forward(logits):
        return jnp.sum(jnp.exp(reference) * (reference - jax.nn.log_softmax(logits)))

    np.testing.assert_allclose(mean_gradient("k1"), 0.0, atol=1e-7)
    np.testing.assert_allclose(mean_gradient("k2"), jax.grad(reverse)(logits), atol=1e-6)
    np.testing.assert_allclose(mean_gradient("k3"), jax.grad(forward)(logits), atol=1e-6)
    assert np.abs(jax.grad(reverse)(logits)).max() > 0.1
