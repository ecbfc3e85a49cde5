"""Measures of critiques: how well wrong responses are told from right ones.

The letter U counts pairs of a response and its critique.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from cipo_jax.evaluate.measures import Estimate, ratio


def critique_measures(
    is_response_right_I: Bool[np.ndarray, " I"],
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
    is_wrong_I = ~np.asarray(is_response_right_I, bool)
    is_unreadable_I = np.array([said is None for said in said_right], bool)
    said_wrong_I = np.array([said is False for said in said_right], bool)
    said_wrong_I = np.where(is_unreadable_I, ~is_wrong_I, said_wrong_I)
    hit_I = (is_wrong_I & said_wrong_I).astype(np.float64)
    called_I, wrong_I = said_wrong_I.astype(np.float64), is_wrong_I.astype(np.float64)
    return {
        "f1": ratio(2 * hit_I, called_I + wrong_I, seed=seed),
        "precision": ratio(hit_I, called_I, seed=seed),
        "recall": ratio(hit_I, wrong_I, seed=seed),
        "accuracy": ratio(
            (is_wrong_I == said_wrong_I).astype(np.float64), np.ones(len(hit_I)), seed=seed
        ),
        "unreadable": ratio(is_unreadable_I.astype(np.float64), np.ones(len(hit_I)), seed=seed),
    }
