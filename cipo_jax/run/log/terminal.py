"""What the terminal shows of a run: a progress bar, or plain lines where it is no terminal."""

from __future__ import annotations

import collections
import datetime
import time

import rich.console
import rich.progress

from cipo_jax.run.log.writers import Figures

FIGURES = {
    "reward/base": ("reward", ".3f"),
    "correction/fix_rate": ("fix", ".3f"),
    "correction/retention": ("keep", ".3f"),
    "throughput/sampled_tokens_per_s": ("tok/s", ",.0f"),
}
"""Metrics that the terminal shows, with their names and formats there."""


class _Clock:
    """Time to go, from the last ten steps: the first compiles, and lengths grow in training."""

    def __init__(self, first_step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._marks = collections.deque([(first_step, time.monotonic())], maxlen=11)

    def eta(self, step: int) -> str:
        self._marks.append((step, time.monotonic()))
        (first, start), (last, now) = self._marks[0], self._marks[-1]
        if last == first:
            return "?"
        seconds = (self._num_steps - step) * (now - start) / (last - first)
        return str(datetime.timedelta(seconds=round(seconds)))


def _headline(figures: Figures) -> list[str]:
    """The figures of the terminal; one that is undefined shows as a dash."""
    shown = []
    for name, (label, form) in FIGURES.items():
        if name in figures:
            value = figures[name]
            shown.append(f"{label} {'–' if value is None else format(value, form)}")
    return shown


class Lines:
    """One line a step, for logs that are files: no colours and no control characters."""

    def __init__(self, console: rich.console.Console, first_step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._clock = _Clock(first_step, num_steps)

    def step(self, step: int, figures: Figures) -> None:
        eta = self._clock.eta(step)
        self.message(
            "  ".join([f"step {step}/{self._num_steps}", *_headline(figures), f"eta {eta}"])
        )

    def message(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A progress bar with the live figures."""

    def __init__(self, console: rich.console.Console, first_step: int, num_steps: int) -> None:
        self._clock = _Clock(first_step, num_steps)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[figures]}"),
            rich.progress.TextColumn("[dim]{task.fields[eta]}"),
            console=console,
        )
        self._task = self._progress.add_task(
            "", total=num_steps, completed=first_step, figures="", eta=""
        )
        self._progress.start()

    def step(self, step: int, figures: Figures) -> None:
        self._progress.update(
            self._task,
            completed=step,
            figures="  ".join(_headline(figures)),
            eta=f"eta {self._clock.eta(step)}",
        )

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
