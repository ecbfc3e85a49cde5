"""Advantages against numbers worked by hand."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from cipo_jax.config import (
    Cispo,
    CorrectionAdvantage,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
)
from cipo_jax.method.advantages import (
    StreamRewards,
    correction_advantage,
    objective_advantage,
    of_sequences,
)
from cipo_jax.method.baselines import leave_one_out, whitened

MODES = get_args(CorrectionAdvantage)
TWO_OF_EIGHT = np.array([[1.0, 0, 0, 1, 0, 0, 0, 0]])
SIX_OF_EIGHT = [[1.0] * 6 + [0.0] * 2]
ALL_VALID = np.ones((1, 8), bool)


def scores_of(reward, valid=None, *, length=None, penalty=None):
    reward = np.asarray(reward, float)
    return StreamRewards(
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
        np.arange(len(raw)) if prompt is None else np.asarray(prompt),
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


# The same group: RLOO compares a right one with 1 of 7 others: 1 - 1/7 = .857143, and a wrong one
# with 2 of 7: -.285714; that is 8/7 of .75 and -.25.
@pytest.mark.parametrize(
    ("objective", "right", "wrong"),
    [
        (DrGrpo(), 0.75, -0.25),
        (Rloo(), 0.857143, -0.285714),
        (Dapo(), 1.732051, -0.577350),
        (Gspo(), 1.732051, -0.577350),
        (Cispo(ddof=1, std_eps=1e-6), 1.620182, -0.540061),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_each_objective_has_its_own(objective, right, wrong) -> None:
    got = objective_advantage(scores_of(TWO_OF_EIGHT), objective=objective)
    np.testing.assert_allclose(got, np.where(TWO_OF_EIGHT == 1, right, wrong), atol=1e-6)
    assert got.dtype == np.float32


def test_leave_one_out_is_the_mean_of_the_siblings() -> None:
    rng = np.random.default_rng(0)
    reward, valid = rng.random((5, 6)), rng.random((5, 6)) < 0.8
    got = leave_one_out(reward, valid)
    for q, g in np.ndindex(5, 6):
        siblings = [reward[q, h] for h in range(6) if h != g and valid[q, h]]
        expected = reward[q, g] - np.mean(siblings) if valid[q, g] and siblings else 0.0
        assert got[q, g] == pytest.approx(expected, abs=1e-6)


def test_whitening_counts_tokens() -> None:
    # Rewards 1 and 0 with 3 and 1 tokens: mean 3/4, variance (3 * 1/16 + 9/16) / 4 = 3/16, so
    # .25 / .433013 = .577350 and -.75 / .433013 = -1.732051. ddof 1: variance 1/4, .5 and -1.5.
    scores = scores_of([[1.0, 0.0]], length=[[3, 1]])
    got = objective_advantage(scores, objective=ReinforcePlusPlus())
    np.testing.assert_allclose(got, [[0.577350, -1.732051]], atol=1e-6)
    got = objective_advantage(scores, objective=ReinforcePlusPlus(ddof=1))
    np.testing.assert_allclose(got, [[0.5, -1.5]], atol=1e-6)
    # Tokens written out give the same.
    each = whitened(np.array([1.0, 1, 1, 0]), np.ones(4, int), ddof=1, eps=1e-8)
    np.testing.assert_allclose(each, [0.5, 0.5, 0.5, -1.5], atol=1e-6)


def test_the_baseline_variant_centres_prompts_first() -> None:
    # Prompts [1, 0] and [1, 1], all of 2 tokens: centred +-.5 and 0, 0; their mean is 0, variance
    # (2 * .25) / 4 = 1/8: +-1.414214 and 0. Without the baseline: mean 3/4, variance 3/16.
    scores = scores_of([[1.0, 0], [1, 1]])
    got = objective_advantage(scores, objective=ReinforcePlusPlusBaseline())
    np.testing.assert_allclose(got, [[1.414214, -1.414214], [0, 0]], atol=1e-6)
    got = objective_advantage(scores, objective=ReinforcePlusPlus())
    np.testing.assert_allclose(got, [[0.577350, -1.732051], [0.577350, 0.577350]], atol=1e-6)


def test_token_returns_by_hand() -> None:
    # Rewards 1 (2 tokens, penalties .1 .3) and 0 (1 token, penalty .2): returns
    #   1 - .4, 1 - .3 | 0 - .2  =  .6, .7 | -.2
    # mean 1.1 / 3 = .366667, squares .054444 + .111111 + .321111 = .486667, / 3, root: .402768.
    penalty = np.array([[[0.1, 0.3], [0.2, 0.0]]])
    scores = scores_of([[1.0, 0.0]], length=[[2, 1]], penalty=penalty)
    got = objective_advantage(scores, objective=ReinforcePlusPlus())
    expected = np.array([[[0.233333, 0.333333], [-0.566667, 0.0]]]) / 0.402768
    np.testing.assert_allclose(got, expected, atol=1e-5)
    # For the log: the mean over the tokens of a sequence.
    np.testing.assert_allclose(
        of_sequences(got, scores.length_QG), [[0.703465, -1.406930]], atol=1e-5
    )
    # Sequence objectives take the whole sum: 1 - .4 and 0 - .2, centred +-.4.
    got = objective_advantage(scores, objective=DrGrpo())
    np.testing.assert_allclose(got, [[0.4, -0.4]], atol=1e-6)
    # Without penalties the returns are the reward: the two ways are one.
    nothing = replace(scores, token_penalty_QGC=np.zeros_like(penalty))
    tokens = objective_advantage(nothing, objective=ReinforcePlusPlus())
    whole = objective_advantage(
        replace(scores, token_penalty_QGC=None), objective=ReinforcePlusPlus()
    )
    np.testing.assert_allclose(tokens[0, 0], whole[0, 0], rtol=1e-6)
    np.testing.assert_allclose(tokens[0, 1, 0], whole[0, 1], rtol=1e-6)


OBJECTIVES = [
    Grpo(), Grpo(scale_by_std=False), DrGrpo(), Dapo(), Gspo(), Cispo(), Rloo(),
    ReinforcePlusPlus(), ReinforcePlusPlusBaseline(),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: x.kind)
def test_what_is_not_valid_never_speaks(objective) -> None:
    reward = np.array([[1.0, 0, 1, 0], [0, 1, 1, 0]])
    valid = np.array([[True, True, True, False], [True, True, False, True]])
    length = np.array([[2, 3, 1, 4], [5, 1, 2, 2]])
    clean = objective_advantage(scores_of(reward, valid, length=length), objective=objective)
    assert not clean[~valid].any()
    assert (clean[valid] != 0).all()
    for garbage in (np.nan, np.inf, -7.0):
        dirty = np.where(valid, reward, garbage)
        got = objective_advantage(
            scores_of(dirty, valid, length=np.where(valid, length, 99)), objective=objective
        )
        np.testing.assert_array_equal(got, clean)
    # Control: an unknown verdict that is scored 0 is heard.
    scored = objective_advantage(scores_of(reward, length=length), objective=objective)
    assert np.abs(scored - clean)[valid].max() > 0.05


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: x.kind)
def test_rewards_that_are_all_equal_say_nothing(objective) -> None:
    for value in (0.0, 1.0, 0.1):
        scores = scores_of(np.full((2, 10), value), length=np.arange(1, 21).reshape(2, 10))
        assert not objective_advantage(scores, objective=objective).any()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: x.kind)
def test_the_correction_stream_follows_the_objective(objective) -> None:
    """Without the risk penalty, corrections have the very advantages of the base stream; with it,
    groups of right anchors change. Where the objective divides by a group's deviation, `objective`
    is `raw_std`; where it divides by none, it is scaled by 1 + lambda_r just the same."""
    raw, is_right = np.array([*SIX_OF_EIGHT, *TWO_OF_EIGHT]), [True, False]

    def advantage(mode, risk_penalty):
        return correction_advantage(
            scores_of(raw), np.array(is_right), np.arange(2), raw_MG=raw, mode=mode,
            risk_penalty=risk_penalty, objective=objective,
        )  # fmt: skip

    base = objective_advantage(scores_of(raw), objective=objective)
    np.testing.assert_array_equal(advantage("objective", 0.0), base)
    risky = advantage("objective", 1.0)
    if isinstance(objective, ReinforcePlusPlus | ReinforcePlusPlusBaseline):
        assert np.abs(risky - base).max() > 0.1  # one scale for the stream
        return
    np.testing.assert_allclose(risky[0], 2 * base[0], rtol=1e-6)
    np.testing.assert_array_equal(risky[1], base[1])
    if not isinstance(objective, DrGrpo | Rloo) and getattr(objective, "scale_by_std", True):
        np.testing.assert_array_equal(risky, advantage("raw_std", 1.0))
    elif not isinstance(objective, Rloo):
        np.testing.assert_array_equal(risky, advantage("none", 1.0))


def test_shaping_that_both_streams_share_stays_outside_the_risk_penalty() -> None:
    # A right anchor; verdicts 1 and 0, rewards .5 (long) and 0: the penalty is that of the verdict.
    #   r~ = .5 and 0 - 1, centred +-.75; the deviation of .5 and 0 is .25: +-3.
    got = correction_advantage(
        scores_of([[0.5, 0.0]]), np.array([True]), np.arange(1), raw_MG=np.array([[1.0, 0.0]]),
        mode="raw_std", risk_penalty=1.0, objective=Grpo(),
    )  # fmt: skip
    np.testing.assert_allclose(got, [[3.0, -3.0]], rtol=1e-6)


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
            continue  # compares with the attempt
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


def test_an_unknown_mode_is_refused(unchecked) -> None:
    with pytest.raises(ValueError, match="'robust'"):
        of_corrections(SIX_OF_EIGHT, [True], mode="robust", risk_penalty=1.0)
