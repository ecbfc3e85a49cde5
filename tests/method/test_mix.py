"""Packing: what comes out of the rows is what went in, and the loss is the same however packed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.config import (
    Config,
    Correction,
    GeneratedTask,
    Grpo,
    Kl,
    Prompts,
    RandomModel,
    Sampling,
    Train,
    Uncorrected,
)
from cipo_jax.method.losses import policy_loss
from cipo_jax.method.mix import Completion, Group, Mixed, max_rows, mix, packing
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import hidden_states, init
from cipo_jax.records import Batch, Stream

ARCH = PRESETS["tiny-llama"]
MAX_NEW_TOKENS = 12
PER_TOKEN = [
    name for name in Batch.__dataclass_fields__ if name not in ("num_rows", "old_logprob_BT")
]


def random_groups(seed=0, *, num_groups=5, num_samples=4, prompt=9, completion=MAX_NEW_TOKENS):
    """Groups of both streams with distinct tokens, some zero advantages and unknown verdicts."""
    rng = np.random.default_rng(seed)

    def one(stream):
        lengths = rng.integers(1, completion + 1, num_samples)
        return Group(
            stream=stream,
            prompt_P=rng.integers(1, ARCH.vocab_size, rng.integers(1, prompt + 1)),
            completions=[
                Completion(
                    token_C=rng.integers(1, ARCH.vocab_size, length),
                    logprob_C=rng.normal(-5.8, 0.2, length).astype(np.float32),
                )
                for length in lengths
            ],
            advantage_G=np.where(rng.random(num_samples) < 0.2, 0, rng.normal(size=num_samples)),
            is_valid_G=rng.random(num_samples) < 0.85,
        )

    return [one(Stream(i % 2)) for i in range(num_groups)]


def laid_out(
    groups,
    *,
    row_tokens=40,
    rows=40,
    keep=False,
    share=True,
    aggregation="seq-mean-token-mean",
    shared_denominator=False,
) -> Mixed:
    return mix(
        groups,
        objective=Grpo(aggregation=aggregation, shared_denominator=shared_denominator),
        train=Train(row_tokens=row_tokens, share_prompts=share),
        max_new_tokens=MAX_NEW_TOKENS,
        max_rows=rows,
        keep_zero_signal=keep,
    )


def mixed(groups, **options) -> Batch:
    return laid_out(groups, **options).batch


def trained(groups, *, keep=False):
    """The sequences that must be found in the rows."""
    return [
        (group, g)
        for group in groups
        for g in range(len(group.completions))
        if group.is_valid_G[g] and (keep or group.advantage_G[g] != 0)
    ]


def unpacked(batch: Batch):
    """Read the sequences back: (stream, prompt, completion, log-probs, advantage, weight) each,
    following only what the attention and the scorer follow."""
    found = []
    for b in range(int(batch.num_rows)):
        row = {name: np.asarray(getattr(batch, name))[b] for name in PER_TOKEN}
        for segment in np.unique(row["segment_BT"][row["is_target_BT"]]):
            here = np.flatnonzero(row["segment_BT"] == segment)
            (prefix,) = np.unique(row["prefix_BT"][here])
            before = np.flatnonzero(row["segment_BT"] == prefix)
            assert row["is_target_BT"][here].all()
            assert not row["is_target_BT"][before].any()
            assert (row["prefix_BT"][before] == prefix).all(), "a prompt sees only itself"
            assert before[-1] < here[0], "causality needs the prompt in front"
            everything = np.concatenate([before, here])
            assert row["position_BT"][everything].tolist() == list(range(len(everything)))
            assert row["predecessor_BT"][everything].tolist() == [0, *everything[:-1].tolist()]
            (stream,) = np.unique(row["stream_BT"][everything])
            (advantage,) = np.unique(row["advantage_BT"][here])
            (weight,) = np.unique(row["weight_BT"][here])
            found.append(
                (
                    int(stream),
                    tuple(row["token_BT"][before].tolist()),
                    tuple(row["token_BT"][here].tolist()),
                    tuple(row["sampler_logprob_BT"][here].tolist()),
                    float(advantage),
                    float(weight),
                )
            )
    return sorted(found)


def expected_sequences(groups, *, keep=False):
    """What `unpacked` must give with seq-mean-token-mean weights."""
    num_valid = {s: sum(g.is_valid_G.sum() for g in groups if g.stream == s) for s in Stream}
    return sorted(
        (
            int(group.stream),
            tuple(group.prompt_P.tolist()),
            tuple(group.completions[g].token_C.tolist()),
            tuple(group.completions[g].logprob_C.tolist()),
            float(np.float32(group.advantage_G[g])),
            float(np.float32(1 / (num_valid[group.stream] * len(group.completions[g].token_C)))),
        )
        for group, g in trained(groups, keep=keep)
    )


# --- layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_what_comes_out_is_what_went_in(share, keep, seed) -> None:
    groups = random_groups(seed)
    batch = mixed(groups, share=share, keep=keep)
    assert unpacked(batch) == expected_sequences(groups, keep=keep)
    # Outside of the sequences there is nothing but zeros.
    is_padding = batch.segment_BT == 0
    assert is_padding[int(batch.num_rows) :].all()
    for name in PER_TOKEN:
        if name != "num_rows":
            assert not getattr(batch, name)[is_padding].any(), name
    for name in ("sampler_logprob_BT", "advantage_BT", "weight_BT"):
        assert not getattr(batch, name)[~batch.is_target_BT].any(), name


def test_reading_back_would_notice_damage() -> None:
    """Negative control of the round trip: one wrong index anywhere is found."""
    batch = mixed(random_groups())
    b, t = (int(i[3]) for i in np.nonzero(batch.is_target_BT))
    for name in ("position_BT", "predecessor_BT", "prefix_BT", "stream_BT", "weight_BT"):
        damaged = getattr(batch, name).copy()
        damaged[b, t] += 1
        with pytest.raises((AssertionError, ValueError)):
            unpacked(batch.replace(**{name: damaged}))


def test_a_small_row_by_hand() -> None:
    # Prompt 7 8, completions 1 2 3 and 4, in a row of eight: the longer completion first.
    group = Group(
        stream=Stream.CORRECTION,
        prompt_P=np.array([7, 8]),
        completions=[
            Completion(token_C=np.array([4]), logprob_C=np.array([-0.4], np.float32)),
            Completion(token_C=np.array([1, 2, 3]), logprob_C=np.array([-1, -2, -3], np.float32)),
        ],
        advantage_G=np.array([-1.0, 2.0]),
        is_valid_G=np.array([True, True]),
    )
    batch = mixed([group], row_tokens=8, rows=1, aggregation="token-mean")
    assert batch.token_BT.tolist() == [[7, 8, 1, 2, 3, 4, 0, 0]]
    assert batch.position_BT.tolist() == [[0, 1, 2, 3, 4, 2, 0, 0]]
    assert batch.segment_BT.tolist() == [[1, 1, 2, 2, 2, 3, 0, 0]]
    assert batch.prefix_BT.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert batch.predecessor_BT.tolist() == [[0, 0, 1, 2, 3, 1, 0, 0]]
    assert batch.is_target_BT.tolist() == [[False] * 2 + [True] * 4 + [False] * 2]
    assert batch.advantage_BT.tolist() == [[0, 0, 2, 2, 2, -1, 0, 0]]
    assert batch.weight_BT.tolist() == [[0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0]]
    assert batch.stream_BT.tolist() == [[1] * 6 + [0] * 2]
    full = packing(batch)
    assert (full.num_rows, full.num_tokens, full.num_targets) == (1, 6, 4)
    assert full.padding_share == pytest.approx(2 / 8)


def test_shared_prompts_save_their_copies() -> None:
    groups = random_groups(num_groups=6)
    shared, copied = (packing(mixed(groups, share=share)) for share in (True, False))
    assert shared.num_targets == copied.num_targets
    assert shared.num_tokens < copied.num_tokens


def test_the_order_of_groups_does_not_matter_up_to_placement() -> None:
    groups = random_groups(3)
    straight, again, reversed_ = mixed(groups), mixed(groups), mixed(groups[::-1])
    for name in PER_TOKEN:
        np.testing.assert_array_equal(getattr(straight, name), getattr(again, name))
    assert unpacked(reversed_) == unpacked(straight)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_values_of_tokens_come_back_to_their_completions(share, keep) -> None:
    groups = random_groups(2)
    found = laid_out(groups, share=share, keep=keep)
    got = found.places.back(found.batch.token_BT)
    kept = [(id(group), g) for group, g in trained(groups, keep=keep)]
    for q, group in enumerate(groups):
        for g, completion in enumerate(group.completions):
            length = len(completion.token_C)
            expected = np.zeros(got.shape[-1])
            if (id(group), g) in kept:
                expected[:length] = completion.token_C
            np.testing.assert_array_equal(got[q, g], expected)


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_credited_afterwards_is_the_batch_of_these_advantages(share) -> None:
    """A penalty on divergence is known only when the batch has been scored."""
    groups = random_groups(2)
    silent = [dataclasses.replace(g, advantage_G=np.zeros(len(g.completions))) for g in groups]
    scored = laid_out(silent, share=share, keep=True)
    credited = scored.credited([group.advantage_G for group in groups])
    jax.tree.map(np.testing.assert_array_equal, credited, mixed(groups, share=share, keep=True))
    # Control: in another order the advantages land elsewhere.
    other = scored.credited([group.advantage_G for group in groups[::-1]])
    assert (other.advantage_BT != credited.advantage_BT).any()


def test_an_advantage_may_be_each_token_s_own() -> None:
    group = plain_group([3, 1])
    each = np.array([[1.0, 2.0, 0.0], [5.0, 9.0, 9.0]])  # 9: beyond the completion
    own = mixed([dataclasses.replace(group, advantage_G=each)], rows=1)
    assert own.advantage_BT[0, :7].tolist() == [0, 0, 1, 2, 0, 5, 0]
    same = mixed([dataclasses.replace(group, advantage_G=np.array([4.0, 5.0]))], rows=1)
    assert same.advantage_BT[0, :7].tolist() == [0, 0, 4, 4, 4, 5, 0]
    # A sequence has a signal if one of its tokens has.
    silent = dataclasses.replace(group, advantage_G=each * [[0], [1]])
    assert mixed([silent], rows=1).is_target_BT.sum() == 1


# --- weights ----------------------------------------------------------------------------------


def plain_group(lengths, *, stream=Stream.BASE, advantage=None, valid=None) -> Group:
    num = len(lengths)
    return Group(
        stream=stream,
        prompt_P=np.array([1, 2]),
        completions=[
            Completion(token_C=np.full(n, 3), logprob_C=np.zeros(n, np.float32)) for n in lengths
        ],
        advantage_G=np.ones(num) if advantage is None else np.asarray(advantage),
        is_valid_G=np.ones(num, bool) if valid is None else np.asarray(valid),
    )


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    # Token losses [1, 2, 3] and [4], L = 12:
    #   token-mean 10 / 4; mean of token means (2 + 4) / 2; mean of sums (6 + 4) / 2; that over L.
    [
        ("token-mean", 2.5),
        ("seq-mean-token-mean", 3.0),
        ("seq-mean-token-sum", 5.0),
        ("seq-mean-token-sum-norm", 5.0 / MAX_NEW_TOKENS),
    ],
)
@pytest.mark.parametrize("stream", list(Stream))
def test_aggregation_vector(aggregation, expected, stream) -> None:
    batch = mixed([plain_group([3, 1], stream=stream)], rows=1, aggregation=aggregation)
    loss = np.zeros(batch.weight_BT.shape)
    loss[0, 2:6] = [1, 2, 3, 4]
    assert (batch.weight_BT * loss).sum() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_denominators_count_valid_sequences_trained_on_or_not(aggregation) -> None:
    # Lengths 2, 4, 6; the second has no signal.
    def weights(**kwargs):
        batch = mixed(
            [plain_group([2, 4, 6], **kwargs), plain_group([5] * 3, stream=Stream.CORRECTION)],
            aggregation=aggregation,
        )
        return {
            int((batch.segment_BT[b] == s).sum()): float(
                batch.weight_BT[b][batch.segment_BT[b] == s][0]
            )
            for b in range(int(batch.num_rows))
            for s in np.unique(batch.segment_BT[b][batch.is_target_BT[b]])
            if batch.stream_BT[b][batch.segment_BT[b] == s][0] == Stream.BASE
        }

    everyone = weights()
    tokens = {"token-mean": 12, "seq-mean-token-mean": 3 * 2}[aggregation]
    assert everyone[2] == pytest.approx(1 / tokens)
    # No signal: left out of the rows, kept in the denominators. The other stream never counts.
    assert weights(advantage=[1, 0, -1]) == {2: everyone[2], 6: everyone[6]}
    # Unknown verdict: out of both.
    tokens = {"token-mean": 8, "seq-mean-token-mean": 2 * 2}[aggregation]
    without = weights(valid=[True, False, True])
    assert set(without) == {2, 6}
    assert without[2] == pytest.approx(1 / tokens)


def test_a_shared_denominator_counts_both_streams() -> None:
    # 6 and 3 tokens.
    groups = [plain_group([2, 4]), plain_group([3], stream=Stream.CORRECTION)]
    apart = mixed(groups, aggregation="token-mean")
    joint = mixed(groups, aggregation="token-mean", shared_denominator=True)
    assert np.unique(apart.weight_BT[apart.is_target_BT]) == pytest.approx([1 / 6, 1 / 3])
    assert np.unique(joint.weight_BT[joint.is_target_BT]) == pytest.approx([1 / 9])


def test_base_weights_do_not_know_the_corrections() -> None:
    groups = random_groups(2)
    base = [group for group in groups if group.stream == Stream.BASE]
    alone = unpacked(mixed(base))
    assert alone == [s for s in unpacked(mixed(groups)) if s[0] == Stream.BASE]
    assert alone


def test_nothing_to_train_on_is_an_empty_batch() -> None:
    for groups in ([], [plain_group([3, 2], advantage=[0, 0])]):
        batch = mixed(groups)
        assert batch.num_rows == 0
        assert not batch.is_target_BT.any()
        assert np.isnan(packing(batch).padding_share)
    assert mixed([plain_group([3, 2], advantage=[0, 0])], keep=True).num_rows == 1


# --- room -------------------------------------------------------------------------------------


def config(
    *, row_tokens, prompt, correction_prompt, new_tokens, samples, prompts, phi, share, at_once
):
    return Config(
        name="room",
        model=RandomModel(),
        tasks=GeneratedTask(),
        prompts=Prompts(max_prompt_tokens=prompt, max_correction_prompt_tokens=correction_prompt),
        sampling=Sampling(samples_per_prompt=samples, max_new_tokens=new_tokens),
        correction=Correction(prompts_per_base_prompt=phi),
        train=Train(
            prompts_per_step=prompts,
            row_tokens=row_tokens,
            share_prompts=share,
            rows_per_microbatch=at_once,
        ),
    )


def worst_groups(cfg, rng, law):
    """Groups with lengths up to the configuration's limits, drawn by one of three laws."""

    def lengths(num, limit):
        if law == "longest":
            return np.full(num, limit)
        if law == "half":  # just over what lets two stand side by side
            return np.minimum(limit, np.full(num, cfg.train.row_tokens // 2 + 1))
        return rng.integers(1, limit + 1, num)

    n, prompts = cfg.sampling.samples_per_prompt, cfg.prompts
    limits = [
        (Stream.BASE, cfg.train.prompts_per_step, prompts.max_prompt_tokens),
        (Stream.CORRECTION, cfg.num_anchors, prompts.max_correction_prompt_tokens),
    ]
    return [
        Group(
            stream=stream,
            prompt_P=np.ones(prompt, int),
            completions=[
                Completion(token_C=np.ones(c, int), logprob_C=np.zeros(c, np.float32))
                for c in lengths(n, cfg.sampling.max_new_tokens)
            ],
            advantage_G=np.ones(n),
            is_valid_G=np.ones(n, bool),
        )
        for stream, num, limit in limits
        for prompt in lengths(num, limit)
    ]


@pytest.mark.parametrize("law", ["longest", "half", "random"])
@pytest.mark.parametrize("share", [True, False])
def test_any_batch_fits_into_max_rows(law, share) -> None:
    rng = np.random.default_rng(0)
    fullest = 0.0
    for _ in range(40):
        prompt, correction_prompt, new_tokens = rng.integers(1, 40, 3).tolist()
        cfg = config(
            row_tokens=max(prompt, correction_prompt) + new_tokens + int(rng.integers(0, 60)),
            prompt=prompt,
            correction_prompt=correction_prompt,
            new_tokens=new_tokens,
            samples=int(rng.integers(2, 9)),
            prompts=int(rng.integers(1, 9)),
            phi=float(rng.choice([0, 0.5, 1, 2])),
            share=share,
            at_once=int(rng.integers(1, 5)),
        )
        rows = max_rows(cfg)
        assert rows % cfg.train.rows_per_microbatch == 0
        batch = mix(
            worst_groups(cfg, rng, law),
            objective=cfg.objective,
            train=cfg.train,
            max_new_tokens=cfg.sampling.max_new_tokens,
            max_rows=rows,
            keep_zero_signal=False,
        ).batch
        fullest = max(fullest, int(batch.num_rows) / rows)
    if law == "longest":
        assert fullest == 1.0, "the bound is reached"


def test_too_few_rows_are_refused() -> None:
    """Also the negative control of the test above: what does not fit is noticed."""
    groups = random_groups()
    needed = int(mixed(groups).num_rows)
    mixed(groups, rows=needed)
    with pytest.raises(ValueError, match=f"needs {needed} rows"):
        mixed(groups, rows=needed - 1)


def test_tokens_over_row_length_would_not_be_room_enough() -> None:
    # Four units of 6 in rows of 10: 24 tokens, but no two units share a row.
    groups = [plain_group([4]) for _ in range(4)]
    assert mixed(groups, row_tokens=10).num_rows == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_P": np.zeros(0, int)}, "prompt has no tokens"),
        ({"prompt_P": np.ones(39, int)}, "fit in a row of 40"),
        (
            {"completions": [Completion(token_C=np.zeros(0, int), logprob_C=np.zeros(0))] * 2},
            "has 0 tokens",
        ),
        (
            {"completions": [Completion(token_C=np.ones(13, int), logprob_C=np.zeros(13))] * 2},
            "has 13 tokens",
        ),
        (
            {"completions": [Completion(token_C=np.ones(3, int), logprob_C=np.zeros(1))] * 2},
            "3 tokens and 1 log-probs",
        ),
    ],
)
def test_impossible_groups_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        mixed([dataclasses.replace(plain_group([3, 2]), **change)])


