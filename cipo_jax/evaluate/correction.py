"""Measures of correction: its effect on attempts, and whether it is worth its tokens.

Arrays of verdicts in, numbers with bootstrap intervals over problems out, as in `measures.py`.
The letter U counts pairs of an attempt and its correction.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int

from cipo_jax.evaluate.measures import (
    Estimate,
    mean_with_interval,
    paired_difference,
    pass_at_k,
    pass_at_mean_k,
    powers_of_two,
    ratio,
)


def correction_measures(
    problem_I: Int[np.ndarray, " I"],
    was_right_I: Bool[np.ndarray, " I"],
    is_right_I: Bool[np.ndarray, " I"],
    *,
    is_copy_I: Bool[np.ndarray, " I"] | None = None,
    seed: int,
) -> dict[str, Estimate]:
    """The effect of corrections on their attempts, over the pairs (attempt, correction).

        accuracy_before = P(z)           fixed  = P(not z and r)     fix_rate   = P(r | not z)
        accuracy_after  = P(r)           broken = P(z and not r)     retention  = P(r | z)
        change = accuracy_after - accuracy_before = fixed - broken   break_rate = 1 - retention

    with a = accuracy_before, accuracy_after = a * retention + (1 - a) * fix_rate: corrections help
    if and only if (1 - a) * fix_rate > a * (1 - retention).

    Args:
      problem_I: which problem the pair belongs to, for the resampling.
      was_right_I: z, the verdict on the attempt.
      is_right_I: r, the verdict on the correction.
      is_copy_I: whether the correction has the attempt's answer; adds `copy_rate`, over wrong
        attempts.
    Returns: an estimate by name; a conditional rate is None where its condition never held.
    """
    z, r = np.asarray(was_right_I, bool), np.asarray(is_right_I, bool)
    _, problem_I = np.unique(np.asarray(problem_I), return_inverse=True)

    def per_problem(event_I: np.ndarray) -> np.ndarray:
        return np.bincount(problem_I, weights=event_I.astype(np.float64))

    def rate(event_I: np.ndarray, given_I: np.ndarray) -> Estimate:
        return ratio(per_problem(event_I & given_I), per_problem(given_I), seed=seed)

    every = np.ones_like(z)
    measures = {
        "accuracy_before": rate(z, every),
        "accuracy_after": rate(r, every),
        "change": ratio(per_problem(r) - per_problem(z), per_problem(every), seed=seed),
        "fixed": rate(~z & r, every),
        "broken": rate(z & ~r, every),
        "fix_rate": rate(r, ~z),
        "retention": rate(r, z),
        "break_rate": rate(~r, z),
    }
    if is_copy_I is not None:
        measures["copy_rate"] = rate(np.asarray(is_copy_I, bool), ~z)
    return measures


class ChainsAgainstSamples(TypedDict):
    """Solved problems by two ways of spending the same tokens on each."""

    chains: int
    """k, attempts that are each corrected once."""
    samples: float
    """m, plain samples for the same tokens."""
    tokens: float
    """Sampled tokens of a problem, by either way. Prompts are not counted."""
    sequential: Estimate
    """An attempt or its correction is right, in one of k chains."""
    parallel: Estimate
    """One of m samples is right."""
    difference: Estimate
    """Sequential minus parallel, paired over problems."""


def equal_tokens(
    num_right_Q: Int[np.ndarray, " Q"],
    num_solved_Q: Int[np.ndarray, " Q"],
    num_chains_Q: Int[np.ndarray, " Q"],
    *,
    attempt_tokens: float,
    correction_tokens: float,
    seed: int,
) -> list[ChainsAgainstSamples]:
    """Correcting k attempts against sampling more of them, at equal tokens.

        m = k (t1 + t2) / t1,    sequential = pass@k of chains,    parallel = pass@m of attempts

    with t1 and t2 the mean tokens of an attempt and of a correction. Both pick the right one out of
    what they made, so this is about reach; whether the last word of a chain is better than its
    first is `correction_measures`.

    Args:
      num_right_Q: correct attempts of each problem.
      num_solved_Q: chains whose attempt or correction is correct.
      num_chains_Q: chains of each problem; problems without any are left out.
    Returns: one entry for each power of two k for which there are m attempts of every problem.
    """
    has_chains_Q = num_chains_Q > 0
    right_Q, solved_Q, chains_Q = (
        x[has_chains_Q] for x in (num_right_Q, num_solved_Q, num_chains_Q)
    )
    if not len(chains_Q) or attempt_tokens <= 0:
        return []
    found = []
    for k in powers_of_two(int(chains_Q.min())):
        samples = k * (attempt_tokens + correction_tokens) / attempt_tokens
        if np.ceil(samples) > chains_Q.min():
            break
        sequential_Q = pass_at_k(solved_Q, chains_Q, k)
        parallel_Q = pass_at_mean_k(right_Q, chains_Q, samples)
        found.append(
            ChainsAgainstSamples(
                chains=k,
                samples=samples,
                tokens=samples * attempt_tokens,
                sequential=mean_with_interval(sequential_Q, seed=seed),
                parallel=mean_with_interval(parallel_Q, seed=seed),
                difference=paired_difference(parallel_Q, sequential_Q, seed=seed),
            )
        )
    return found
