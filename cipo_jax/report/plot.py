"""The run in one picture: what training did to held-out problems, and by which figures.

Reads what the run folder holds (`metrics.jsonl`, `evaluations.json`) and nothing else, so it can be
drawn again at any time, and for a run that isn't finished.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cipo_jax.config import Config, FileTask, GeneratedTask, RandomModel, atomic
from cipo_jax.evaluate.figures import HeldOut, StreamName
from cipo_jax.model.files.load import resolve
from cipo_jax.report.panel import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    End,
    draw_intervals,
    draw_pass_at_k,
    finish_shares,
    page,
    points,
)
from cipo_jax.report.run_files import Metrics, read_evaluations, read_metrics


def plot(folder: Path, cfg: Config) -> Path:
    """Draw `plot.png` into the run's folder.

    Returns: the picture's path. It is complete or not there.
    """
    figure = draw(read_metrics(folder), read_evaluations(folder), cfg)
    path = folder / "plot.png"
    with atomic.replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", facecolor="white")
    return path


def draw(metrics: Metrics, evaluations: Sequence[HeldOut], cfg: Config) -> Figure:
    """Four panels: rewards of both streams, held-out accuracy, correction rates, and pass@k before
    and after. A figure that was never measured leaves its place empty and says so.

    Args:
      evaluations: in the order of their steps.
    """
    with matplotlib.rc_context(STYLE):
        figure = page(
            11, 7.7, f"{_model_name(cfg)} on {_task_name(cfg)}", _note(metrics, evaluations, cfg),
            left=0.154, title_at=0.1155, note_at=0.4235, head=0.5775,
            w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05, fontsize=14,
        )  # fmt: skip
        axes = figure.subplots(2, 2)
        _draw_rewards(axes[0, 0], metrics)
        _draw_accuracy(axes[0, 1], evaluations)
        _draw_corrections(axes[1, 0], metrics)
        _draw_before_and_after(axes[1, 1], evaluations)
        return figure


def _note(metrics: Metrics, evaluations: Sequence[HeldOut], cfg: Config) -> str:
    steps = metrics[-1]["step"] if metrics else 0
    held_out = f", {evaluations[0]['problems']} held-out problems" if evaluations else ""
    method = "CIPO" if cfg.has_correction else "RLVR without corrections"
    is_smoothed = _half_window(len(metrics)) > 0
    lines = "Dots: single steps, lines: their moving average. " if is_smoothed else ""
    return (
        f"{method}, {steps} steps, seed {cfg.seed}{held_out}. {lines}"
        "Bars: 95% bootstrap intervals over problems."
    )


def _model_name(cfg: Config) -> str:
    if isinstance(cfg.model, RandomModel):
        return f"{cfg.model.preset} (random weights)"
    path = cfg.model.path
    if path.startswith("package:"):
        # The package's own name says little; the file in it is named after the model.
        with contextlib.suppress(ValueError):
            path = str(resolve(path))
    return path.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def _task_name(cfg: Config) -> str:
    task = cfg.tasks
    if isinstance(task, GeneratedTask):
        return f"{task.name.replace('_', ' ')} ({task.low} to {task.high})"
    return Path(task.path).stem if isinstance(task, FileTask) else task.dataset


# --- panels -------------------------------------------------------------------------------------


def _draw_rewards(ax: Axes, metrics: Metrics) -> None:
    ax.set_title("Mean reward of the training samples")
    ends = [
        *_draw_curve(ax, metrics, "reward/base", "first attempts", BLUE),
        *_draw_curve(ax, metrics, "reward/correction", "corrections", ORANGE),
    ]
    finish_shares(ax, ends)
    _steps_axis(ax)


def _draw_corrections(ax: Axes, metrics: Metrics) -> None:
    ax.set_title("What corrections do to their attempts, in training")
    step, ratio = _values(metrics, "anchors/ratio_target")
    if np.isfinite(ratio).any():
        ax.plot(step, ratio, color=GREY, lw=1.1, ls=(0, (4, 2)))
    ends = [
        *_draw_curve(ax, metrics, "correction/retention", "right kept right", GREEN),
        *_draw_curve(ax, metrics, "correction/fix_rate", "wrong made right", ORANGE),
        *((float(x), "replay ratio", GREY) for x in ratio[-1:] if np.isfinite(x)),
    ]
    finish_shares(ax, ends)
    _steps_axis(ax)


def _draw_accuracy(ax: Axes, evaluations: Sequence[HeldOut]) -> None:
    ax.set_title("Accuracy on held-out problems")
    names: tuple[tuple[StreamName, str, float], ...] = (
        ("greedy", BLUE, -0.004),
        ("sampled", ORANGE, 0.004),
    )
    ends = []
    for name, colour, shift in names:
        step, mean, low, high = points(
            {e["step"]: e["streams"][name]["accuracy"] for e in evaluations}
        )
        if not len(step):
            continue
        # Set a little apart, so that neither interval hides the other.
        apart = shift * evaluations[-1]["step"]
        draw_intervals(ax, step + apart, mean, low, high, colour)
        change = f"{mean[-1]:.0%}" if len(step) == 1 else f"{mean[0]:.0%} → {mean[-1]:.0%}"
        ends.append((float(mean[-1]), f"{name}\n{change}", colour))
    finish_shares(ax, ends, gap=0.15)
    _steps_axis(ax)


def _draw_before_and_after(ax: Axes, evaluations: Sequence[HeldOut]) -> None:
    ax.set_title("pass@k on held-out problems")
    curves = [(e["pass_at_k"], "before", GREY) for e in evaluations[:1]]
    curves += [(e["pass_at_k"], f"after {e['step']} steps", BLUE) for e in evaluations[1:][-1:]]
    finish_shares(ax, draw_pass_at_k(ax, curves))
    ax.set_xlabel("k, samples that may be tried")


# --- parts of a panel ---------------------------------------------------------------------------


def _values(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps and a figure at each of them; NaN where it is undefined."""
    values = [m.get(name) for m in metrics]
    return (
        np.array([m["step"] for m in metrics], float),
        np.array([np.nan if v is None else v for v in values], float),
    )


def _draw_curve(ax: Axes, metrics: Metrics, name: str, label: str, colour: str) -> list[End]:
    """Each step as a faint dot, and the moving average that the eye would draw.

    Returns: its end; none where the figure was never defined.
    """
    step, value = _values(metrics, name)
    is_defined = np.isfinite(value)
    if not is_defined.any():
        return []
    smooth = np.where(is_defined, _smooth(value), np.nan)
    ax.plot(step, value, ".", color=colour, alpha=0.28, ms=4.5, mew=0)
    marker = "o" if is_defined.sum() == 1 else None
    ax.plot(step, smooth, color=colour, lw=2, marker=marker, ms=5)
    return [(float(smooth[is_defined][-1]), label, colour)]


def _smooth(value: np.ndarray) -> np.ndarray:
    """Centred moving average over a tenth of the run, of what is defined."""
    half = _half_window(len(value))
    means = np.full(len(value), np.nan)
    for i in range(len(value)):
        window = value[max(0, i - half) : i + half + 1]
        if np.isfinite(window).any():
            means[i] = np.nanmean(window)
    return means


def _half_window(num_steps: int) -> int:
    return num_steps // 20


def _steps_axis(ax: Axes) -> None:
    ax.set_xlabel("training step")
    ax.xaxis.set_major_locator(
        MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    )
