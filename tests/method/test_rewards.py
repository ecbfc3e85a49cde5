"""The reward of a correction, all four cases, and the penalty on length."""

import numpy as np
import pytest

from cipo_jax.method.rewards import correction_reward, overlong_penalty

RAW = np.array([[1.0, 0.0], [1.0, 0.0]])
IS_RIGHT = np.array([False, True])


def test_four_cases() -> None:
    # Failure repaired 1, failure kept 0; right kept 1, right broken -lambda_r.
    np.testing.assert_array_equal(correction_reward(RAW, IS_RIGHT, 0.7), [[1.0, 0.0], [1.0, -0.7]])


def test_no_penalty_is_the_raw_score() -> None:
    np.testing.assert_array_equal(correction_reward(RAW, IS_RIGHT, 0.0), RAW)


def test_partial_scores_lose_in_proportion() -> None:
    # r = 0.25, z = 1, lambda_r = 2: 0.25 - 2 * 0.75 = -1.25.
    np.testing.assert_allclose(correction_reward(np.array([[0.25]]), np.array([True]), 2.0), -1.25)


def test_unknown_stays_unknown() -> None:
    assert np.isnan(correction_reward(np.array([[np.nan]]), np.array([True]), 1.0)).all()


def test_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="risk_penalty is -1"):
        correction_reward(RAW, IS_RIGHT, -1.0)


def test_overlong_penalty_by_hand() -> None:
    # The paper's limit of 20,480 with a buffer of 4,096, a fifth: nothing up to 16,384, one half at
    # 18,432, all at the limit.
    length = np.array([[1, 16_384, 17_408, 18_432, 20_480]])
    got = overlong_penalty(length, limit=20_480, share=0.2, penalty=1.0)
    np.testing.assert_allclose(got, [[0, 0, 0.25, 0.5, 1.0]], atol=1e-12)
    got = overlong_penalty(length, limit=20_480, share=0.2, penalty=0.5)
    np.testing.assert_allclose(got, [[0, 0, 0.125, 0.25, 0.5]], atol=1e-12)
    # A share of 1: from the first token on.
    got = overlong_penalty(np.array([[5, 10]]), limit=20, share=1.0, penalty=1.0)
    np.testing.assert_allclose(got, [[0.25, 0.5]])
