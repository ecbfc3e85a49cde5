"""Advantages against numbers worked by hand."""

from typing import get_args

import numpy as np
import pytest

from cipo_jax.config import CorrectionAdvantage, Grpo
from cipo_jax.method.advantages import Scores, correction_advantage, objective_advantage

MODES = get_args(CorrectionAdvantage)
TWO_OF_EIGHT = np.array([[1.0, 0, 0, 1, 0, 0, 0, 0]])
ALL_VALID = np.ones((1, 8), bool)


def scores_of(reward, valid=None, *, length=None, penalty=None):
    reward = np.asarray(reward, float)
    return Scores(
        reward_QG=reward,
        is_valid_QG=np.ones(reward.shape, bool) if valid is None else np.asarray(valid),
        length_QG=np.full(reward.shape, 3) if length is None else np.asarray(length),
        token_penalty_QGC=penalty,
    )


def of_group(reward, valid=ALL_VALID, *, scale_by_std=True, ddof=0, eps=1e-8):
    objective = Grpo(scale_by_std=scale_by_std, ddof=ddof, std_eps=eps)
    return objective_advantage(scores_of(reward, valid), objective=objective)


def of_corrections(raw, is_right, *, mode, risk_penalty, valid=None, prompt=None, ddof=1, eps=1e-6):
    raw = np.asarray(raw, float)
    return correction_advantage(
        scores_of(raw, valid),
        np.asarray(is_right),
        np.arange(len(raw)) if prompt is None else prompt,
        raw_MG=raw,
        mode=mode,
        risk_penalty=risk_penalty,
        objective=Grpo(ddof=ddof, std_eps=eps),
    )


# Two right of eight: mean 1/4; squared deviations 2 * 9/16 + 6 * 1/16 = 3/2.
# ddof 1: std = sqrt(1.5 / 7) = 0.4629100;  0.75 / (std + 1e-6) = 1.620182, -0.25 / ... = -0.540061
# ddof 0: std = sqrt(1.5 / 8) = 0.4330127;  0.75 / std = sqrt(3) = 1.732051, -0.577350
@pytest.mark.parametrize(
    ("scale_by_std", "ddof", "eps", "right", "wrong"),
    [
        (True, 1, 1e-6, 1.620182, -0.540061),
        (True, 0, 1e-8, 1.732051, -0.577350),
        (False, 0, 1e-8, 0.75, -0.25),
    ],
)
def test_group_vectors(scale_by_std, ddof, eps, right, wrong) -> None:
    got = of_group(TWO_OF_EIGHT, scale_by_std=scale_by_std, ddof=ddof, eps=eps)
    np.testing.assert_allclose(got, np.where(TWO_OF_EIGHT == 1, right, wrong), atol=1e-6)
    assert got.dtype == np.float32


def test_an_unknown_verdict_is_as_if_never_sampled() -> None:
    # The first group without its unknown sample is [1, 0, 0]; NaN would spread if it were read.
    reward = np.array([[1.0, np.nan, 0.0, 0.0]])
    valid = np.array([[True, False, True, True]])
    got = of_group(reward, valid)
    alone = of_group(np.array([[1.0, 0.0, 0.0]]), np.ones((1, 3), bool))
    assert got[0, 1] == 0
    np.testing.assert_array_equal(got[valid], alone[0])
    # Negative control: scored 0 instead of masked, it moves everyone's advantage.
    scored = of_group(np.nan_to_num(reward), np.ones((1, 4), bool))
    assert abs(scored[0, 0] - got[0, 0]) > 0.1


@pytest.mark.parametrize("valid", [[True, False, False], [False, False, False]])
def test_fewer_than_two_valid_samples_give_zero(valid) -> None:
    assert not of_group(np.array([[1.0, 0.0, 0.0]]), np.array([valid])).any()
    for mode in MODES:
        got = of_corrections(
            [[0.0, 1, 1]], [True], mode=mode, risk_penalty=1.0, valid=np.array([valid])
        )
        assert not got.any(), mode


