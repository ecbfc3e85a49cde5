"""The figures of an evaluation, in the form in which they are stored.

`summary.json` of a benchmark holds a `BenchmarkSummary`; `evaluations.json` of a run a list of
`HeldOut`. Nothing here knows how the figures come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Float64, Int

from cipo_jax.evaluate.correction import ChainsAgainstSamples
from cipo_jax.evaluate.measures import Estimate

StreamName = Literal["greedy", "sampled", "corrected", "critique", "critique_corrected"]


class StreamFigures(TypedDict):
    """The figures of one stream; means are over its completions."""

    samples: int
    """n, of each problem."""
    accuracy: Estimate
    """avg@n: the share of known verdicts that are right, averaged over problems."""
    tokens: float
    prompt_tokens: float
    truncated: float
    """Share of completions that the length limit cut."""
    unknown: int
    """Number of unknown verdicts."""


class Summary(TypedDict):
    """All figures, ready for JSON. Intervals are over problems; unknown verdicts take no part."""

    problems: int
    streams: dict[StreamName, StreamFigures]
    pass_at_k: dict[str, Estimate]
    """By k, before correction; empty without samples."""
    pass_at_k_corrected: dict[str, Estimate]
    """After correction; empty unless each attempt was corrected once."""
    maj_at_k: dict[str, Estimate]
    """As pass_at_k; empty too for programs, which have no answer to vote by."""
    maj_at_k_corrected: dict[str, Estimate]
    correction: dict[str, Estimate]
    """`correction_measures`; without `copy_rate` where no answer was read."""
    by_pass_rate: dict[str, dict[str, Any]]
    """`correction`, and the number of problems, for those of which none, at most half, and more
    than half of the samples are right."""
    equal_tokens: list[ChainsAgainstSamples]
    """Empty unless each attempt was corrected once."""
    critique: dict[str, dict[str, Estimate]]
    """`critique_measures`, over all critiques and by tag; empty without critiques."""
    critique_correction: dict[str, dict[str, Estimate]]
    """`correction_measures` of the given responses, over all of them and by tag."""
    by_tag: dict[str, dict[str, Any]]
    """For each tag and value: number of problems, and the accuracy of each stream on them."""
    unknown: list[dict[str, Any]]
    """Which verdicts are unknown, and why."""


class BenchmarkSummary(Summary):
    """The summary.json of a benchmark."""

    benchmark: str
    title: str
    rows_published: int
    left_out: dict[str, int]
    """Rows that are not judged here, by reason."""
    note: str
    seconds: float


ProblemCounts = dict[str, Any]
"""The counts of one problem: `problem_id`, `tags`, and for each stream `STREAM_known` and
`STREAM_right` (known and right verdicts) and `STREAM_tokens` (sampled tokens). Two evaluations are
compared by these."""


class HeldOut(Summary):
    """An entry of evaluations.json."""

    step: int
    """Steps of training before it."""
    seconds: float
    per_problem: list[ProblemCounts]


def accuracies(counts: Sequence[ProblemCounts], stream: StreamName) -> Float64[np.ndarray, " Q"]:
    """The share of each problem's known verdicts that are right; NaN where none is known."""
    right_Q, known_Q = num_verdicts(counts, stream)
    return np.where(known_Q > 0, right_Q / np.maximum(known_Q, 1), np.nan)


def num_verdicts(
    counts: Sequence[ProblemCounts], stream: StreamName
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """Numbers of right and of known verdicts."""
    right = [problem[f"{stream}_right"] for problem in counts]
    return np.array(right, int), np.array([problem[f"{stream}_known"] for problem in counts], int)


def common_accuracies(
    before: Sequence[ProblemCounts], after: Sequence[ProblemCounts], stream: StreamName
) -> tuple[Float64[np.ndarray, " Q"], Float64[np.ndarray, " Q"]]:
    """`accuracies` before and after, of the problems that both have, in one order."""
    old = {problem["problem_id"]: problem for problem in before}
    both = [problem for problem in after if problem["problem_id"] in old]
    return accuracies([old[p["problem_id"]] for p in both], stream), accuracies(both, stream)
