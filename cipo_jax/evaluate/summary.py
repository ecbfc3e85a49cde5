"""From the samples of a benchmark, or of held-out problems, to their figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from cipo_jax.evaluate import measures
from cipo_jax.evaluate.correction import ChainsAgainstSamples, correction_measures, equal_tokens
from cipo_jax.evaluate.critique import critique_measures
from cipo_jax.evaluate.figures import (
    ProblemCounts,
    StreamFigures,
    StreamName,
    Summary,
    accuracies,
    num_verdicts,
)
from cipo_jax.evaluate.measures import Estimate, mean_with_interval
from cipo_jax.evaluate.samples import SampleRow
from cipo_jax.tasks.benchmarks.criticbench import said_right


def summarise(rows: Sequence[SampleRow], *, seed: int) -> Summary:
    """All measures of one benchmark."""
    streams, counts = _by_stream(rows), per_problem(rows)
    sampled, corrected = streams.get("sampled", []), streams.get("corrected", [])
    pairs = _pairs(sampled, corrected)
    # Chains of an attempt and its correction are independent of each other only then.
    is_corrected_once = len({(r.problem_id, r.sample) for r in corrected}) == len(corrected)
    chains = pairs if is_corrected_once else []
    after = [correction for _, correction in chains]
    return Summary(
        problems=len(counts),
        streams={stream: _stream(part, seed) for stream, part in streams.items()},
        pass_at_k=_pass_at_k(sampled, seed),
        pass_at_k_corrected=_pass_at_k(after, seed),
        maj_at_k=_maj_at_k(sampled, seed),
        maj_at_k_corrected=_maj_at_k(after, seed),
        correction=_correction(sampled, pairs, seed),
        by_pass_rate=_by_pass_rate(sampled, pairs, seed),
        equal_tokens=_equal_tokens(chains, seed),
        critique=_in_parts(streams.get("critique", []), partial(_critique, seed=seed)),
        critique_correction=_in_parts(
            streams.get("critique_corrected", []), partial(_critique_correction, seed=seed)
        ),
        by_tag={
            name: {"problems": len({row.problem_id for row in part})}
            | {stream: _accuracy(some, seed) for stream, some in _by_stream(part).items()}
            for name, part in _parts(rows)
        },
        unknown=[
            {"problem": r.problem_id, "stream": r.stream, "sample": r.sample, "reason": r.reason}
            for r in rows
            if not r.is_known
        ],
    )


def per_problem(rows: Sequence[SampleRow]) -> list[ProblemCounts]:
    """The counts of each problem, in the order in which the rows come to them."""
    found: dict[str, ProblemCounts] = {}
    streams = dict.fromkeys(row.stream for row in rows)
    for row in rows:
        counts = found.setdefault(
            row.problem_id,
            {"problem_id": row.problem_id, "tags": row.tags}
            | {f"{s}_{name}": 0 for s in streams for name in ("known", "right", "tokens")},
        )
        counts[f"{row.stream}_known"] += row.is_known
        counts[f"{row.stream}_right"] += row.is_right
        counts[f"{row.stream}_tokens"] += row.tokens
    return list(found.values())


# --- figures ------------------------------------------------------------------------------------


def _stream(rows: Sequence[SampleRow], seed: int) -> StreamFigures:
    return StreamFigures(
        samples=_num_samples(rows),
        accuracy=_accuracy(rows, seed),
        tokens=_mean_tokens(rows),
        prompt_tokens=float(np.mean([r.prompt_tokens for r in rows])),
        truncated=float(np.mean([not r.is_finished for r in rows])),
        unknown=sum(not r.is_known for r in rows),
    )


def _num_samples(rows: Sequence[SampleRow]) -> int:
    return round(len(rows) / len({r.problem_id for r in rows}))


def _mean_tokens(rows: Sequence[SampleRow]) -> float:
    return float(np.mean([r.tokens for r in rows]))


def _accuracy(rows: Sequence[SampleRow], seed: int) -> Estimate:
    return mean_with_interval(accuracies(per_problem(rows), rows[0].stream), seed=seed)


def _pass_at_k(rows: Sequence[SampleRow], seed: int) -> dict[str, Estimate]:
    if not rows:
        return {}
    right_Q, known_Q = num_verdicts(per_problem(rows), rows[0].stream)
    return {
        str(k): mean_with_interval(
            measures.pass_at_k(right_Q[known_Q >= k], known_Q[known_Q >= k], k), seed=seed
        )
        for k in measures.powers_of_two(_num_samples(rows))
    }


def _maj_at_k(rows: Sequence[SampleRow], seed: int) -> dict[str, Estimate]:
    if all(row.answer is None for row in rows):
        return {}
    votes: dict[str, list[SampleRow]] = {row.problem_id: [] for row in rows}
    for row in rows:
        if row.is_known:
            votes[row.problem_id].append(row)
    answers = [[row.answer for row in part] for part in votes.values()]
    is_right = [[row.is_right for row in part] for part in votes.values()]
    return {
        str(k): mean_with_interval(measures.majority_at_k(answers, is_right, k), seed=seed)
        for k in measures.powers_of_two(_num_samples(rows))
    }


Pair = tuple[SampleRow, SampleRow]
"""An attempt and its correction."""


def _pairs(sampled: Sequence[SampleRow], corrected: Sequence[SampleRow]) -> list[Pair]:
    attempts = {(row.problem_id, row.sample): row for row in sampled}
    return [(attempts[row.problem_id, row.sample], row) for row in corrected]


def _known(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose verdicts are both known."""
    return [(before, after) for before, after in pairs if before.is_known and after.is_known]


