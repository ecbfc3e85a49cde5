"""Before against after on the held-out problems, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
from rich.table import Table

from cipo_jax.evaluate.measures import Estimate, paired_difference

Evaluation = Mapping[str, Any]
"""One record of evaluations.json."""


def comparison(before: Evaluation, after: Evaluation) -> Table:
    """Accuracy, pass@k and correction rates of two evaluations on the same problems, with 95 %
    bootstrap intervals over problems."""
    table = Table(
        "held-out problems",
        *(f"{when} ({e['step']} steps)" for when, e in (("before", before), ("after", after))),
        box=None,
        padding=(0, 3, 0, 0),
    )
    for row in figures(before, after):
        table.add_row(*row)
    return table


def figures(before: Evaluation, after: Evaluation) -> list[tuple[str, str, str]]:
    """(label, before, after) of each figure, as text."""
    return [
        (label, _shown(_at(before, path)), _shown(_at(after, path)))
        for label, path in _paths(after)
    ]


def print_comparison(before: Evaluation, after: Evaluation, *, seed: int) -> None:
    """Print the table, and the paired difference in accuracy with what it says."""
    console = rich.console.Console(highlight=False)
    if not console.is_terminal:
        # A file has no width; 80 columns would break the labels.
        console.width = 120
    console.print()
    console.print(comparison(before, after))
    if max(before["unknown_share"], after["unknown_share"]) > 0:
        console.print(
            f"verdicts unknown and left out: {before['unknown_share']:.1%} before, "
            f"{after['unknown_share']:.1%} after"
        )
    difference = paired_difference(_accuracy(before), _accuracy(after), seed=seed)
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        console.print("\naccuracy, after - before: no problem has known verdicts on both sides")
        return
    if low > 0:
        verdict = "above 0: better, beyond the noise of the problems drawn"
    elif high < 0:
        verdict = "below 0: worse, beyond the noise of the problems drawn"
    else:
        verdict = "it contains 0: no difference is shown"
    console.print(
        f"\naccuracy, after - before on the same {after['problems']} problems: "
        f"{difference['mean']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]; {verdict}"
    )


def _paths(evaluation: Evaluation) -> list[tuple[str, Sequence[str]]]:
    samples, largest = evaluation["samples"], max(evaluation["pass_at_k"], key=int)
    # Programs have no majority, and neither have evaluations of older versions.
    majority = [(f"maj@{k}", ("maj_at_k", k)) for k in [*evaluation.get("maj_at_k", {})][-1:]]
    return [
        ("accuracy, greedy", ("greedy",)),
        (f"accuracy, sampled (mean of {samples})", ("sampled",)),
        (f"pass@{largest}", ("pass_at_k", largest)),
        *majority,
        ("corrections: accuracy of the attempts", ("correction", "accuracy_before")),
        ("corrections: accuracy after correcting", ("correction", "accuracy_after")),
        ("corrections: wrong made right (fix rate)", ("correction", "fix_rate")),
        ("corrections: right kept right (retention)", ("correction", "retention")),
        ("corrections: wrong answer repeated", ("correction", "copy_rate")),
    ]


def _at(evaluation: Evaluation, path: Sequence[str]) -> Estimate:
    found: Any = evaluation
    for name in path:
        found = found[name]
    return found


def _shown(estimate: Estimate) -> str:
    if estimate["mean"] is None:
        return "–"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _accuracy(evaluation: Evaluation) -> np.ndarray:
    return np.array(
        [
            p["num_right"] / p["num_valid"] if p["num_valid"] else np.nan
            for p in evaluation["per_problem"]
        ]
    )