def test_equal_rewards_give_exactly_zero() -> None:
    # The mean of ten times 0.1 is not 0.1 in binary; what is left over must not be scaled up.
    assert not of_group(np.full((2, 10), 0.1), np.ones((2, 10), bool), eps=0.0).any()
    for mode in MODES:
        if mode == "progress":
            continue
        for raw in (0.0, 1.0):
            got = of_corrections(
                np.full((2, 8), raw), [True, True], mode=mode, risk_penalty=1.0, prompt=[0, 1]
            )
            assert not got.any(), mode


def test_progress_punishes_a_group_that_all_broke() -> None:
    # Every correction of a right attempt is wrong: r~ - z = -1 - 1 = -2, where group means see
    # nothing. Of a wrong attempt: fixed 1, not fixed 0.
    got = of_corrections([[0.0, 0], [1, 0]], [True, False], mode="progress", risk_penalty=1.0)
    np.testing.assert_array_equal(got, [[-2, -2], [1, 0]])


SIX_OF_EIGHT = [[1.0] * 6 + [0.0] * 2]


def test_raw_std_vectors() -> None:
    # mean 3/4, std (ddof 1) 0.4629100: kept 0.25 / std = 0.5401, broken -0.75 / std = -1.6202.
    # lambda_r = 1: rewards {1, -1}, mean 1/2, so +0.5 and -1.5 over the *raw* std.
    for risk_penalty, kept, broken in ((0.0, 0.5401, -1.6202), (1.0, 1.0801, -3.2404)):
        got = of_corrections(SIX_OF_EIGHT, [True], mode="raw_std", risk_penalty=risk_penalty)
        np.testing.assert_allclose(got, [[kept] * 6 + [broken] * 2], atol=1e-4)


@pytest.mark.parametrize("risk_penalty", [0.3, 1.0, 4.0])
def test_raw_std_scales_right_groups_and_leaves_wrong_ones(risk_penalty) -> None:
    raw, is_right = SIX_OF_EIGHT * 2, [True, False]
    plain = of_corrections(raw, is_right, mode="raw_std", risk_penalty=0.0)
    risky = of_corrections(raw, is_right, mode="raw_std", risk_penalty=risk_penalty)
    np.testing.assert_allclose(risky[0], (1 + risk_penalty) * plain[0], rtol=1e-6)
    np.testing.assert_array_equal(risky[1], plain[1])


@pytest.mark.parametrize("risk_penalty", [0.3, 1.0, 4.0])
def test_std_cancels_the_penalty(risk_penalty) -> None:
    """The normalisation trap: the reason for `raw_std`."""
    plain = of_corrections(SIX_OF_EIGHT, [True], mode="std", risk_penalty=0.0)
    risky = of_corrections(SIX_OF_EIGHT, [True], mode="std", risk_penalty=risk_penalty)
    np.testing.assert_allclose(risky, plain, atol=1e-5)
    # Negative control: in every other mode the penalty acts.
    for mode in set(MODES) - {"std"}:
        raw, is_right, prompt = [*SIX_OF_EIGHT, [0.0] * 5 + [1.0] * 3], [True, False], [7, 7]
        plain, risky = (
            of_corrections(raw, is_right, mode=mode, risk_penalty=penalty, prompt=prompt)
            for penalty in (0.0, risk_penalty)
        )
        assert np.abs(risky - plain).max() > 0.05, mode


def test_without_penalty_raw_std_is_std_is_grpo() -> None:
    raw = np.concatenate([SIX_OF_EIGHT, TWO_OF_EIGHT])
    std, raw_std = (
        of_corrections(raw, [True, False], mode=mode, risk_penalty=0.0)
        for mode in ("std", "raw_std")
    )
    grpo = of_group(raw, np.ones((2, 8), bool), ddof=1, eps=1e-6)
    np.testing.assert_array_equal(std, grpo)
    np.testing.assert_array_equal(raw_std, grpo)


