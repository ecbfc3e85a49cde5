"""Before against after on the held-out problems, as a table for the terminal."""

from __future__ import annotations

import rich.console
from rich.table import Table

from cipo_jax.evaluate.figures import HeldOut, common_accuracies
from cipo_jax.evaluate.measures import Estimate, paired_difference
from cipo_jax.report.tables import shown


def comparison(before: HeldOut, after: HeldOut) -> Table:
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


def figures(before: HeldOut, after: HeldOut) -> list[tuple[str, str, str]]:
    """(label, before, after) of each figure that either has, as text; a dash where one lacks it."""
    old, new = _labelled(before), _labelled(after)
    pairs = [(label, old.get(label), new.get(label)) for label in old | new]
    return [(label, shown(x), shown(y)) for label, x, y in pairs if x or y]


def print_comparison(before: HeldOut, after: HeldOut, *, seed: int) -> None:
    """Print the table, and the paired difference in accuracy with what it says."""
    console = rich.console.Console(highlight=False)
    if not console.is_terminal:
        # A file has no width; 80 columns would break the labels.
        console.width = 120
    console.print()
    console.print(comparison(before, after))
    unknown = [_unknown_share(before), _unknown_share(after)]
    if max(unknown) > 0:
        console.print(
            f"verdicts unknown and left out: {unknown[0]:.1%} before, {unknown[1]:.1%} after"
        )
    first_Q, second_Q = common_accuracies(before["per_problem"], after["per_problem"], "sampled")
    difference = paired_difference(first_Q, second_Q, seed=seed)
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
        f"\naccuracy, after - before on the same {len(second_Q)} problems: "
        f"{difference['mean']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]; {verdict}"
    )


def _labelled(evaluation: HeldOut) -> dict[str, Estimate | None]:
    """The figures of the table, by label. Programs have no majority, and no answer to repeat."""
    streams, correction = evaluation["streams"], evaluation["correction"]
    k = max(evaluation["pass_at_k"], key=int)
    return {
        "accuracy, greedy": streams["greedy"]["accuracy"],
        f"accuracy, sampled (mean of {streams['sampled']['samples']})": (
            streams["sampled"]["accuracy"]
        ),
        f"pass@{k}": evaluation["pass_at_k"][k],
        f"maj@{k}": evaluation["maj_at_k"].get(k),
        "corrections: accuracy of the attempts": correction["accuracy_before"],
        "corrections: accuracy after correcting": correction["accuracy_after"],
        "corrections: wrong made right (fix rate)": correction["fix_rate"],
        "corrections: right kept right (retention)": correction["retention"],
        "corrections: wrong answer repeated": correction.get("copy_rate"),
    }


def _unknown_share(evaluation: HeldOut) -> float:
    """Share of all verdicts."""
    streams = evaluation["streams"].values()
    total = evaluation["problems"] * sum(s["samples"] for s in streams)
    return sum(s["unknown"] for s in streams) / total
