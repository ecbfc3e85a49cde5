"""The page on a study: its arms side by side, with what a few seeds can tell and what not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from cipo_jax.config import atomic
from cipo_jax.evaluate.figures import accuracies
from cipo_jax.evaluate.measures import mean_with_interval, paired_difference
from cipo_jax.report.panel import BLUE, GREEN, GREY, INK, ORANGE, STYLE, finish_shares, k_axis, page
from cipo_jax.report.run_files import is_finished, read_evaluations, read_metrics
from cipo_jax.report.tables import shown, table


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One run of an arm."""

    seed: int
    accuracy_Q: Float64[np.ndarray, " Q"]
    """On each held-out problem, after training."""
    figures: Mapping[str, Any]
    """Its part of the page. Tokens are those sampled in training, both streams together; seconds
    are those of the steps, without evaluations."""


def write(folder: Path, *, name: str, arms: Sequence[str]) -> Path:
    """Write study.md, study.json and study.png from the runs that are finished.

    Returns: the path of study.md.
    Raises: ValueError if none is.
    """
    finished = {arm: runs for arm in arms if (runs := _finished(folder / arm))}
    if not finished:
        raise ValueError(f"{folder} holds no finished run.")
    figures = compare_arms(finished)
    atomic.write_json(folder / "study.json", figures)
    draw(figures, name).savefig(folder / "study.png", format="png", facecolor="white")
    atomic.write_text(folder / "study.md", _page(figures, name))
    return folder / "study.md"


def compare_arms(finished: Mapping[str, Sequence[FinishedRun]]) -> dict[str, Any]:
    """Figures of each arm, from its runs.

    `accuracy` is avg@n on the held-out problems after training, the mean over seeds, with a
    bootstrap interval over problems; `difference` is that of the arm minus the first arm's, paired
    over problems; `by_seed` are the single runs, whose spread is the noise of training.
    """
    (first, reference), *_ = finished.items()
    found: dict[str, Any] = {}
    for arm, runs in finished.items():
        value_Q = _mean_over_seeds(runs)
        found[arm] = {
            "seeds": [run.seed for run in runs],
            "accuracy": mean_with_interval(value_Q, seed=0),
            "difference": None
            if arm == first
            else paired_difference(_mean_over_seeds(reference), value_Q, seed=0),
            "by_seed": {name: [run.figures[name] for run in runs] for name in runs[0].figures},
        }
    return found


def _mean_over_seeds(runs: Sequence[FinishedRun]) -> Float64[np.ndarray, " Q"]:
    """Accuracy on each problem; problems are the same in all runs."""
    return np.asarray(np.mean([run.accuracy_Q for run in runs], axis=0))


def _finished(folder: Path) -> list[FinishedRun]:
    runs = (run for run in folder.glob("seed-*") if is_finished(run))
    return sorted(map(_read, runs), key=lambda run: run.seed)


def _read(run: Path) -> FinishedRun:
    metrics, evaluations = read_metrics(run), read_evaluations(run)
    before, after = evaluations[0], evaluations[-1]
    return FinishedRun(
        seed=int(run.name.removeprefix("seed-")),
        accuracy_Q=accuracies(after["per_problem"], "sampled"),
        figures={
            "accuracy_before": before["streams"]["sampled"]["accuracy"]["mean"],
            "accuracy": after["streams"]["sampled"]["accuracy"]["mean"],
            "greedy": after["streams"]["greedy"]["accuracy"]["mean"],
            "fix_rate": after["correction"]["fix_rate"]["mean"],
            "retention": after["correction"]["retention"]["mean"],
            "pass_at_k": {k: e["mean"] for k, e in after["pass_at_k"].items()},
            "steps": len(metrics),
            "tokens": sum(m["tokens/sampled"] for m in metrics),
            "seconds": sum(m["time/step_s"] for m in metrics),
        },
    )


# --- the page -----------------------------------------------------------------------------------


