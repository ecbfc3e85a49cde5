"""The figures of one step, from what the iteration found: the keys of metrics.jsonl.

A figure that is not defined (retention without right anchors, a loss without a stream) is None and
becomes null, never 0: a zero would be averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cipo_jax.config import Config, Uncorrected
from cipo_jax.method.gaps import BUCKETS, Gaps
from cipo_jax.method.mix import packing
from cipo_jax.rollout.judged import Judged
from cipo_jax.run.credit import num_mixed
from cipo_jax.run.iteration import Corrections, Iteration
from cipo_jax.verify.verdict import Status

Metrics = dict[str, float | int | None]


def of_iteration(iteration: Iteration, cfg: Config) -> Metrics:
    """Rewards, correction rates, anchors, lengths and packing of one iteration."""
    base, corrections = iteration.base, iteration.corrections
    packed = packing(iteration.batch)
    streams = [base] if corrections is None else [base, corrections.judged]
    valid = np.concatenate([j.is_valid_QG.ravel() for j in streams])
    return {
        "reward/base": _mean(base.reward_QG, base.is_valid_QG),
        "reward/divergence": iteration.base_credit.divergence,
        "groups/zero_signal_share": _zero_signal_share(iteration),
        **_of_sampling(iteration, cfg),
        "verdict/unknown_share": float(1 - valid.mean()),
        "length/base_mean": float(base.length_QG.mean()),
        "length/base_truncated_share": _truncated_share(base),
        **_of_corrections(corrections),
        "anchors/ratio_target": iteration.ratio if cfg.has_correction else None,
        "anchors/ratio_realised": (
            None if corrections is None else float(corrections.is_right_M.mean())
        ),
        "anchors/count": 0 if corrections is None else len(corrections.anchors),
        "batch/rows": packed.num_rows,
        "batch/padding_share": None if packed.num_rows == 0 else packed.padding_share,
    }


def of_updates(updates: Sequence[Mapping[str, Any]], iteration: Iteration, cfg: Config) -> Metrics:
    """The train step's own metrics: those of the step's last update, but the parity of its first,
    which alone compares the sampler's policy with itself."""
    scalars = [
        {name: float(value) for name, value in update.items() if not isinstance(value, Gaps)}
        for update in updates
    ]
    last, first = scalars[-1], scalars[0]
    del last["grad/is_finite"]
    undefined = set() if cfg.kl.is_in_loss else {"loss/kl"}
    if iteration.corrections is None or cfg.correction_weight == 0:
        undefined.add("loss/correction")
    if isinstance(cfg.importance, Uncorrected):
        undefined |= {name for name in last if name.startswith("importance/")}
    return {
        **last,
        **{name: value for name, value in first.items() if name.startswith("parity/")},
        **of_gaps(updates[0]["parity/gaps"]),
        **dict.fromkeys(undefined),
    }


def of_gaps(gaps: Gaps) -> Metrics:
    """Mean and largest gap between trainer and sampler, nats, in each bucket of `gaps.BUCKETS`."""
    figures: Metrics = {}
    columns = zip(BUCKETS, gaps.count, gaps.total, gaps.largest, strict=True)
    for bucket, count, total, largest in columns:
        if bucket == "all":  # is there under a name of its own
            continue
        figures[f"parity/mean/{bucket}"] = float(total / count) if count else None
        figures[f"parity/max/{bucket}"] = float(largest) if count else None
    return figures


def of_time(iteration: Iteration, *, num_updates: int, train_s: float, step_s: float) -> Metrics:
    """Seconds by phase, and tokens per second: tokens drawn, and tokens that went through the train
    step (a shared prompt once, padding not)."""
    streams = [iteration.base]
    correction_s = 0.0
    if iteration.corrections is not None:
        streams.append(iteration.corrections.judged)
        correction_s = iteration.corrections.judged.sample_s
    sample_s = sum(j.sample_s for j in streams)
    num_trained = num_updates * packing(iteration.batch).num_tokens
    return {
        "time/rollout_s": iteration.base.sample_s,
        "time/correction_s": correction_s,
        "time/verify_s": sum(j.verify_s for j in streams),
        "time/train_s": train_s,
        "time/step_s": step_s,
        "tokens/sampled": sum(j.num_tokens for j in streams),
        "throughput/sampled_tokens_per_s": sum(j.num_tokens for j in streams) / sample_s,
        "throughput/trained_tokens_per_s": num_trained / train_s,
    }


def _of_corrections(corrections: Corrections | None) -> Metrics:
    names = (
        "reward/correction",
        "correction/fix_rate",
        "correction/retention",
        "correction/break_rate",
        "correction/copy_rate",
        "correction/retokenized_share",
        "length/correction_mean",
        "length/correction_truncated_share",
    )
    if corrections is None:
        return dict.fromkeys(names)
    judged = corrections.judged
    on_right_MG = judged.is_valid_QG & corrections.is_right_M[:, None]
    on_wrong_MG = judged.is_valid_QG & ~corrections.is_right_M[:, None]
    retention = _mean(judged.reward_QG, on_right_MG)
    figures = (
        _mean(judged.reward_QG, judged.is_valid_QG),
        _mean(judged.reward_QG, on_wrong_MG),
        retention,
        None if retention is None else 1 - retention,
        _copy_rate(corrections),
        _share(corrections.is_retokenized),
        float(judged.length_QG.mean()),
        _truncated_share(judged),
    )
    return dict(zip(names, figures, strict=True))


def _share(known: Sequence[bool | None]) -> float | None:
    """Of those that are not None."""
    values = [x for x in known if x is not None]
    return float(np.mean(values)) if values else None


def _copy_rate(corrections: Corrections) -> float | None:
    """How often the correction of a wrong attempt gives the attempt's own answer again."""
    is_copy = [
        verdict.detail.get("answer") == answer
        for anchor, answer, verdicts in zip(
            corrections.anchors, corrections.answers, corrections.judged.verdicts, strict=True
        )
        if not anchor.is_right and answer is not None
        for verdict in verdicts
        if verdict.status is not Status.UNKNOWN
    ]
    return float(np.mean(is_copy)) if is_copy else None


def _zero_signal_share(iteration: Iteration) -> float:
    """Share of groups, of both streams, in which no sample has an advantage."""
    credits = [c for c in (iteration.base_credit, iteration.correction_credit) if c is not None]
    is_zero = [not a.any() for credit in credits for a in credit.advantage]
    return float(np.mean(is_zero))


def _of_sampling(iteration: Iteration, cfg: Config) -> Metrics:
    """Rounds of sampling, and the share of groups that were left out for their equal verdicts."""
    dropped, dropped_corrections = None, None
    if cfg.objective.drops_equal_groups:
        dropped = 1 - num_mixed(iteration.base) / len(iteration.base.prompted)
        if iteration.correction_credit is not None:
            dropped_corrections = float(1 - iteration.correction_credit.is_kept_Q.mean())
    return {
        "sampling/rounds": iteration.num_rounds,
        "sampling/groups": int(iteration.base_credit.is_kept_Q.sum()),
        "sampling/dropped_share": dropped,
        "sampling/dropped_correction_share": dropped_corrections,
    }


def _truncated_share(judged: Judged) -> float:
    return float(1 - judged.rollouts.is_finished_QG.mean())


def _mean(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(values[where].mean()) if where.any() else None