# --- the loss through the real model ----------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    """Random weights, strong enough that a token seen by mistake moves the log-probs."""
    params = jax.jit(init, static_argnames="arch")(jax.random.key(0), arch=ARCH)
    params = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, params)
    return params.replace(head=8 * params.head)


@jax.jit
def value_and_grad(params, batch):
    """Losses of both streams, and the gradients of their sum."""

    def loss(params):
        hidden = hidden_states(
            params,
            batch.token_BT,
            batch.position_BT,
            batch.segment_BT,
            batch.prefix_BT,
            arch=ARCH,
            compute_dtype=jnp.float32,
            remat="none",
        )
        logprob, entropy = token_logprobs(
            params,
            hidden,
            batch.token_BT,
            batch.predecessor_BT,
            batch.is_target_BT,
            temperature=1.0,
            chunk=4096,
            arch=ARCH,
        )
        by_stream, _ = policy_loss(
            logprob,
            entropy,
            None,
            batch,
            objective=Grpo(),
            kl=Kl(weight=0.0),
            importance=Uncorrected(),
        )
        return by_stream.sum(), by_stream

    (_, by_stream), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return by_stream, grads


def one_sequence_per_row(groups, *, aggregation) -> Batch:
    """The reference: each valid sequence in a row of its own, weights written out afresh."""
    sequences = trained(groups, keep=True)
    rows = []
    for group, g in sequences:
        completion = group.completions[g]
        prompt, length = len(group.prompt_P), len(completion.token_C)
        total = prompt + length
        siblings = [len(o.completions[h].token_C) for o, h in sequences if o.stream == group.stream]
        weight = {
            "token-mean": 1 / sum(siblings),
            "seq-mean-token-mean": 1 / (len(siblings) * length),
            "seq-mean-token-sum": 1 / len(siblings),
            "seq-mean-token-sum-norm": 1 / (len(siblings) * MAX_NEW_TOKENS),
        }[aggregation]
        at = np.arange(total)
        is_target = at >= prompt
        rows.append(
            {
                "token": np.concatenate([group.prompt_P, completion.token_C]),
                "position": at,
                "segment": np.ones(total),
                "prefix": np.ones(total),
                "predecessor": np.maximum(at - 1, 0),
                "is_target": is_target,
                "sampler_logprob": np.concatenate([np.zeros(prompt), completion.logprob_C]),
                "advantage": is_target * group.advantage_G[g],
                "weight": is_target * weight,
                "stream": np.full(total, int(group.stream)),
            }
        )
    dtypes = {"is_target": bool} | dict.fromkeys(
        ("sampler_logprob", "advantage", "weight"), np.float32
    )
    fields = {f"{name}_BT": np.zeros(SHAPE, dtypes.get(name, np.int32)) for name in rows[0]}
    for b, row in enumerate(rows):
        for name, value_T in row.items():
            fields[f"{name}_BT"][b, : len(value_T)] = value_T
    return Batch(**fields, num_rows=np.int32(len(rows)))


