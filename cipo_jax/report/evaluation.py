"""An evaluation as one JSON file, one Markdown page and its pictures.

Reads what `evaluate/suite.py` left in the folder, so it can be made again at any time, and for an
evaluation that isn't finished.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from cipo_jax.config import atomic
from cipo_jax.evaluate.correction import ChainsAgainstSamples
from cipo_jax.evaluate.figures import BenchmarkSummary, ProblemCounts, common_accuracies
from cipo_jax.evaluate.measures import Estimate, paired_difference
from cipo_jax.report import evaluation_plots
from cipo_jax.report.tables import shown, table
from cipo_jax.tasks.benchmarks import ELEVEN, PLUS


def write(folder: Path, *, compare_to: Path | None = None) -> Path:
    """Write summary.json, summary.md and the pictures into the folder of an evaluation.

    Args:
      compare_to: the folder of another evaluation, which is subtracted problem by problem.
    Returns: the path of summary.md.
    Raises: ValueError if one of the folders holds no finished benchmark.
    """
    summaries = read(folder)
    settings = json.loads((folder / "settings.json").read_text())
    compared = compare(compare_to, folder) if compare_to else {}
    atomic.write_json(
        folder / "summary.json", {**settings, "benchmarks": summaries, "compared": compared}
    )
    pictures = evaluation_plots.draw_all(summaries, folder, name=settings["settings"]["model"])
    page = "\n".join(_page(summaries, settings, pictures, compared, compare_to))
    atomic.write_text(folder / "summary.md", page + "\n")
    return folder / "summary.md"


def read(folder: Path) -> list[BenchmarkSummary]:
    """The summaries of the finished benchmarks, in their usual order."""
    order = [b.name for b in (*ELEVEN, *PLUS)]
    paths = sorted(
        (p for p in folder.glob("*/summary.json") if p.parent.name in order),
        key=lambda p: order.index(p.parent.name),
    )
    if not paths:
        raise ValueError(f"{folder} holds no finished benchmark: run cipo evaluate into it first.")
    return [json.loads(path.read_text()) for path in paths]


def compare(before: Path, after: Path) -> dict[str, dict[str, Any]]:
    """Accuracy in `after` minus that in `before`, by benchmark and stream, over the problems that
    both have, paired."""
    found: dict[str, dict[str, Any]] = {}
    for summary in read(after):
        name = summary["benchmark"]
        if not (before / name / "problems.parquet").is_file():
            continue
        old, new = _problems(before / name), _problems(after / name)
        entry: dict[str, Any] = {}
        for stream in summary["streams"]:
            if f"{stream}_known" in old[0]:
                first_Q, second_Q = common_accuracies(old, new, stream)
                difference = paired_difference(first_Q, second_Q, seed=0)
                entry |= {"problems": len(first_Q), stream: difference}
        if entry.get("problems"):
            found[name] = entry
    return found


def _problems(folder: Path) -> list[ProblemCounts]:
    table = pyarrow.parquet.read_table(folder / "problems.parquet")
    return list(table.to_pylist())


# --- the page -----------------------------------------------------------------------------------


def _page(
    summaries: Sequence[BenchmarkSummary],
    settings: Mapping[str, Any],
    pictures: Sequence[str],
    compared: Mapping[str, Any],
    compare_to: Path | None,
) -> Iterator[str]:
    used = settings["settings"]
    yield f"# Evaluation of {used['model']}\n"
    yield (
        f"Samples at temperature {used['temperature']:g} over the full distribution, at most "
        f"{used['max_new_tokens']} new tokens, seed {used['seed']}, {used['compute_dtype']}. "
        "Brackets are 95 % bootstrap intervals over problems: the noise of the problems drawn, "
        "not of training.\n"
    )
    solved = [s for s in summaries if not s["critique"]]
    if solved:
        yield "## Accuracy\n"
        yield table(
            ["benchmark", "problems", "greedy", "avg@n", "n", "pass@n", "maj@n", "cut off"],
            [_accuracy_row(s) for s in solved],
        )
    corrected = [s for s in solved if s["correction"]]
    if corrected:
        yield "\n## Corrections of the model's own attempts\n"
        yield table(
            ["benchmark", "before", "after", "change", "wrong → right", "right → wrong",
             "fix rate", "retention", "copies", "pass@n after"],
            [_correction_row(s) for s in corrected],
        )  # fmt: skip
        yield (
            "\nWrong → right and right → wrong are shares of all pairs; fix rate is the share of "
            "wrong attempts that became right, retention that of right ones that stayed; copies: "
            "corrections of wrong attempts that give the same answer."
        )
        yield "\n## Correcting against sampling more, at equal tokens\n"
        yield table(
            ["benchmark", "tokens", "chains", "samples", "sequential", "parallel", "difference"],
            [_equal_row(s["title"], entry) for s in corrected for entry in s["equal_tokens"]],
        )
        yield (
            "\nSequential: an attempt or its correction is right in one of the chains. Parallel: "
            "one of as many samples as the same tokens buy is right."
        )
    criticised = [s for s in summaries if s["critique"]]
    if criticised:
        yield "\n## Critiques of given responses\n"
        yield table(
            ["benchmark", "part", "critique F1", "unreadable", "accuracy before",
             "after correction", "fix rate", "retention"],
            [row for s in criticised for row in _critique_rows(s)],
        )  # fmt: skip
    if compared:
        yield f"\n## Against {compare_to}\n"
        yield "Accuracy here minus accuracy there on the same problems, paired.\n"
        yield table(
            ["benchmark", "problems", "stream", "difference"],
            [
                [name, entry["problems"], stream, shown(value, "+.3f")]
                for name, entry in compared.items()
                for stream, value in entry.items()
                if stream != "problems"
            ],
        )
    for picture in pictures:
        yield f"\n![]({picture})"
    yield "\n## Left out\n"
    yield from list(_left_out(summaries)) or ["No row, and no verdict is unknown."]


def _accuracy_row(s: BenchmarkSummary) -> list[object]:
    greedy, sampled = (s["streams"].get(name) for name in ("greedy", "sampled"))
    return [
        s["title"],
        s["problems"],
        shown(greedy and greedy["accuracy"]),
        shown(sampled and sampled["accuracy"]),
        sampled["samples"] if sampled else "–",
        _at_largest(s["pass_at_k"]),
        _at_largest(s["maj_at_k"]),
        f"{(sampled or next(iter(s['streams'].values())))['truncated']:.1%}",
    ]


def _correction_row(s: BenchmarkSummary) -> list[object]:
    c = s["correction"]
    return [
        s["title"],
        shown(c["accuracy_before"]),
        shown(c["accuracy_after"]),
        shown(c["change"], "+.3f"),
        *(shown(c[name]) for name in ("fixed", "broken", "fix_rate", "retention")),
        shown(c.get("copy_rate")),
        _at_largest(s["pass_at_k_corrected"]),
    ]


def _equal_row(title: str, entry: ChainsAgainstSamples) -> list[object]:
    return [
        title,
        f"{entry['tokens']:.0f}",
        entry["chains"],
        f"{entry['samples']:.2f}",
        shown(entry["sequential"]),
        shown(entry["parallel"]),
        shown(entry["difference"], "+.3f"),
    ]


def _critique_rows(s: BenchmarkSummary) -> Iterator[list[object]]:
    after = ("accuracy_before", "accuracy_after", "fix_rate", "retention")
    for part, figures in s["critique"].items():
        corrected = s["critique_correction"].get(part, {})
        yield [
            s["title"],
            part,
            shown(figures["f1"]),
            shown(figures["unreadable"]),
            *(shown(corrected.get(name)) for name in after),
        ]


def _at_largest(by_k: Mapping[str, Estimate]) -> str:
    """The figure at the largest k, and k, which the head of the table doesn't say."""
    k = max(by_k, key=int, default="")
    return f"{shown(by_k[k])} (k={k})" if k else "–"


def _left_out(summaries: Sequence[BenchmarkSummary]) -> Iterator[str]:
    for s in summaries:
        for reason, count in s["left_out"].items():
            yield f"- {s['title']}: {count} rows with {reason}"
        for reason, count in Counter(entry["reason"] for entry in s["unknown"]).items():
            yield (
                f"- {s['title']}: {count} verdicts unknown ({reason}); they take no part in any "
                "figure, and are listed in summary.json"
            )
