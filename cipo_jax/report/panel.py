"""The parts that pictures share: style, colours, the page, curves with intervals, axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from cipo_jax.evaluate.measures import Estimate

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
INK, PALE = "#222222", "#DDDDDD"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


End = tuple[float, str, str]
"""The right end of a line: its height, its label, its colour."""


def page(
    width: float,
    height: float,
    title: str,
    note: str,
    *,
    left: float,
    title_at: float,
    note_at: float,
    head: float,
    w_pad: float,
    h_pad: float,
    wspace: float,
    hspace: float | None = None,
    fontsize: float = 13,
) -> Figure:
    """A figure with a title, a note below it, and room for panels below both.

    Args: lengths are in inches, from the left and from the top.
      head: where the panels may begin.
      w_pad, h_pad, wspace, hspace: of `ConstrainedLayoutEngine`.
    """
    layout = ConstrainedLayoutEngine(
        w_pad=w_pad, h_pad=h_pad, wspace=wspace, hspace=hspace, rect=(0, 0, 1, 1 - head / height)
    )
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    x, y = left / width, 1 - title_at / height
    figure.suptitle(title, x=x, y=y, ha="left", va="top", fontsize=fontsize, weight="bold")
    figure.text(x, 1 - note_at / height, note, ha="left", va="top", color=GREY)
    return figure


def points(by_x: Mapping[int, Estimate] | Mapping[str, Estimate]) -> tuple[np.ndarray, ...]:
    """x, means and both ends of the intervals of those estimates that are defined."""
    rows = [
        (float(x), e["mean"], e["low"], e["high"]) for x, e in by_x.items() if e["mean"] is not None
    ]
    x, mean, low, high = np.array(rows, dtype=float).reshape(-1, 4).T
    # A bootstrap mean may be a rounding error outside its interval.
    return x, mean, np.minimum(low, mean), np.maximum(high, mean)


def draw_intervals(
    ax: Axes, x: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str
) -> None:
    """A line through means with their intervals."""
    ax.errorbar(
        x, mean, yerr=[mean - low, high - mean], color=colour, lw=2, marker="o", ms=5,
        elinewidth=1.1, clip_on=False,
    )  # fmt: skip


def draw_pass_at_k(
    ax: Axes, curves: Sequence[tuple[Mapping[str, Estimate], str, str]]
) -> list[End]:
    """At most two curves of pass@k, a little apart so that no interval hides the other.

    Args:
      curves: estimates by k, label, colour.
    Returns: the ends of those that are defined somewhere, for `finish_shares`.
    """
    ends = []
    for offset, (by_k, label, colour) in zip((0.985, 1.015), curves, strict=False):
        k, mean, low, high = points(by_k)
        if len(k):
            draw_intervals(ax, k * offset, mean, low, high, colour)
            ends.append((float(mean[-1]), label, colour))
    k_axis(ax, sorted({int(k) for by_k, _, _ in curves for k in by_k}))
    return ends


def k_axis(ax: Axes, ks: Sequence[int]) -> None:
    """A logarithmic axis with a tick at each k."""
    if ks:
        log_axis(ax, ks, [str(k) for k in ks])


def log_axis(ax: Axes, ticks: Sequence[float], labels: Sequence[str]) -> None:
    """A logarithmic axis with these ticks alone."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(labels)


def finish_shares(ax: Axes, ends: Sequence[End], *, gap: float = 0.075) -> None:
    """A 0 to 100 % axis, with each line's name at its right end."""
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(length=0)
    ax.spines["left"].set_visible(False)
    if not ends:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, color=GREY, ha="center")
        return
    for y, (_, label, colour) in zip(apart([e[0] for e in ends], gap), ends, strict=True):
        ax.annotate(
            label, xy=(1.0, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", color=colour, va="center",
            annotation_clip=False, linespacing=1.25,
        )  # fmt: skip


def apart(wanted: list[float], gap: float) -> list[float]:
    """Heights near the wanted ones, in their order, at least `gap` from each other and in 0..1."""
    order = np.argsort(wanted, stable=True)
    placed = np.array(wanted)[order]
    # Neighbours push each other away evenly; then the ends of the axis push back.
    for _ in range(50):
        for i in range(len(placed) - 1):
            push = max(0.0, gap - (placed[i + 1] - placed[i])) / 2
            placed[i] -= push
            placed[i + 1] += push
    for i in range(len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap if i else 0.0)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], placed[i + 1] - gap if i + 1 < len(placed) else 1.0)
    heights = np.empty(len(wanted))
    heights[order] = placed
    return heights.tolist()
