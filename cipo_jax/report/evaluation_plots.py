"""The pictures of an evaluation: pass@k before and after correction, what corrections do to
attempts, and whether they are worth their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from cipo_jax.evaluate.figures import BenchmarkSummary
from cipo_jax.report import panel
from cipo_jax.report.panel import BLUE, GREEN, GREY, INK, ORANGE, STYLE, draw_intervals, points

COLUMNS = 3


def draw_all(summaries: Sequence[BenchmarkSummary], folder: Path, *, name: str) -> list[str]:
    """Draw the pictures that there are figures for into `folder`; returns their file names."""
    drawn = []
    for file, figure in (
        ("pass_at_k.png", pass_at_k(summaries, name)),
        ("correction.png", correction(summaries, name)),
        ("equal_tokens.png", equal_tokens(summaries, name)),
    ):
        if figure is not None:
            figure.savefig(folder / file, format="png", facecolor="white")
            drawn.append(file)
    return drawn


def pass_at_k(summaries: Sequence[BenchmarkSummary], name: str) -> Figure | None:
    """One panel a benchmark: pass@k of attempts and of their corrections, and the majority vote."""
    return _grid(
        [s for s in summaries if s["pass_at_k"]],
        _draw_pass_at_k,
        title=f"pass@k of {name}",
        note="Bars: 95% bootstrap intervals over problems.",
        height=2.9,
    )


def correction(summaries: Sequence[BenchmarkSummary], name: str) -> Figure | None:
    """One panel a benchmark: how right and wrong attempts flow into right and wrong corrections."""
    return _grid(
        [s for s in summaries if _flow(s)],
        _draw_flow,
        title=f"What {name} makes of attempts that it corrects",
        note="Left: attempts (CriticBench: given responses). Right: after correction. "
        "Heights are shares of all pairs.",
        height=3.3,
    )


def equal_tokens(summaries: Sequence[BenchmarkSummary], name: str) -> Figure | None:
    """One panel a benchmark: problems solved by chains of attempt and correction, and by plain
    samples, over the tokens that either takes."""
    return _grid(
        [s for s in summaries if s["equal_tokens"]],
        _draw_equal_tokens,
        title=f"Correcting against sampling more, {name}",
        note="Share of problems that a right completion was found for. "
        "Bars: 95% bootstrap intervals over problems.",
        height=2.9,
    )


def _grid(
    summaries: Sequence[BenchmarkSummary],
    draw: Callable[[Axes, BenchmarkSummary], None],
    *,
    title: str,
    note: str,
    height: float,
) -> Figure | None:
    if not summaries:
        return None
    columns = min(COLUMNS, len(summaries))
    rows = math.ceil(len(summaries) / columns)
    with matplotlib.rc_context(STYLE):
        figure = panel.page(
            1.2 + 3.6 * max(columns, 2), 0.95 + height * rows, title, note,
            left=0.15, title_at=0.12, note_at=0.47, head=0.8,
            w_pad=0.1, h_pad=0.1, wspace=0.06, hspace=0.06,
        )  # fmt: skip
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, summary in zip(axes, summaries, strict=False):
            ax.set_title(summary["title"])
            draw(ax, summary)
        for ax in axes[len(summaries) :]:
            ax.set_visible(False)
        return figure


# --- panels -------------------------------------------------------------------------------------


def _draw_pass_at_k(ax: Axes, summary: BenchmarkSummary) -> None:
    ends: list[panel.End] = []
    k, majority, _, _ = points(summary["maj_at_k"])
    if len(k):
        ax.plot(k, majority, color=GREY, lw=1.2, ls=(0, (4, 2)))
        ends.append((float(majority[-1]), "maj@k", GREY))
    ends += panel.draw_pass_at_k(
        ax,
        [
            (summary["pass_at_k"], "attempts", BLUE),
            (summary["pass_at_k_corrected"], "corrected", ORANGE),
        ],
    )
    panel.finish_shares(ax, ends, gap=0.1)
    ax.set_xlabel("k")


def _draw_equal_tokens(ax: Axes, summary: BenchmarkSummary) -> None:
    k, mean, low, high = points(summary["pass_at_k"])
    tokens = k * summary["streams"]["sampled"]["tokens"]
    draw_intervals(ax, tokens, mean, low, high, BLUE)
    ends = [(float(mean[-1]), "samples", BLUE)]
    entries = summary["equal_tokens"]
    _, mean, low, high = points({e["chains"]: e["sequential"] for e in entries})
    draw_intervals(ax, np.array([e["tokens"] for e in entries]), mean, low, high, ORANGE)
    ends.append((float(mean[-1]), "attempt +\ncorrection", ORANGE))
    panel.finish_shares(ax, ends, gap=0.16)
    labels = [f"{t / 1000:.3g}k" if t >= 1000 else f"{t:.0f}" for t in tokens]
    panel.log_axis(ax, tokens.tolist(), labels)
    ax.set_xlabel("sampled tokens per problem")


BAR = 0.07
"""Width of the bars at both sides, of the panel's."""


