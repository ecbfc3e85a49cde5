"""From the samples of a benchmark to its figures, a JSON-able dict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cipo_jax.evaluate import measures
from cipo_jax.evaluate.correction import correction_measures, equal_tokens
from cipo_jax.evaluate.critique import critique_measures
from cipo_jax.evaluate.measures import Estimate, mean_with_interval
from cipo_jax.evaluate.samples import SampleRow, Sheet
from cipo_jax.tasks.benchmarks.criticbench import said_right

Figures = dict[str, Any]


def summarise(rows: Sequence[SampleRow], *, seed: int) -> Figures:
    """All measures of one benchmark; intervals are over its problems.

    Verdicts that are unknown take no part and are listed under `unknown`.

    Returns:
      problems: how many.
      streams: by stream: samples, accuracy, tokens, prompt_tokens, truncated.
      pass_at_k, maj_at_k: of the samples; pass_at_k_corrected, maj_at_k_corrected: of their
        corrections. Empty without the stream, maj also without answers to vote by.
      correction: `correction_measures`; by_pass_rate: the same for problems of which few, some and
        most samples are right; equal_tokens: see there.
      critique, critique_correction: for benchmarks of critiques.
      by_tag: tag, value, and the accuracy of each stream on the problems that have it.
      unknown: which verdicts there are none of, and why.
    """
    sheets = {s: Sheet.of(rows, s) for s in ("greedy", "sampled", "corrected")}
    sampled, corrected = sheets["sampled"], sheets["corrected"]
    streams = sorted({row.stream for row in rows}, key=[row.stream for row in rows].index)
    return {
        "problems": len({row.problem_id for row in rows}),
        "streams": {s: _stream([r for r in rows if r.stream == s], seed) for s in streams},
        "pass_at_k": _pass_at_k(sampled, seed),
        "pass_at_k_corrected": _pass_at_k(corrected, seed),
        "maj_at_k": _maj_at_k(sampled, seed),
        "maj_at_k_corrected": _maj_at_k(corrected, seed),
        "correction": _correction(sampled, corrected, seed) if corrected else {},
        "by_pass_rate": _by_pass_rate(sampled, corrected, seed) if corrected else {},
        "equal_tokens": _equal_tokens(sampled, corrected, seed) if corrected else [],
        "critique": _critique([r for r in rows if r.stream == "critique"], seed),
        "critique_correction": _critique_correction(
            [r for r in rows if r.stream == "critique_corrected"], seed
        ),
        "by_tag": _by_tag(rows, seed),
        "unknown": [
            {"problem": r.problem_id, "stream": r.stream, "sample": r.sample, "reason": r.reason}
            for r in rows
            if r.status == "unknown"
        ],
    }


def per_problem(rows: Sequence[SampleRow]) -> list[dict[str, Any]]:
    """One record a problem: how many of each stream's verdicts are known and right, and its mean
    tokens. Two evaluations are compared by these."""
    found: dict[str, dict[str, Any]] = {}
    streams = {row.stream for row in rows}
    for row in rows:
        record = found.setdefault(
            row.problem_id,
            {"problem_id": row.problem_id, "tags": row.tags}
            | {f"{s}_{name}": 0 for s in streams for name in ("known", "right", "tokens")},
        )
        record[f"{row.stream}_known"] += row.status != "unknown"
        record[f"{row.stream}_right"] += row.status == "right"
        record[f"{row.stream}_tokens"] += row.tokens
    return list(found.values())


def accuracy(rows: Sequence[SampleRow], seed: int) -> Estimate:
    """Right among known verdicts, the mean over problems of their own means (avg@n)."""
    known: Counter[str] = Counter(r.problem_id for r in rows if r.status != "unknown")
    right: Counter[str] = Counter(r.problem_id for r in rows if r.status == "right")
    problems = list(dict.fromkeys(r.problem_id for r in rows))
    return mean_with_interval(
        np.array([right[p] / known[p] if known[p] else np.nan for p in problems]), seed=seed
    )


def _stream(rows: Sequence[SampleRow], seed: int) -> Figures:
    num_problems = len({r.problem_id for r in rows})
    return {
        "samples": round(len(rows) / num_problems),
        "accuracy": accuracy(rows, seed),
        "tokens": float(np.mean([r.tokens for r in rows])),
        "prompt_tokens": float(np.mean([r.prompt_tokens for r in rows])),
        "truncated": float(np.mean([not r.is_finished for r in rows])),
        "unknown": sum(r.status == "unknown" for r in rows),
    }


def _pass_at_k(sheet: Sheet, seed: int) -> dict[str, Estimate]:
    if not sheet:
        return {}
    num_right_Q = sheet.is_right_QG.sum(axis=1)
    num_known_Q = sheet.is_known_QG.sum(axis=1)
    found = {}
    for k in measures.powers_of_two(sheet.num_samples):
        has_k_Q = num_known_Q >= k
        value_Q = measures.pass_at_k(num_right_Q[has_k_Q], num_known_Q[has_k_Q], k)
        found[str(k)] = mean_with_interval(value_Q, seed=seed)
    return found


def _maj_at_k(sheet: Sheet, seed: int) -> dict[str, Estimate]:
    known = [[r for r in row if r.status != "unknown"] for row in sheet.rows]
    answers = [[r.answer for r in row] for row in known]
    if all(answer is None for row in answers for answer in row):
        return {}
    is_right = [[r.status == "right" for r in row] for row in known]
    return {
        str(k): mean_with_interval(measures.majority_at_k(answers, is_right, k), seed=seed)
        for k in measures.powers_of_two(sheet.num_samples)
    }


def _correction(sampled: Sheet, corrected: Sheet, seed: int) -> dict[str, Estimate]:
    """Over the pairs whose two verdicts are both known."""
    is_known_QG = sampled.is_known_QG & corrected.is_known_QG
    problem_QG = np.broadcast_to(np.arange(len(is_known_QG))[:, None], is_known_QG.shape)
    pairs = zip(sampled.answers, corrected.answers, strict=True)
    is_copy_QG = np.array(
        [[a is not None and a == b for a, b in zip(*row, strict=True)] for row in pairs], bool
    )
    has_answers = any(a is not None for row in sampled.answers for a in row)
    return correction_measures(
        problem_QG[is_known_QG],
        sampled.is_right_QG[is_known_QG],
        corrected.is_right_QG[is_known_QG],
        is_copy_N=is_copy_QG[is_known_QG] if has_answers else None,
        seed=seed,
    )


def _by_pass_rate(sampled: Sheet, corrected: Sheet, seed: int) -> dict[str, Figures]:
    """Correction measures of problems by the share of their samples that are right."""
    known_Q = sampled.is_known_QG.sum(axis=1)
    rate_Q = sampled.is_right_QG.sum(axis=1) / np.maximum(known_Q, 1)
    found = {}
    for name, low, high in (
        ("none right", -1.0, 0.0),
        ("up to half", 0.0, 0.5),
        ("more than half", 0.5, 1.1),
    ):
        chosen = np.flatnonzero((rate_Q > low) & (rate_Q <= high) & (known_Q > 0))
        if len(chosen):
            found[name] = {
                "problems": len(chosen),
                **_correction(_part(sampled, chosen), _part(corrected, chosen), seed),
            }
    return found


def _part(sheet: Sheet, chosen: np.ndarray) -> Sheet:
    return Sheet(
        problem_ids=tuple(sheet.problem_ids[q] for q in chosen),
        rows=tuple(sheet.rows[q] for q in chosen),
    )


def _equal_tokens(sampled: Sheet, corrected: Sheet, seed: int) -> list[Any]:
    is_known_QG = sampled.is_known_QG & corrected.is_known_QG
    solved_QG = sampled.is_right_QG | corrected.is_right_QG
    return equal_tokens(
        (sampled.is_right_QG & is_known_QG).sum(axis=1),
        (solved_QG & is_known_QG).sum(axis=1),
        is_known_QG.sum(axis=1),
        attempt_tokens=float(sampled.tokens_QG.mean()),
        correction_tokens=float(corrected.tokens_QG.mean()),
        seed=seed,
    )


def _critique(rows: Sequence[SampleRow], seed: int) -> Figures:
    """F1 and its parts, in all and by type and source of the question."""
    if not rows:
        return {}

    def figures(chosen: Sequence[SampleRow]) -> dict[str, Estimate]:
        return critique_measures(
            np.array([bool(r.response_is_right) for r in chosen]),
            [said_right(r.answer) for r in chosen],
            seed=seed,
        )

    return {"all": figures(rows), **{name: figures(part) for name, part in _parts(rows)}}


def _critique_correction(rows: Sequence[SampleRow], seed: int) -> Figures:
    """Accuracy after correction over all responses, right and wrong ones, and what became of
    either kind."""
    if not rows:
        return {}

    def figures(chosen: Sequence[SampleRow]) -> dict[str, Estimate]:
        known = [r for r in chosen if r.status != "unknown"]
        return correction_measures(
            np.arange(len(known)),
            np.array([bool(r.response_is_right) for r in known], bool),
            np.array([r.status == "right" for r in known], bool),
            seed=seed,
        )

    return {"all": figures(rows), **{name: figures(part) for name, part in _parts(rows)}}


def _parts(rows: Sequence[SampleRow]) -> list[tuple[str, list[SampleRow]]]:
    """The rows by each tag and value, `question_type: math` and so on."""
    parts: dict[str, list[SampleRow]] = {}
    for row in rows:
        for tag, value in json.loads(row.tags).items():
            parts.setdefault(f"{tag}: {value}", []).append(row)
    return sorted(parts.items())


def _by_tag(rows: Sequence[SampleRow], seed: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, part in _parts(rows):
        found[name] = {"problems": len({r.problem_id for r in part})} | {
            stream: accuracy([r for r in part if r.stream == stream], seed)
            for stream in dict.fromkeys(r.stream for r in part)
        }
    return found
