"""Measures of critiques: how well wrong responses are told from right ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from cipo_jax.evaluate.measures import Estimate, ratio


def critique_measures(
    is_response_right_N: Bool[np.ndarray, " N"],
    said_right: Sequence[bool | None],
    *,
    seed: int,
) -> dict[str, Estimate]:
    """F1, precision and recall of critiques, the positive class being "the response is wrong".

        F1 = 2 TP / (2 TP + FP + FN)

    A critique without a readable verdict counts as the wrong verdict: FN for a wrong response, FP
    for a right one.

    Args:
      said_right: the verdict of each critique; None where none can be read.
    Returns: an estimate by name, with `unreadable` the share of critiques without a verdict; None
      where undefined, as F1 is where there is nothing but right responses, all found right.
    Source: CriticBench (arXiv 2402.14809) and its code.
    """
    is_wrong_N = ~np.asarray(is_response_right_N, bool)
    is_unreadable_N = np.array([said is None for said in said_right], bool)
    said_wrong_N = np.array([said is False for said in said_right], bool)
    said_wrong_N = np.where(is_unreadable_N, ~is_wrong_N, said_wrong_N)
    hit_N = (is_wrong_N & said_wrong_N).astype(np.float64)
    called_N, wrong_N = said_wrong_N.astype(np.float64), is_wrong_N.astype(np.float64)
    return {
        "f1": ratio(2 * hit_N, called_N + wrong_N, seed=seed),
        "precision": ratio(hit_N, called_N, seed=seed),
        "recall": ratio(hit_N, wrong_N, seed=seed),
        "accuracy": ratio(
            (is_wrong_N == said_wrong_N).astype(np.float64), np.ones(len(hit_N)), seed=seed
        ),
        "unreadable": ratio(is_unreadable_N.astype(np.float64), np.ones(len(hit_N)), seed=seed),
    }