def largest_difference(one, other):
    """Of losses and gradients, relative to the largest entry of each array."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-3)) for a, b in leaves
    )


GROUPS = random_groups(7, num_groups=4, num_samples=3)
SHAPE = (12, 40)  # of every batch that the model sees, so that it is compiled once


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
def test_packing_changes_neither_loss_nor_gradients(params, aggregation) -> None:
    reference = value_and_grad(params, one_sequence_per_row(GROUPS, aggregation=aggregation))
    assert (jnp.abs(reference[0]) > 1e-3).all()
    for share in (True, False):
        batch = mixed(GROUPS, share=share, rows=SHAPE[0], aggregation=aggregation)
        got = value_and_grad(params, batch)
        assert largest_difference(got, reference) < 1e-5
        np.testing.assert_allclose(got[0], reference[0], atol=1e-6)


def test_a_wrong_layout_would_be_noticed(params) -> None:
    """Negative control: what a completion sees, where it stands and what predicts it all matter."""
    batch = mixed(GROUPS, rows=SHAPE[0])
    good = value_and_grad(params, batch)
    in_use = batch.segment_BT > 0
    wrong = {
        "prefix_BT": batch.segment_BT,  # completions blind to their prompt
        "segment_BT": in_use.astype(np.int32),  # everyone in a row sees everyone before
        "position_BT": np.where(in_use, np.arange(SHAPE[1])[None, :], 0).astype(np.int32),
        "predecessor_BT": np.maximum(np.arange(SHAPE[1]) - 1, 0)[None, :].repeat(SHAPE[0], axis=0),
    }
    for name, value in wrong.items():
        bad = value_and_grad(params, batch.replace(**{name: value.astype(np.int32)}))
        assert largest_difference(bad, good) > 1e-3, name


def test_leaving_zero_signal_out_is_exact(params) -> None:
    skipped, kept = (
        value_and_grad(params, mixed(GROUPS, rows=SHAPE[0], keep=keep)) for keep in (False, True)
    )
    assert mixed(GROUPS, keep=True).is_target_BT.sum() > mixed(GROUPS).is_target_BT.sum()
    assert largest_difference(skipped, kept) < 1e-5
    # Negative control: a sequence that has a signal is missed.
    batch = mixed(GROUPS, rows=SHAPE[0])
    b, t = (int(i[0]) for i in np.nonzero(batch.is_target_BT))
    is_first = (np.arange(SHAPE[0])[:, None] == b) & (batch.segment_BT == batch.segment_BT[b, t])
    without = batch.replace(is_target_BT=batch.is_target_BT & ~is_first)
    assert largest_difference(value_and_grad(params, without), kept) > 1e-3
