"""Which attempts are selected: counts, preference, guards, and independence of order."""

import json
from collections import Counter

import numpy as np
import pytest

from cipo_jax.config import Band, Correction, FailuresOnly, Fixed, Soft
from cipo_jax.method.anchors import (
    Anchor,
    Sampled,
    is_in_band,
    one_right_per_prompt,
    select,
    soft_weight,
)
from cipo_jax.method.buffer import AttemptBuffer, BufferedAttempt


def flags(pass_counts, *, num_samples=8):
    """Right flags [Q, G] with the given number of right samples in each row."""
    return np.arange(num_samples)[None, :] < np.asarray(pass_counts)[:, None]


def chosen(
    is_right,
    *,
    num_anchors,
    ratio=0.5,
    seed=0,
    key_id=None,
    valid=None,
    finished=None,
    buffer=None,
    **correction,
):
    everything = np.ones(is_right.shape, bool)
    return select(
        np.arange(len(is_right)) if key_id is None else key_id,
        is_right,
        everything if valid is None else valid,
        everything if finished is None else finished,
        num_anchors=num_anchors,
        ratio=ratio,
        correction=Correction(**correction),
        rng=np.random.default_rng(seed),
        buffer=buffer,
    )


def counts(anchors):
    return sum(a.is_right for a in anchors), sum(not a.is_right for a in anchors)


MIXED = flags([4, 2, 6, 1])  # 13 right, 19 wrong


@pytest.mark.parametrize(
    ("pass_counts", "num_anchors", "ratio", "right", "wrong"),
    [
        ([4, 4], 8, 0.3, 2, 6),  # floor(2.4) right, the rest wrong
        ([4, 4], 10, 0.7, 7, 3),  # 10 * .7 is 7, not 6.999
        ([1, 0], 8, 0.5, 1, 7),  # one right candidate: wrong ones take its place
        ([8, 7], 8, 0.25, 7, 1),  # one wrong candidate: right ones fill
        ([8, 8], 8, 0.25, 8, 0),  # none: all right
        ([0, 0], 8, 0.25, 0, 8),
        ([4, 4], 100, 0.5, 8, 8),  # fewer candidates than places is legal
        ([4, 4], 0, 0.5, 0, 0),
    ],
)
def test_counts(pass_counts, num_anchors, ratio, right, wrong) -> None:
    anchors = chosen(flags(pass_counts), num_anchors=num_anchors, ratio=ratio)
    assert counts(anchors) == (right, wrong)
    assert len({a.source for a in anchors}) == len(anchors), "no attempt twice"


def test_ratio_zero_takes_failures_and_fills_with_right_ones() -> None:
    assert counts(chosen(MIXED, num_anchors=8, ratio=0.0)) == (0, 8)
    solved = flags([8, 8])
    assert counts(chosen(solved, num_anchors=4, ratio=0.0)) == (4, 0)
    assert chosen(solved, num_anchors=4, ratio=0.0, fill_with_right=False) == []
    assert chosen(solved, num_anchors=4, ratio=0.0, controller=FailuresOnly()) == []


def test_ratio_one_takes_right_ones_while_they_last() -> None:
    assert counts(chosen(MIXED, num_anchors=8, ratio=1.0)) == (8, 0)
    assert counts(chosen(MIXED, num_anchors=20, ratio=1.0)) == (13, 7)


def test_at_least_one_right_anchor_keeps_retention_measured() -> None:
    # floor(.2 * 4) = 0: without the guard retention would never be measured again.
    assert counts(chosen(MIXED, num_anchors=4, ratio=0.2)) == (1, 3)
    assert counts(chosen(flags([0, 0]), num_anchors=4, ratio=0.2)) == (0, 4)
    # A single place belongs to the failures.
    assert counts(chosen(MIXED, num_anchors=1, ratio=0.2)) == (0, 1)
    assert counts(chosen(MIXED, num_anchors=4, ratio=0.0, controller=Fixed(ratio=0.0))) == (0, 4)


def test_anchors_say_what_they_are() -> None:
    for anchor in chosen(MIXED, num_anchors=32):
        q, g = anchor.source.prompt, anchor.source.sample
        assert anchor.is_right == MIXED[q, g]
        assert (anchor.key_id, anchor.num_right, anchor.num_valid) == (q, MIXED[q].sum(), 8)


# --- preference -------------------------------------------------------------------------------


def test_the_band_comes_first() -> None:
    # n = 8, band [3/8, 6/8]: pass counts 3 to 6 are preferred. Prompts 1 and 3 are: they have
    # 3 + 6 = 9 right and 5 + 2 = 7 wrong attempts.
    is_right = flags([1, 3, 7, 6, 0, 8])
    for seed in range(20):
        anchors = chosen(is_right, num_anchors=12, ratio=0.5, seed=seed)
        assert {a.key_id for a in anchors} == {1, 3}
    # 9 right in the band, 9 outside; the tenth must come from outside.
    right = [a for a in chosen(is_right, num_anchors=20, ratio=0.5) if a.is_right]
    assert [a.key_id in (1, 3) for a in right] == [True] * 9 + [False]