def test_none_is_centred_only() -> None:
    # {1, -1}: mean 1/2.
    got = of_corrections(SIX_OF_EIGHT, [True], mode="none", risk_penalty=1.0)
    np.testing.assert_allclose(got, [[0.5] * 6 + [-1.5] * 2])


def test_prompt_group_mixes_both_classes_of_a_problem() -> None:
    # Anchors of one problem, right then wrong: r~ = [1, 1, 1, -1 | 1, 0, 0, 0], mean 3/8;
    # sum of squares 4 * .390625 + 1.890625 + 3 * .140625 = 3.875, std (ddof 1) = .744024;
    # .625 / std = .840, -1.375 / std = -1.848, -.375 / std = -.504.
    raw = [[1.0, 1, 1, 0], [1, 0, 0, 0]]
    got = of_corrections(
        raw, [True, False], mode="prompt_group", risk_penalty=1.0, prompt=np.array([5, 5])
    )
    expected = [[0.840] * 3 + [-1.848], [0.840] + [-0.504] * 3]
    np.testing.assert_allclose(got, expected, atol=5e-4)
    # Two problems are two groups: then it is `std`.
    apart = of_corrections(
        raw, [True, False], mode="prompt_group", risk_penalty=1.0, prompt=np.array([5, 6])
    )
    std = of_corrections(raw, [True, False], mode="std", risk_penalty=1.0)
    np.testing.assert_array_equal(apart, std)


def test_batch_std_has_one_scale_for_the_stream() -> None:
    # r~ = [1, -1 | 1, 1], all four: mean 1/2, squares 3 * 1/4 + 9/4 = 3, std (ddof 1) = 1.
    # Group means 0 and 1: the first keeps +-1, the second is 0.
    got = of_corrections([[1.0, 0], [1, 1]], [True, True], mode="batch_std", risk_penalty=1.0)
    np.testing.assert_allclose(got, [[1, -1], [0, 0]], atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_permuting_anchors_and_samples_permutes(mode) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2, (6, 4)).astype(float)
    is_right = rng.integers(0, 2, 6).astype(bool)
    valid = rng.random((6, 4)) < 0.8
    prompt = np.array([3, 3, 9, 1, 9, 3])
    rows, columns = rng.permutation(6), rng.permutation(4)

    def advantage(raw, valid, is_right, prompt):
        return of_corrections(
            raw, is_right, mode=mode, risk_penalty=0.5, valid=valid, prompt=prompt
        )

    straight = advantage(raw, valid, is_right, prompt)
    permuted = advantage(
        raw[rows][:, columns], valid[rows][:, columns], is_right[rows], prompt[rows]
    )
    np.testing.assert_allclose(permuted, straight[rows][:, columns], atol=1e-6)
    assert straight.any()


@pytest.mark.parametrize("mode", MODES)
def test_invalid_corrections_never_speak(mode) -> None:
    raw = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0]])
    valid = np.array([[True, True, True, False], [True, True, False, True]])
    kwargs = {"mode": mode, "risk_penalty": 1.0, "valid": valid, "prompt": np.array([0, 0])}
    got = of_corrections(raw, [True, False], **kwargs)
    assert not got[~valid].any()
    for garbage in (np.nan, np.inf, -7.0):
        dirty = np.where(valid, raw, garbage)
        np.testing.assert_array_equal(of_corrections(dirty, [True, False], **kwargs), got)


def test_no_anchors() -> None:
    for mode in MODES:
        got = of_corrections(np.zeros((0, 4)), np.zeros(0, bool), mode=mode, risk_penalty=1.0)
        assert got.shape == (0, 4)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'robust'"):
        of_corrections(SIX_OF_EIGHT, [True], mode="robust", risk_penalty=1.0)
