"""Baselines and scales of rewards: the statistics that advantages are made of.

A sample whose verdict is unknown counts in no mean, no deviation and no group size. All sums run in
float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int


def centred(
    reward_QG: Float[np.ndarray, "Q G"], is_valid_QG: Bool[np.ndarray, "Q G"]
) -> Float[np.ndarray, "Q G"]:
    """The reward less the mean of the group's valid samples.

    Args:
      reward_QG: any value, NaN too, where not valid.
    Returns: float64 [Q, G]; exactly 0, not up to rounding, where not valid and in groups with fewer
      than two valid samples or with equal rewards.
    Source: Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783, as an advantage by itself.
    """
    is_mixed_Q1 = is_mixed(reward_QG, is_valid_QG)[:, None]
    centred_QG = np.where(is_valid_QG, reward_QG, 0.0) - _mean(reward_QG, is_valid_QG)[:, None]
    return np.where(is_valid_QG & is_mixed_Q1, centred_QG, 0.0)


def standardised(
    reward_QG: Float[np.ndarray, "Q G"],
    is_valid_QG: Bool[np.ndarray, "Q G"],
    *,
    ddof: int,
    eps: float,
    spread_QG: Float[np.ndarray, "Q G"] | None = None,
) -> Float32[np.ndarray, "Q G"]:
    """The centred reward over the standard deviation of the group.

        A[q,g] = (r[q,g] - mean r[q]) / (std r[q] + eps)

    Args:
      ddof: 0 divides the variance by the number of valid samples, 1 by one less.
      spread_QG: rewards whose deviation is taken, where it is not that of `reward_QG`.
    Returns: float32 [Q, G]; 0 where `centred` is, and divided by 1 + eps where the deviation is 0.
    Source: Shao et al. 2024 (GRPO), arXiv 2402.03300, section 4.1.2.
    """
    std_Q = group_std(reward_QG if spread_QG is None else spread_QG, is_valid_QG, ddof=ddof)
    scaled_QG: np.ndarray = centred(reward_QG, is_valid_QG) / (std_Q[:, None] + eps)
    return scaled_QG.astype(np.float32)


def leave_one_out(
    reward_QG: Float[np.ndarray, "Q G"], is_valid_QG: Bool[np.ndarray, "Q G"]
) -> Float32[np.ndarray, "Q G"]:
    """The advantage of each sample over the mean of its valid siblings.

        A[q,g] = r[q,g] - mean of r[q,h] over h != g = n / (n - 1) * (r[q,g] - mean r[q])

    Returns: float32 [Q, G]; 0 where not valid, and in groups with fewer than two valid samples.
    Source: Ahmadian et al. 2024 (RLOO), arXiv 2402.14740, section 3.3; Kool et al. 2019.
    """
    num_Q1 = np.sum(is_valid_QG, axis=1, keepdims=True)
    scaled_QG: np.ndarray = num_Q1 / np.maximum(num_Q1 - 1, 1) * centred(reward_QG, is_valid_QG)
    return scaled_QG.astype(np.float32)


def whitened(
    value: Float[np.ndarray, "*shape"],
    count: Int[np.ndarray, "*shape"] | Bool[np.ndarray, "*shape"],
    *,
    ddof: int,
    eps: float,
) -> Float32[np.ndarray, "*shape"]:
    """Values less their mean, over their standard deviation, each counted `count` times.

        (value - mean) / (std + eps)

    Args:
      value: any value where the count is 0.
      count: how many tokens have this value; a mask is a count of 0 or 1.
    Returns: float32 of the same shape; 0 where the count is 0, and everywhere if all values that
      count are equal.
    Source: Hu et al. 2025 (REINFORCE++), arXiv 2501.03262, the normalisation over the global batch.
    """
    counts = np.asarray(count, np.float64)
    value = np.where(counts > 0, value, 0.0)
    if not (counts > 0).any() or np.ptp(value[counts > 0]) == 0:
        return np.zeros(value.shape, np.float32)
    deviation = value - (counts * value).sum() / counts.sum()
    variance = (counts * deviation**2).sum() / (counts.sum() - ddof)
    return np.where(counts > 0, deviation / (np.sqrt(variance) + eps), 0.0).astype(np.float32)


def group_std(
    reward_QG: Float[np.ndarray, "Q G"], is_valid_QG: Bool[np.ndarray, "Q G"], *, ddof: int
) -> Float[np.ndarray, " Q"]:
    """Standard deviation over the valid samples; 1 where they are fewer than two or all equal, so
    that dividing the zeros of `centred` by it is harmless even with eps = 0.
    """
    deviation_QG = np.where(is_valid_QG, reward_QG, 0.0) - _mean(reward_QG, is_valid_QG)[:, None]
    squares_Q = np.sum(np.where(is_valid_QG, deviation_QG**2, 0.0), axis=1, dtype=np.float64)
    std_Q = np.sqrt(squares_Q / np.maximum(is_valid_QG.sum(axis=1) - ddof, 1))
    return np.where(is_mixed(reward_QG, is_valid_QG), std_Q, 1.0)


def is_mixed(
    reward_QG: Float[np.ndarray, "Q G"], is_valid_QG: Bool[np.ndarray, "Q G"]
) -> Bool[np.ndarray, " Q"]:
    """Whether the valid rewards of a group differ (which takes at least two)."""
    highest_Q = np.max(np.where(is_valid_QG, reward_QG, -np.inf), axis=1, initial=-np.inf)
    lowest_Q = np.min(np.where(is_valid_QG, reward_QG, np.inf), axis=1, initial=np.inf)
    is_mixed_Q: np.ndarray = highest_Q > lowest_Q
    return is_mixed_Q


def _mean(reward_QG: np.ndarray, is_valid_QG: np.ndarray) -> np.ndarray:
    total_Q = np.sum(np.where(is_valid_QG, reward_QG, 0.0), axis=1, dtype=np.float64)
    mean_Q: np.ndarray = total_Q / np.maximum(is_valid_QG.sum(axis=1), 1)
    return mean_Q
