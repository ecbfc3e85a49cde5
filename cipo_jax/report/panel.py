"""What the panels of all pictures share: colours, style, shares with intervals, names at lines."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, PercentFormatter

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


def draw_intervals(
    ax: Axes, x: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str
) -> None:
    """A line through means with their intervals."""
    ax.errorbar(
        x, mean, yerr=[mean - low, high - mean], color=colour, lw=2, marker="o", ms=5,
        elinewidth=1.1, clip_on=False,
    )  # fmt: skip


def finish_shares(ax: Axes, ends: list[tuple[float, str, str]], *, gap: float = 0.075) -> None:
    """A 0 to 100 % axis, with each line's name at its right end."""
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.tick_params(length=0)
    ax.spines["left"].set_visible(False)
    if not ends:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, color=GREY, ha="center")
        return
    for y, (_, label, colour) in zip(_apart([e[0] for e in ends], gap), ends, strict=True):
        ax.annotate(
            label, xy=(1.0, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", color=colour, va="center",
            annotation_clip=False, linespacing=1.25,
        )  # fmt: skip


def _apart(wanted: list[float], gap: float) -> list[float]:
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
