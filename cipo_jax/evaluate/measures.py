"""Measures of an evaluation: accuracies, pass@k and majority votes, with their intervals.

Arrays of verdicts in, numbers with bootstrap intervals out. The unit of resampling is always the
problem, since the samples of one problem are not independent of each other. It knows nothing of
models, prompts or verifiers; a verdict that is unknown is left out by the caller.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float64, Int, Num, Shaped

RESAMPLES = 2000
LEVEL = 0.95


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 and so on, up to `limit`: the k at which pass@k and maj@k are given."""
    return [2**i for i in range(limit.bit_length())]


class Estimate(TypedDict):
    """A figure with its bootstrap interval; all None where it is undefined."""

    mean: float | None
    low: float | None
    high: float | None


def pass_at_k(
    num_right_Q: Int[np.ndarray, " Q"], num_samples_Q: Int[np.ndarray, " Q"], k: int
) -> Float64[np.ndarray, " Q"]:
    """The chance that at least one of k samples of a problem is right, estimated from n >= k.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - product over j in n-c+1..n of (1 - k / j)

    The plain "any of the first k" has the same mean and a larger variance; k-th powers of c / n are
    biased.

    Args:
      num_right_Q: c, correct samples of each problem, 0 <= c <= n.
      num_samples_Q: n, samples of each problem.
    Returns: float64 [Q], each unbiased for its problem.
    Raises: ValueError if k < 1, k > n or c > n.
    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    if num_right_Q.size and not 1 <= k <= num_samples_Q.min():
        raise ValueError(
            f"pass@{k} of {num_samples_Q.min()} samples: k must be at least 1, and no problem may "
            "have fewer samples than k. Take a smaller k or more samples."
        )
    if np.any(num_right_Q > num_samples_Q) or np.any(num_right_Q < 0):
        raise ValueError(
            "pass@k: the number of right samples is not between 0 and that of samples."
        )
    return np.array(
        [
            1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1, dtype=np.float64))
            for c, n in zip(num_right_Q.tolist(), num_samples_Q.tolist(), strict=True)
        ],
        dtype=np.float64,
    )


def pass_at_mean_k(
    num_right_Q: Int[np.ndarray, " Q"], num_samples_Q: Int[np.ndarray, " Q"], k: float
) -> Float64[np.ndarray, " Q"]:
    """pass@k at a mean number of samples that need not be whole: of two neighbouring whole numbers,
    drawn so that their mean is k. So two ways of spending the same tokens can be compared."""
    low = math.floor(k)
    share = k - low
    value_Q = pass_at_k(num_right_Q, num_samples_Q, low)
    if share == 0:
        return value_Q
    return (1 - share) * value_Q + share * pass_at_k(num_right_Q, num_samples_Q, low + 1)


def majority_at_k(
    answers: Sequence[Sequence[str | None]], is_right: Sequence[Sequence[bool]], k: int
) -> Float64[np.ndarray, " Q"]:
    """The chance that the most frequent of k answers to a problem is right, ties drawn evenly.

    Where t answers share the largest count, and r of them are right, the credit is r / t. An answer
    counts as right if most of its samples were judged so (they differ only if equal texts got
    different verdicts).

    Args:
      answers: canonical answers of each problem's samples; None where there was none.
      is_right: their verdicts.
      k: votes; the samples are cut into as many groups of k as there are, the remaining ones are
        not used, and the mean over the groups is unbiased.
    Returns: float64 [Q]; 0 where no sample of a group has an answer, NaN for a problem with fewer
      samples than k.
    """
    credit = []
    for given, right in zip(answers, is_right, strict=True):
        starts = range(0, len(given) - k + 1, k)
        groups = [_majority(given[i : i + k], right[i : i + k]) for i in starts]
        credit.append(float(np.mean(groups)) if groups else math.nan)
    return np.array(credit, dtype=np.float64)


def _majority(given: Sequence[str | None], right: Sequence[bool]) -> float:
    votes: Counter[str] = Counter(a for a in given if a is not None)
    right_votes: Counter[str] = Counter(
        a for a, ok in zip(given, right, strict=True) if a is not None and ok
    )
    most = max(votes.values(), default=0)
    tied = [a for a, count in votes.items() if count == most]
    return sum(2 * right_votes[a] > votes[a] for a in tied) / len(tied) if tied else 0.0


def mean_with_interval(value_Q: Shaped[np.ndarray, " Q"], *, seed: int) -> Estimate:
    """The mean over problems. NaN marks a problem without a value, which is left out."""
    value_Q = np.asarray(value_Q, np.float64)
    has_value_Q = ~np.isnan(value_Q)
    return ratio(np.where(has_value_Q, value_Q, 0.0), has_value_Q.astype(np.float64), seed=seed)


def paired_difference(first_Q: np.ndarray, second_Q: np.ndarray, *, seed: int) -> Estimate:
    """Mean of second minus first over the same problems.

    Problems are resampled in pairs, so that their differing difficulty cancels; the intervals of
    two separate means overlap long before a difference is in doubt.

    Raises: ValueError if the two don't have the same problems.
    """
    first_Q, second_Q = np.asarray(first_Q, np.float64), np.asarray(second_Q, np.float64)
    if first_Q.shape != second_Q.shape:
        raise ValueError(
            f"A paired difference needs the same problems, in one order: got {len(first_Q)} and "
            f"{len(second_Q)} of them."
        )
    return mean_with_interval(second_Q - first_Q, seed=seed)


def ratio(sum_Q: Num[np.ndarray, " Q"], count_Q: Num[np.ndarray, " Q"], *, seed: int) -> Estimate:
    """Total over count, with the percentile interval of resampled problems.

    Resamples with a count of 0 are left out. Where all problems agree the interval has no width,
    which says little about few problems.
    """
    if not count_Q.sum():
        return Estimate(mean=None, low=None, high=None)
    num_problems = len(sum_Q)
    rng = np.random.default_rng(seed)
    # How often each problem is drawn is all that a resample is.
    weight_by_draw = rng.multinomial(
        num_problems, np.full(num_problems, 1 / num_problems), RESAMPLES
    )
    total, drawn = weight_by_draw @ sum_Q, weight_by_draw @ count_Q
    ratios = total[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean=float(sum_Q.sum() / count_Q.sum()), low=float(low), high=float(high))