def _page(figures: Mapping[str, Any], name: str) -> str:
    head = ["arm", "seeds", "before", "accuracy", "minus the first arm", "greedy", "pass@k",
            "fix rate", "retention", "steps", "sampled tokens", "seconds"]  # fmt: skip
    return f"""# {name}

{table(head, [_row(arm, entry) for arm, entry in figures.items()])}

Means over seeds; in round brackets the lowest and the highest seed. Square brackets are 95 %
bootstrap intervals over the held-out problems, with the seeds averaged: they say how much hangs on
the problems that were drawn. How much hangs on the seed is what the round brackets show, and with
few seeds that is little evidence: a difference inside them is none.

![](study.png)
"""


def _row(arm: str, entry: Mapping[str, Any]) -> list[str]:
    runs = entry["by_seed"]
    k = max(runs["pass_at_k"][0], key=int)
    return [
        arm,
        str(len(entry["seeds"])),
        _spread(runs["accuracy_before"]),
        f"{shown(entry['accuracy'])} {_spread(runs['accuracy'], with_mean=False)}",
        shown(entry["difference"], "+.3f"),
        _spread(runs["greedy"]),
        f"{_spread([p[k] for p in runs['pass_at_k']])} k={k}",
        _spread(runs["fix_rate"]),
        _spread(runs["retention"]),
        _spread(runs["steps"], ".0f"),
        _spread(runs["tokens"], ",.0f"),
        _spread(runs["seconds"], ",.0f"),
    ]


def _spread(values: Sequence[float | None], form: str = ".3f", *, with_mean: bool = True) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    ends = f"({min(known):{form}} to {max(known):{form}})"
    return f"{np.mean(known):{form}} {ends}" if with_mean else ends


# --- the picture --------------------------------------------------------------------------------

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", INK, GREY)


def draw(figures: Mapping[str, Any], name: str) -> Figure:
    """Accuracy, fix rate and retention of each arm, one dot a seed, and pass@k by arm."""
    note = "After training, on held-out problems. Small dots: single seeds; bars: their means."
    with matplotlib.rc_context(STYLE):
        figure = page(
            13, max(4.0, 1.6 + 0.42 * len(figures)), name, note,
            left=0.156, title_at=0.12, note_at=0.45, head=0.75, w_pad=0.12, h_pad=0.1, wspace=0.04,
        )  # fmt: skip
        axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
        for ax, key, title in (
            (axes[0], "accuracy", "Accuracy, sampled"),
            (axes[1], "fix_rate", "Fix rate"),
            (axes[2], "retention", "Retention"),
        ):
            _draw_dots(ax, figures, key)
            ax.set_title(title)
            if ax is not axes[0]:
                ax.set_yticklabels([])
        _draw_means(axes[3], figures)
        return figure


def _draw_dots(ax: Axes, figures: Mapping[str, Any], key: str) -> None:
    for i, entry in enumerate(figures.values()):
        values = [v for v in entry["by_seed"][key] if v is not None]
        colour = COLOURS[i % len(COLOURS)]
        if not values:
            ax.text(0.5, i, "not measured", ha="center", va="center", color=GREY)
            continue
        ax.plot(values, [i] * len(values), ".", color=colour, ms=8, alpha=0.6, mew=0)
        ax.plot([np.mean(values)] * 2, [i - 0.25, i + 0.25], color=colour, lw=2.5)
    ax.set_ylim(len(figures) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_yticks(range(len(figures)), list(figures))
    ax.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    ax.tick_params(length=0)


def _draw_means(ax: Axes, figures: Mapping[str, Any]) -> None:
    ax.set_title("pass@k, mean over seeds")
    ends, ks = [], []
    for i, (arm, entry) in enumerate(figures.items()):
        by_seed = entry["by_seed"]["pass_at_k"]
        ks = sorted(map(int, by_seed[0]))
        mean = [float(np.mean([run[str(k)] for run in by_seed])) for k in ks]
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(ks, mean, color=colour, lw=2, marker="o", ms=4)
        ends.append((mean[-1], arm, colour))
    finish_shares(ax, ends, gap=0.07)
    k_axis(ax, ks)
    ax.set_xlabel("k")