def _correction(
    sampled: Sequence[SampleRow], pairs: Sequence[Pair], seed: int
) -> dict[str, Estimate]:
    if not pairs:
        return {}
    known = _known(pairs)
    is_copy = [a.answer is not None and a.answer == b.answer for a, b in known]
    has_answers = any(row.answer is not None for row in sampled)
    return correction_measures(
        _problem_of([after for _, after in known]),
        np.array([before.is_right for before, _ in known], bool),
        np.array([after.is_right for _, after in known], bool),
        is_copy_I=np.array(is_copy, bool) if has_answers else None,
        seed=seed,
    )


def _by_pass_rate(
    sampled: Sequence[SampleRow], pairs: Sequence[Pair], seed: int
) -> dict[str, dict[str, Any]]:
    if not pairs:
        return {}
    found: dict[str, dict[str, Any]] = {}
    counts = per_problem(sampled)
    rates = accuracies(counts, "sampled")
    for name, low, high in (
        ("none right", -1.0, 0.0),
        ("up to half", 0.0, 0.5),
        ("more than half", 0.5, 1.0),
    ):
        which = np.flatnonzero((rates > low) & (rates <= high))
        chosen = {counts[q]["problem_id"] for q in which}
        if chosen:
            some = [row for row in sampled if row.problem_id in chosen]
            of_them = [pair for pair in pairs if pair[0].problem_id in chosen]
            found[name] = {"problems": len(chosen), **_correction(some, of_them, seed)}
    return found


def _equal_tokens(chains: Sequence[Pair], seed: int) -> list[ChainsAgainstSamples]:
    if not chains:
        return []
    known = _known(chains)
    problem_I = _problem_of([after for _, after in known])

    def count(is_counted: Sequence[bool]) -> Int[np.ndarray, " Q"]:
        return np.bincount(problem_I, weights=np.array(is_counted, float)).astype(int)

    return equal_tokens(
        count([before.is_right for before, _ in known]),
        count([before.is_right or after.is_right for before, after in known]),
        count([True] * len(known)),
        attempt_tokens=_mean_tokens([before for before, _ in chains]),
        correction_tokens=_mean_tokens([after for _, after in chains]),
        seed=seed,
    )


def _critique(rows: Sequence[SampleRow], *, seed: int) -> dict[str, Estimate]:
    return critique_measures(
        np.array([bool(r.response_is_right) for r in rows], bool),
        [said_right(r.answer) for r in rows],
        seed=seed,
    )


def _critique_correction(rows: Sequence[SampleRow], *, seed: int) -> dict[str, Estimate]:
    known = [r for r in rows if r.is_known]
    return correction_measures(
        _problem_of(known),
        np.array([bool(r.response_is_right) for r in known], bool),
        np.array([r.is_right for r in known], bool),
        seed=seed,
    )


# --- parts of the rows --------------------------------------------------------------------------


def _by_stream(rows: Sequence[SampleRow]) -> dict[StreamName, list[SampleRow]]:
    found: dict[StreamName, list[SampleRow]] = {}
    for row in rows:
        found.setdefault(row.stream, []).append(row)
    return found


def _problem_of(rows: Sequence[SampleRow]) -> Int[np.ndarray, " I"]:
    """The number of each row's problem, in the order in which the rows come to them."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(row.problem_id, len(number)) for row in rows], int)


def _parts(rows: Sequence[SampleRow]) -> list[tuple[str, list[SampleRow]]]:
    """The rows by each tag and value, `question_type: math` and so on."""
    parts: dict[str, list[SampleRow]] = {}
    for row in rows:
        for tag, value in json.loads(row.tags).items():
            parts.setdefault(f"{tag}: {value}", []).append(row)
    return sorted(parts.items())


def _in_parts(
    rows: Sequence[SampleRow], figures: Callable[[Sequence[SampleRow]], dict[str, Estimate]]
) -> dict[str, dict[str, Estimate]]:
    """Figures of all the rows, and of those of each tag and value; none where there are no rows."""
    if not rows:
        return {}
    return {"all": figures(rows), **{name: figures(part) for name, part in _parts(rows)}}
