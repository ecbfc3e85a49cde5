"""A device's memory over a step and an evaluation, in one picture."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cipo_jax.plan.hardware import GIB
from cipo_jax.plan.programs import FROZEN, OPTIMIZER, TRAINED
from cipo_jax.plan.record import Plan
from cipo_jax.report.panel import BLUE, GREEN, GREY, INK, ORANGE, STYLE

_SKY, _YELLOW, _PURPLE, _BROWN = "#56B4E9", "#F0E442", "#CC79A7", "#8C6D31"
_COLOURS = {
    TRAINED: BLUE,
    OPTIMIZER: _SKY,
    FROZEN: GREEN,
    "stacked prompt cache": _PURPLE,
    "prompt cache": _PURPLE,
    "unstacked layers": _YELLOW,
    "embedding and head": _BROWN,
}
_PHASES = {
    "sample": "sampling",
    "correct": "sampling corrections",
    "train": "training",
    "evaluate": "evaluation",
}


def draw(plan: Plan, path: Path) -> None:
    """Writes the picture as PNG: a bar for each program at its worst moment, with the kept memory
    below and the program's own on top, and a line at the memory of the device."""
    with matplotlib.rc_context(STYLE):
        width = max(7.0, 2.6 + 0.5 * len(plan.programs))
        figure = Figure(figsize=(width, 5.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        _bars(axes, plan)
        _phases(axes, plan)
        _limit(axes, plan)
        verdict = "fits" if plan.fits else "does not fit"
        axes.set_title(
            f"{plan.cfg.name} on {plan.slice.topology}: {verdict}. "
            f"Memory of a device at each program's worst moment",
            pad=26,
        )
        figure.legend(
            handles=_legend(plan), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
        )
        figure.savefig(path, format="png", facecolor="white")


def _bars(axes: Axes, plan: Plan) -> None:
    for x, planned in enumerate(plan.programs):
        bottom = 0.0
        for name, size in planned.moment.kept.items():
            axes.bar(x, size / GIB, bottom=bottom, width=0.72, color=_COLOURS[name])
            bottom += size / GIB
        own = planned.moment.growth / GIB
        is_over = planned.moment.is_refused or planned.moment.total > plan.hbm_bytes
        colour = ORANGE if is_over else GREY
        axes.bar(x, own, bottom=bottom, width=0.72, color=colour, linewidth=0)
        total = bottom + own
        label = f"{total:.1f}" if total >= 0.1 else f"{total:.1g}"
        axes.text(x, total, label, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_xticks(
        range(len(plan.programs)),
        [p.call.name for p in plan.programs],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_xlim(-0.6, len(plan.programs) - 0.4)
    axes.set_ylabel("GiB")


def _phases(axes: Axes, plan: Plan) -> None:
    start = 0
    for phase, members in groupby(plan.programs, key=lambda p: p.call.phase):
        count = len(list(members))
        if start:
            axes.axvline(start - 0.5, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)))
        axes.text(
            start + (count - 1) / 2,
            1.01,
            _PHASES[phase],
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=GREY,
        )
        start += count


def _limit(axes: Axes, plan: Plan) -> None:
    limit = plan.hbm_bytes / GIB
    axes.axhline(limit, color=ORANGE, linewidth=1.4)
    axes.text(
        len(plan.programs) - 0.45,
        limit,
        f"{limit:.2f} GiB available ",
        ha="right",
        va="bottom",
        color=ORANGE,
        fontsize=8.5,
    )
    tallest = max(limit, plan.fullest.total / GIB)
    axes.set_ylim(0, 1.1 * min(tallest, 3 * limit))


def _legend(plan: Plan) -> list[Patch]:
    names = dict.fromkeys(name for p in plan.programs for name in p.moment.kept)
    shown = {name.removeprefix("stacked "): _COLOURS[name] for name in names}
    handles = [Patch(color=colour, label=name) for name, colour in shown.items()]
    return [*handles, Patch(color=GREY, label="the program's own: temporaries and results")]
