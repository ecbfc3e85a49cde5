"""An evaluation as one JSON file, one Markdown page and its pictures.

Reads what `evaluate/suite.py` left in the folder, so it can be made again at any time, and for an
evaluation that isn't finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from cipo_jax.evaluate.measures import Estimate, paired_difference
from cipo_jax.report import evaluation_plots
from cipo_jax.tasks.benchmarks import ELEVEN, PLUS

Summary = Mapping[str, Any]
"""One benchmark's summary.json."""


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
    (folder / "summary.json").write_text(
        json.dumps(
            {**settings, "benchmarks": summaries, "compared": compared}, indent=1, allow_nan=False
        )
        + "\n"
    )
    pictures = evaluation_plots.draw_all(summaries, folder, name=settings["settings"]["model"])
    page = "\n".join(_page(summaries, settings, pictures, compared, compare_to))
    (folder / "summary.md").write_text(page + "\n")
    return folder / "summary.md"


def read(folder: Path) -> list[Summary]:
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
        path = before / name / "problems.parquet"
        if not path.is_file():
            continue
        old, new = (_problems(f / name / "problems.parquet") for f in (before, after))
        common = [p for p in new if p in old]
        if not common:
            continue
        found[name] = {"problems": len(common)}
        for stream in summary["streams"]:
            if f"{stream}_known" in old[common[0]]:
                first_Q, second_Q = (
                    np.array([_accuracy(t[p], stream) for p in common]) for t in (old, new)
                )
                found[name][stream] = paired_difference(first_Q, second_Q, seed=0)
    return found


def _problems(path: Path) -> dict[str, dict[str, Any]]:
    return {r["problem_id"]: r for r in pyarrow.parquet.read_table(path).to_pylist()}


def _accuracy(record: Mapping[str, Any], stream: str) -> float:
    known = record[f"{stream}_known"]
    return record[f"{stream}_right"] / known if known else float("nan")


# --- the page -----------------------------------------------------------------------------------


def _page(
    summaries: Sequence[Summary],
    settings: Summary,
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
        yield from _table(
            ["benchmark", "problems", "greedy", "avg@n", "n", "pass@n", "maj@n", "cut off"],
            [_accuracy_row(s) for s in solved],
        )
    corrected = [s for s in solved if s["correction"]]
    if corrected:
        yield "\n## Corrections of the model's own attempts\n"
        yield from _table(
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
        yield from _table(
            ["benchmark", "tokens", "chains", "samples", "sequential", "parallel", "difference"],
            [row for s in corrected for row in _equal_rows(s)],
        )
        yield (
            "\nSequential: an attempt or its correction is right in one of the chains. Parallel: "
            "one of as many samples as the same tokens buy is right."
        )
    criticised = [s for s in summaries if s["critique"]]
    if criticised:
        yield "\n## Critiques of given responses\n"
        yield from _table(
            ["benchmark", "part", "critique F1", "unreadable", "accuracy before",
             "after correction", "fix rate", "retention"],
            [row for s in criticised for row in _critique_rows(s)],
        )  # fmt: skip
    if compared:
        yield f"\n## Against {compare_to}\n"
        yield "Accuracy here minus accuracy there on the same problems, paired.\n"
        yield from _table(
            ["benchmark", "problems", "stream", "difference"],
            [
                [name, str(entry["problems"]), stream, _shown(value, "+.3f")]
                for name, entry in compared.items()
                for stream, value in entry.items()
                if stream != "problems"
            ],
        )
    for picture in pictures:
        yield f"\n![]({picture})"
    yield "\n## Left out\n"
    yield from _left_out(summaries)


def _accuracy_row(s: Summary) -> list[str]:
    streams = s["streams"]
    sampled = streams.get("sampled")
    return [
        s["title"],
        str(s["problems"]),
        _shown(streams["greedy"]["accuracy"]) if "greedy" in streams else "–",
        _shown(sampled["accuracy"]) if sampled else "–",
        str(sampled["samples"]) if sampled else "–",
        _last(s["pass_at_k"]),
        _last(s["maj_at_k"]),
        f"{(sampled or next(iter(streams.values())))['truncated']:.1%}",
    ]


def _correction_row(s: Summary) -> list[str]:
    c = s["correction"]
    names = ("accuracy_before", "accuracy_after", "change", "fixed", "broken", "fix_rate",
             "retention")  # fmt: skip
    return [
        s["title"],
        *(_shown(c[name], "+.3f" if name == "change" else ".3f") for name in names),
        _shown(c["copy_rate"]) if "copy_rate" in c else "–",
        _last(s["pass_at_k_corrected"]),
    ]


def _equal_rows(s: Summary) -> Iterator[list[str]]:
    for entry in s["equal_tokens"]:
        yield [
            s["title"],
            f"{entry['tokens']:.0f}",
            str(entry["chains"]),
            f"{entry['samples']:.2f}",
            _shown(entry["sequential"]),
            _shown(entry["parallel"]),
            _shown(entry["difference"], "+.3f"),
        ]


def _critique_rows(s: Summary) -> Iterator[list[str]]:
    for part, figures in s["critique"].items():
        after = s["critique_correction"].get(part, {})
        yield [
            s["title"],
            part,
            _shown(figures["f1"]),
            _shown(figures["unreadable"]),
            *(
                _shown(after[name]) if after else "–"
                for name in ("accuracy_before", "accuracy_after", "fix_rate", "retention")
            ),
        ]


def _left_out(summaries: Sequence[Summary]) -> Iterator[str]:
    is_complete = True
    for s in summaries:
        for reason, count in s["left_out"].items():
            is_complete = False
            yield f"- {s['title']}: {count} rows with {reason}"
        reasons: dict[str, int] = {}
        for entry in s["unknown"]:
            reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
        for reason, count in reasons.items():
            is_complete = False
            yield (
                f"- {s['title']}: {count} verdicts unknown ({reason}); they take no part in any "
                "figure, and stand one by one in summary.json"
            )
    if is_complete:
        yield "No row, and no verdict is unknown."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _last(by_k: Mapping[str, Estimate]) -> str:
    """The figure at the largest k, with k where it isn't obvious from the columns."""
    if not by_k:
        return "–"
    k = max(by_k, key=int)
    return f"{_shown(by_k[k])} (k={k})"


def _shown(estimate: Estimate, form: str = ".3f") -> str:
    if estimate["mean"] is None:
        return "–"
    mean, low, high = (format(estimate[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
