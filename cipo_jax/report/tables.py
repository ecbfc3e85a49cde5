"""Figures as text, and tables of them in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cipo_jax.evaluate.measures import Estimate


def shown(estimate: Estimate | None, form: str = ".3f") -> str:
    """A figure with its interval; a dash where there is none, or where it is undefined."""
    if estimate is None or estimate["mean"] is None:
        return "–"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, without the line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
