"""Measures against values worked out by hand, enumeration, and known sampling laws."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipo_jax.evaluate.correction import correction_measures, equal_tokens
from cipo_jax.evaluate.critique import critique_measures
from cipo_jax.evaluate.measures import (
    majority_at_k,
    mean_with_interval,
    paired_difference,
    pass_at_k,
    pass_at_mean_k,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 3, 5, 0.916667), (32, 4, 8, 0.704505), (32, 1, 32, 1.0), (8, 0, 4, 0.0)],
)
def test_pass_at_k_vectors(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(np.array([c]), np.array([n]), k) == pytest.approx([expected], abs=1e-6)


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    is_right = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        subsets = list(itertools.combinations(is_right, k))
        share = np.mean([any(subset) for subset in subsets])
        assert pass_at_k(np.array([2]), np.array([6]), k) == pytest.approx([share])
        # The control: the biased form differs.
        if 1 < k < 5:
            assert 1 - (1 - 2 / 6) ** k != pytest.approx(share, abs=1e-3)


def test_pass_at_k_takes_problems_with_different_numbers_of_samples() -> None:
    together = pass_at_k(np.array([1, 3, 5]), np.array([4, 8, 5]), 2)
    alone = [pass_at_k(np.array([c]), np.array([n]), 2)[0] for c, n in [(1, 4), (3, 8), (5, 5)]]
    assert together.tolist() == alone
    assert pass_at_k(np.array([1, 2]), np.array([8, 8]), 1).tolist() == pytest.approx(
        [1 / 8, 2 / 8]
    )


@pytest.mark.parametrize(("c", "n", "k"), [(1, 4, 5), (1, 4, 0), (5, 4, 1), (-1, 4, 1)])
def test_pass_at_k_refuses_what_it_cannot_estimate(c: int, n: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(np.array([c]), np.array([n]), k)


def test_majority() -> None:
    answers = [
        ["7", "7", "8"],  # the most frequent is right
        ["7", "8", "8"],  # the most frequent is wrong
        ["7", "8", None],  # a tie of a right and a wrong answer: 1/2
        ["7", "8", "9"],  # a tie of three, one right: 1/3
        [None, None, None],  # no answer at all
        [None, None, "7"],  # what can't be read has no vote
    ]
    is_right = [[a == "7" for a in row] for row in answers]
    expected = [1, 0, 1 / 2, 1 / 3, 0, 1]
    assert majority_at_k(answers, is_right, 3).tolist() == pytest.approx(expected)


def test_tie_credit_is_the_expected_draw() -> None:
    rng = np.random.default_rng(0)
    answers = ["7", "7", "8", "8", "9", "9", "1"]
    draws = [rng.choice(["7", "8", "9"]) == "7" for _ in range(4000)]
    credit = majority_at_k([answers], [[a == "7" for a in answers]], 7)[0]
    assert credit == pytest.approx(np.mean(draws), abs=5 * math.sqrt(2 / 9 / 4000))


def test_majority_of_fewer_votes_than_samples() -> None:
    # Groups of two: (7, 7) right, (8, 8) wrong, (7, 8) a tie; the last sample is left over.
    answers = [["7", "7", "8", "8", "7", "8", "7"]]
    is_right = [[a == "7" for a in answers[0]]]
    assert majority_at_k(answers, is_right, 2) == pytest.approx([(1 + 0 + 1 / 2) / 3])
    assert majority_at_k(answers, is_right, 7) == pytest.approx([1.0])
    # One vote is the mean of the samples.
    assert majority_at_k(answers, is_right, 1) == pytest.approx([4 / 7])
    assert np.isnan(majority_at_k(answers, is_right, 8)).all()


def test_groups_of_votes_are_unbiased() -> None:
    # Against every subset of 3 of 6 samples, over random orders of the same samples.
    rng = np.random.default_rng(8)
    answers = np.array(["7", "7", "8", "8", "9", "7"])
    exact = np.mean(
        [
            majority_at_k([answers[list(s)].tolist()], [(answers[list(s)] == "7").tolist()], 3)[0]
            for s in itertools.combinations(range(6), 3)
        ]
    )
    orders = [rng.permutation(answers).tolist() for _ in range(2000)]
    found = majority_at_k(orders, [[a == "7" for a in order] for order in orders], 3)
    assert found.mean() == pytest.approx(exact, abs=5 * found.std() / math.sqrt(2000))


def test_pass_at_a_mean_number_of_samples() -> None:
    whole = [pass_at_k(np.array([2]), np.array([8]), k)[0] for k in (2, 3)]
    assert pass_at_mean_k(np.array([2]), np.array([8]), 2.0)[0] == whole[0]
    # 2.25 samples on average: two in three of four tries, three in the fourth.
    assert pass_at_mean_k(np.array([2]), np.array([8]), 2.25)[0] == pytest.approx(
        0.75 * whole[0] + 0.25 * whole[1]
    )


@given(st.integers(1, 12), st.data())
def test_pass_at_k_grows_with_k_and_with_right_samples(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    curve = [pass_at_k(np.array([c]), np.array([n]), k)[0] for k in range(1, n + 1)]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(c / n)
    assert curve[-1] == float(c > 0)
    if c < n:
        better = [pass_at_k(np.array([c + 1]), np.array([n]), k)[0] for k in range(1, n + 1)]
        assert all(high >= low for high, low in zip(better, curve, strict=True))


# --- correction ---------------------------------------------------------------------------------


def test_correction_measures_by_hand() -> None:
    # Attempts:     wrong x4          right x4
    # Corrections:  R R W W           R R R W
    z = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    r = np.array([1, 1, 0, 0, 1, 1, 1, 0], bool)
    copy = np.array([0, 0, 1, 0, 1, 1, 1, 0], bool)
    found = correction_measures(np.arange(8), z, r, is_copy_I=copy, seed=0)
    means = {name: estimate["mean"] for name, estimate in found.items()}
    assert means == pytest.approx(
        {
            "accuracy_before": 0.5,
            "accuracy_after": 5 / 8,
            "change": 1 / 8,
            "fixed": 2 / 8,
            "broken": 1 / 8,
            "fix_rate": 2 / 4,
            "retention": 3 / 4,
            "break_rate": 1 / 4,
            "copy_rate": 1 / 4,
        }
    )


def test_correction_identities_hold() -> None:
    rng = np.random.default_rng(1)
    z, r = rng.random(500) < 0.6, rng.random(500) < 0.5
    found = correction_measures(rng.integers(0, 50, 500), z, r, seed=0)
    m = {name: estimate["mean"] for name, estimate in found.items()}
    a = m["accuracy_before"]
    assert m["accuracy_after"] == pytest.approx(a * m["retention"] + (1 - a) * m["fix_rate"])
    assert m["change"] == pytest.approx(m["fixed"] - m["broken"])
    assert m["change"] == pytest.approx(m["accuracy_after"] - a)
    assert m["break_rate"] == pytest.approx(1 - m["retention"])


def test_undefined_rates_are_null_and_not_zero() -> None:
    all_wrong = correction_measures(np.arange(3), np.zeros(3, bool), np.ones(3, bool), seed=0)
    assert all_wrong["retention"] == {"mean": None, "low": None, "high": None}
    assert all_wrong["fix_rate"]["mean"] == 1.0
    nothing = correction_measures(np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool), seed=0)
    assert {estimate["mean"] for estimate in nothing.values()} == {None}
    assert "null" in json.dumps(nothing, allow_nan=False)


def test_equal_tokens_by_hand() -> None:
    # Two problems, four chains each; an attempt has 10 tokens and its correction 10, so that one
    # chain costs two samples, and two chains four. Right attempts: 1 and 0; solved chains: 2 and 1.
    found = equal_tokens(
        np.array([1, 0]), np.array([2, 1]), np.array([4, 4]),
        attempt_tokens=10.0, correction_tokens=10.0, seed=0,
    )  # fmt: skip
    assert [(e["chains"], e["samples"], e["tokens"]) for e in found] == [(1, 2, 20), (2, 4, 40)]
    # pass@1 of chains: 2/4 and 1/4. pass@2 of attempts: 1 - C(3,2)/C(4,2) = 1/2, and 0.
    assert found[0]["sequential"]["mean"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found[0]["parallel"]["mean"] == pytest.approx((1 / 2 + 0) / 2)
    # pass@2 of chains: 1 - C(2,2)/C(4,2) = 5/6, 1 - C(3,2)/C(4,2) = 1/2. pass@4: 1 and 0.
    assert found[1]["sequential"]["mean"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found[1]["parallel"]["mean"] == pytest.approx(1 / 2)
    assert found[1]["difference"]["mean"] == pytest.approx((5 / 6 + 1 / 2) / 2 - 1 / 2)


def test_corrections_that_do_nothing_lose_at_equal_tokens() -> None:
    rng = np.random.default_rng(9)
    right = rng.integers(0, 9, 40)
    same = {"attempt_tokens": 30.0, "correction_tokens": 20.0, "seed": 0}
    idle = equal_tokens(right, right, np.full(40, 8), **same)
    assert [e["chains"] for e in idle] == [1, 2, 4]
    assert all(e["difference"]["mean"] < 0 for e in idle)
    # The control: corrections without tokens that solve everything win.
    perfect = equal_tokens(
        right, np.full(40, 8), np.full(40, 8), **{**same, "correction_tokens": 0}
    )
    assert all(e["difference"]["mean"] > 0 for e in perfect)
    assert equal_tokens(right[:0], right[:0], right[:0], **same) == []


# --- critiques ----------------------------------------------------------------------------------


def test_critique_measures_by_hand() -> None:
    # Responses:  wrong wrong wrong wrong right right right right
    # Verdicts:   W     W     R     -     R     R     W     -
    #             TP    TP    FN    FN    TN    TN    FP    FP
    is_right = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    said = [False, False, True, None, True, True, False, None]
    found = critique_measures(is_right, said, seed=0)
    assert {name: e["mean"] for name, e in found.items()} == pytest.approx(
        {
            "f1": 2 * 2 / (2 * 2 + 2 + 2),
            "precision": 2 / 4,
            "recall": 2 / 4,
            "accuracy": 4 / 8,
            "unreadable": 2 / 8,
        }
    )


def test_critique_measures_at_the_ends() -> None:
    rng = np.random.default_rng(10)
    is_right = rng.random(200) < 0.5
    perfect = critique_measures(is_right, is_right.tolist(), seed=0)
    assert perfect["f1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    mute = critique_measures(is_right, [None] * 200, seed=0)
    assert mute["f1"]["mean"] == mute["accuracy"]["mean"] == 0.0
    # "Everything is wrong" finds all of them: recall 1, precision the share of wrong responses.
    blunt = critique_measures(is_right, [False] * 200, seed=0)
    assert blunt["recall"]["mean"] == 1.0
    assert blunt["precision"]["mean"] == pytest.approx(1 - is_right.mean())
    p, r = blunt["precision"]["mean"], blunt["recall"]["mean"]
    assert blunt["f1"]["mean"] == pytest.approx(2 * p * r / (p + r))
    only_right = critique_measures(np.ones(3, bool), [True] * 3, seed=0)
    assert only_right["f1"]["mean"] is None


# --- intervals ----------------------------------------------------------------------------------


def test_the_interval_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(2).random(40)
    first, again = mean_with_interval(values, seed=3), mean_with_interval(values, seed=3)
    assert first == again != mean_with_interval(values, seed=4)
    assert first["low"] < first["mean"] < first["high"]


def test_a_missing_value_leaves_its_problem_out() -> None:
    estimate = mean_with_interval(np.array([1.0, np.nan, 0.0]), seed=0)
    assert estimate["mean"] == 0.5
    assert mean_with_interval(np.array([np.nan]), seed=0)["mean"] is None


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        estimate = mean_with_interval(rng.random(60) < 0.4, seed=seed)
        covered += estimate["low"] <= 0.4 <= estimate["high"]
    # 95 % nominal; the percentile bootstrap of 60 problems gives 93-94 %. 5 sigma of 200: 8 %.
    assert 0.86 <= covered / 200 <= 0.995


def test_problems_are_resampled_and_not_their_samples() -> None:
    # 20 problems with 50 equal pairs each hold no more news than 20 pairs.
    z = np.repeat(np.random.default_rng(6).random(20) < 0.5, 50)
    clustered = correction_measures(np.repeat(np.arange(20), 50), z, z, seed=0)["accuracy_after"]
    naive = correction_measures(np.arange(1000), z, z, seed=0)["accuracy_after"]
    assert clustered["mean"] == naive["mean"]
    width = [e["high"] - e["low"] for e in (clustered, naive)]
    assert width[0] > 5 * width[1]


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(7)
    first = rng.random(50)
    second = first + 0.05 + 0.02 * rng.standard_normal(50)
    difference = paired_difference(first, second, seed=0)
    assert difference["low"] > 0
    # The control: unpaired, the intervals overlap.
    assert mean_with_interval(first, seed=0)["high"] > mean_with_interval(second, seed=0)["low"]
    with pytest.raises(ValueError, match="50 and 49"):
        paired_difference(first, second[1:], seed=0)