def test_band_edges_are_compared_as_counts() -> None:
    band = Band(low=3 / 8, high=6 / 8)
    assert [is_in_band(k, 8, band) for k in range(9)] == [False] * 3 + [True] * 4 + [False] * 2
    half = Band(low=0.5, high=0.5)
    assert [k for k in range(9) if is_in_band(k, 8, half)] == [4]
    assert not any(is_in_band(k, 7, half) for k in range(8))
    # 20 * .55 = 11.000000000000002 in floating point; eleven of twenty is in the band.
    assert is_in_band(11, 20, Band(low=0.55, high=0.8))
    # The chance that a prompt of true rate .5 lands in the band: (56 + 70 + 56 + 28) / 256 = .82.
    chance = sum(np.prod([(8 - i) / (i + 1) for i in range(k)]) for k in (3, 4, 5, 6)) / 256
    assert chance == pytest.approx(0.82, abs=0.005)


def test_an_all_wide_band_is_uniform() -> None:
    is_right = flags([0, 2, 4, 6])
    seen = Counter(
        chosen(is_right, num_anchors=1, ratio=0.0, seed=s, preference=Band(low=0, high=1))[0].source
        for s in range(1000)
    )
    # 20 wrong attempts, 50 draws each on average, standard deviation 6.9.
    assert len(seen) == 20
    assert max(abs(n - 50) for n in seen.values()) < 5 * 6.9
    # Negative control: the default band never draws from prompts 0 and 1.
    banded = chosen(is_right, num_anchors=6, ratio=0.0)
    assert {a.key_id for a in banded} == {2, 3}


def test_soft_weights() -> None:
    # k = 4 of 8: p = .5, 4 p (1 - p) = 1. k = 0: p = 1/18, 4 * 17 / 324 = .209877.
    soft = Soft(floor=0.01, exponent=1.0)
    assert soft_weight(4, 8, soft) == pytest.approx(1.01)
    assert soft_weight(0, 8, soft) == pytest.approx(0.219877, abs=1e-6)
    assert soft_weight(0, 8, soft) == pytest.approx(soft_weight(8, 8, soft))
    assert soft_weight(0, 8, Soft(exponent=0.0)) == soft_weight(4, 8, Soft(exponent=0.0))


def test_soft_draws_by_weight() -> None:
    # Wrong attempts: 8 of prompt 0 at weight .219877, 4 of prompt 1 at 1.01. The first draw falls
    # on prompt 1 with probability 4.04 / (4.04 + 1.759) = .6967; 1000 draws, deviation .0145.
    is_right = flags([0, 4])

    def share(preference):
        draws = [
            chosen(is_right, num_anchors=1, ratio=0.0, seed=s, preference=preference)[0].key_id
            for s in range(1000)
        ]
        return np.mean(draws)

    assert share(Soft()) == pytest.approx(0.6967, abs=5 * 0.0145)
    # Exponent 0 is uniform: 4 of 12.
    assert share(Soft(exponent=0.0)) == pytest.approx(1 / 3, abs=5 * 0.0149)


def test_at_most_so_many_of_one_prompt() -> None:
    anchors = chosen(flags([4, 4, 4]), num_anchors=6, ratio=0.5, max_anchors_per_prompt=2)
    assert Counter(a.key_id for a in anchors) == {0: 2, 1: 2, 2: 2}
    assert len(chosen(flags([4]), num_anchors=6, max_anchors_per_prompt=2)) == 2


# --- who is no candidate ----------------------------------------------------------------------


def test_unknown_verdicts_are_never_anchors_and_not_counted() -> None:
    is_right, valid = flags([4, 4]), np.ones((2, 8), bool)
    valid[0, 2:5] = False  # two right ones and a wrong one of prompt 0
    for seed in range(10):
        anchors = chosen(is_right, num_anchors=16, seed=seed, valid=valid)
        assert len(anchors) == 13
        assert all(valid[a.source.prompt, a.source.sample] for a in anchors)
    assert {(a.key_id, a.num_right, a.num_valid) for a in anchors} == {(0, 2, 5), (1, 4, 8)}


def test_truncated_attempts_are_left_out_if_asked() -> None:
    is_right, finished = flags([4, 4]), np.ones((2, 8), bool)
    finished[:, 6:] = False
    kept = chosen(is_right, num_anchors=16, finished=finished)
    assert len(kept) == 12
    assert all(finished[a.source.prompt, a.source.sample] for a in kept)
    assert kept[0].num_valid == 8, "they still count in the pass rate"
    everyone = chosen(is_right, num_anchors=16, finished=finished, drop_truncated_anchors=False)
    assert len(everyone) == 16