def _draw_flow(ax: Axes, summary: BenchmarkSummary) -> None:
    """Two stacks, right above wrong, and between them a band for each of the four fates."""
    flow = _flow(summary)
    kept, fixed, broken, stayed = (flow[name] for name in ("kept", "fixed", "broken", "stayed"))
    before, after = kept + broken, kept + fixed
    # Heights from the top: on the left kept, broken | fixed, stayed; on the right kept, fixed |
    # broken, stayed.
    bands = [
        (1 - kept, 1 - kept, kept, BLUE, 0.25),
        (1 - before - fixed - stayed, 0.0, stayed, GREY, 0.25),
        (1 - before, 1 - after - broken, broken, ORANGE, 0.75),
        (1 - before - fixed, 1 - after, fixed, GREEN, 0.75),
    ]
    for left, right, height, colour, alpha in bands:
        if height > 0:
            ax.add_patch(_band(left, right, height, colour, alpha))
    for x, share in ((0.0, before), (1 - BAR, after)):
        ax.add_patch(Rectangle((x, 1 - share), BAR, share, color=BLUE, lw=0))
        ax.add_patch(Rectangle((x, 0), BAR, 1 - share, color=GREY, lw=0))
    for x, ha, share in ((-0.03, "right", before), (1.03, "left", after)):
        if share > 0.04:
            ax.text(x, 1 - share / 2, f"right\n{share:.0%}", ha=ha, va="center", color=BLUE)
        if share < 0.96:
            wrong = f"wrong\n{1 - share:.0%}"
            ax.text(x, (1 - share) / 2, wrong, ha=ha, va="center", color=INK)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    _fates(ax, flow, before)


def _fates(ax: Axes, flow: Mapping[str, float], before: float) -> None:
    """Below the bands, in words: the shares of wrong ones that were fixed, of right ones broken."""
    lines = []
    if before < 1:
        lines.append((f"{flow['fixed'] / (1 - before):.0%} of the wrong mended", GREEN))
    if before > 0:
        lines.append((f"{flow['broken'] / before:.0%} of the right broken", ORANGE))
    for i, (text, colour) in enumerate(lines):
        ax.text(
            0.5, -0.07 - 0.085 * i, text, ha="center", va="top", color=colour, weight="bold",
            transform=ax.transAxes,
        )  # fmt: skip


def _band(left: float, right: float, height: float, colour: str, alpha: float) -> PathPatch:
    """A band of constant height from the lower edge `left` to the lower edge `right`."""
    x0, x1 = BAR, 1 - BAR
    middle = (x0 + x1) / 2
    corners = [
        (x0, left), (middle, left), (middle, right), (x1, right),
        (x1, right + height), (middle, right + height), (middle, left + height),
        (x0, left + height), (x0, left),
    ]  # fmt: skip
    moves = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3,
             Outline.CLOSEPOLY]  # fmt: skip
    return PathPatch(Outline(corners, moves), facecolor=colour, alpha=alpha, lw=0)


def _flow(summary: BenchmarkSummary) -> dict[str, float]:
    """Shares of all pairs by fate; empty where nothing was corrected."""
    figures = summary["correction"] or summary["critique_correction"].get("all", {})
    if not figures or figures["accuracy_before"]["mean"] is None:
        return {}
    before, fixed, broken = (
        figures[name]["mean"] or 0.0 for name in ("accuracy_before", "fixed", "broken")
    )
    return {
        "kept": max(0.0, before - broken),
        "fixed": fixed,
        "broken": broken,
        "stayed": max(0.0, 1 - before - fixed),
    }