# --- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preference", [Band(), Soft()])
def test_permuting_prompts_permutes_the_selection_only(preference) -> None:
    rng = np.random.default_rng(1)
    key_id = rng.permutation(1000)[:12]
    is_right = rng.random((12, 8)) < rng.random((12, 1))
    finished = rng.random((12, 8)) < 0.9
    order = rng.permutation(12)

    def selection(key_id, is_right, finished, seed=3):
        anchors = chosen(
            is_right,
            num_anchors=20,
            ratio=0.3,
            key_id=key_id,
            finished=finished,
            seed=seed,
            preference=preference,
            max_anchors_per_prompt=3,
        )
        return [(a.key_id, a.source.sample, a.is_right) for a in anchors]

    straight = selection(key_id, is_right, finished)
    assert selection(key_id[order], is_right[order], finished[order]) == straight
    # Negative controls: draws tied to the place in the batch would fail, and the seed does matter.
    assert selection(key_id, is_right[order], finished[order]) != straight
    assert selection(key_id, is_right, finished, seed=4) != straight


def test_another_prompt_moves_nobody_elses_draw() -> None:
    few = chosen(flags([4, 4]), num_anchors=99, key_id=np.array([10, 20]))
    more = chosen(flags([4, 4, 4]), num_anchors=99, key_id=np.array([20, 30, 10]))

    def among_first_two(anchors):
        return [(a.key_id, a.source.sample) for a in anchors if a.key_id != 30 and a.is_right]

    assert among_first_two(more) == among_first_two(few)


def test_sampling_ids_are_distinct_and_independent_of_order() -> None:
    buffered = Anchor(key_id=2, is_right=True, num_right=1, num_valid=8, source=attempt("p2", 2))
    anchors = [*chosen(MIXED, num_anchors=32), buffered]
    assert len({a.sampling_key_id(8) for a in anchors}) == 33
    step = Anchor(key_id=2, is_right=True, num_right=1, num_valid=8, source=Sampled(0, 5))
    assert step.sampling_key_id(8) == 2 * 9 + 5
    huge = Anchor(key_id=2**30, is_right=True, num_right=1, num_valid=8, source=Sampled(0, 5))
    with pytest.raises(ValueError, match="1073741824"):
        huge.sampling_key_id(8)


# --- buffer -----------------------------------------------------------------------------------


def attempt(problem_id, key_id, *, step=0, num_right=4):
    return BufferedAttempt(
        problem_id=problem_id,
        key_id=key_id,
        text=f"attempt at {problem_id}",
        step=step,
        num_right=num_right,
        num_valid=8,
    )


def test_buffer_holds_the_newest_of_each_problem_until_it_is_too_old() -> None:
    buffer = AttemptBuffer().add([attempt("a", 0), attempt("b", 1)], step=0, max_age=2)
    buffer = buffer.add([attempt("a", 0, step=1)], step=1, max_age=2)
    assert [(a.problem_id, a.step) for a in buffer.attempts] == [("b", 0), ("a", 1)]
    buffer = buffer.add([], step=2, max_age=2)  # at step 3, b is 3 steps old
    assert [(a.problem_id, a.step) for a in buffer.attempts] == [("a", 1)]
    assert buffer.add([], step=3, max_age=2).attempts == ()


def test_right_anchors_come_from_the_buffer_and_wrong_ones_from_the_step() -> None:
    buffer = AttemptBuffer((attempt("x", 100), attempt("y", 101, num_right=1)))
    anchors = chosen(MIXED, num_anchors=8, ratio=0.5, anchor_source="buffer", buffer=buffer)
    assert counts(anchors) == (2, 6)
    assert [a.source for a in anchors[:2]] == list(buffer.attempts), "in the band first"
    assert all(isinstance(a.source, Sampled) for a in anchors[2:])
    empty = chosen(MIXED, num_anchors=8, anchor_source="buffer", buffer=AttemptBuffer())
    assert counts(empty) == (0, 8)
    with pytest.raises(ValueError, match="no buffer"):
        chosen(MIXED, num_anchors=8, anchor_source="buffer")


def test_resume_gives_the_same_selection() -> None:
    buffer = AttemptBuffer(tuple(attempt(f"p{i}", 50 + i, step=i) for i in range(9)))
    again = AttemptBuffer.from_json(json.loads(json.dumps(buffer.to_json())))
    assert again == buffer
    first, second = (
        chosen(MIXED, num_anchors=8, anchor_source="buffer", buffer=b) for b in (buffer, again)
    )
    assert first == second


def test_one_right_attempt_of_each_prompt_is_remembered() -> None:
    is_right, everything = flags([0, 1, 8]), np.ones((3, 8), bool)
    finished = everything.copy()
    finished[2, :4] = False

    def remembered(seed, drop_truncated=True):
        return one_right_per_prompt(
            np.array([5, 6, 7]),
            is_right,
            everything,
            finished,
            drop_truncated=drop_truncated,
            rng=np.random.default_rng(seed),
        )

    for seed in range(5):
        assert sorted(a.key_id for a in remembered(seed)) == [6, 7]
        assert all(a.is_right for a in remembered(seed))
    seen = {a.source.sample for seed in range(60) for a in remembered(seed) if a.key_id == 7}
    assert seen == {4, 5, 6, 7}


# --- the rest ---------------------------------------------------------------------------------


def test_an_impossible_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        chosen(MIXED, num_anchors=4, ratio=1.5)
