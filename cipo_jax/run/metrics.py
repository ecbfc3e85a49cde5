"""The figures of one step, as a typed record; `to_log` gives them the names of metrics.jsonl.

A figure that is not defined (retention without correct anchors, a loss without its stream) is None
and becomes null, never 0: a zero would be averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cipo_jax.config import Config, Uncorrected
from cipo_jax.method.gaps import BUCKETS, Gaps
from cipo_jax.method.mix import packing
from cipo_jax.records import Array
from cipo_jax.rollout.judged import Judged
from cipo_jax.run.credit import num_mixed
from cipo_jax.run.iteration import Corrections, Iteration
from cipo_jax.update.metrics import UpdateMetrics
from cipo_jax.verify.verdict import Status


@dataclass(frozen=True, kw_only=True)
class RewardFigures:
    """Rewards of the samples with a verdict."""

    base: float | None
    """Mean reward of the first attempts."""
    correction: float | None
    """Mean reward of the corrections."""
    divergence: float | None
    """Mean divergence of the base stream from the reference policy, nats a token, where it is taken
    from the reward."""


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """Groups of samples of one prompt."""

    zero_signal_share: float
    """Share of groups, of both streams, in which no sample has an advantage."""


@dataclass(frozen=True, kw_only=True)
class SamplingFigures:
    """Rounds of sampling."""

    rounds: int
    """Batches of prompts that were sampled; more than 1 with dynamic sampling."""
    groups: int
    """Groups of the base stream that are trained on."""
    dropped_share: float | None
    """Share of the base groups that dynamic sampling left out for their equal verdicts."""
    dropped_correction_share: float | None
    """The same share of the correction groups."""


@dataclass(frozen=True, kw_only=True)
class VerdictFigures:
    """Verdicts of both streams."""

    unknown_share: float
    """Share of samples on which the verifier gave no verdict."""
    is_sandboxed: bool | None
    """Whether model programs ran in a sandbox; None where none were run."""


@dataclass(frozen=True, kw_only=True)
class LengthFigures:
    """Sampled tokens of a completion, the end-of-sequence token included."""

    base_mean: float
    base_truncated_share: float
    """Share of completions that the length limit cut."""
    correction_mean: float | None
    correction_truncated_share: float | None


@dataclass(frozen=True, kw_only=True)
class CorrectionFigures:
    """What corrections do to the attempts that they are shown."""

    fix_rate: float | None
    """Share of the corrections of wrong attempts that are correct."""
    retention: float | None
    """Share of the corrections of correct attempts that are still correct."""
    break_rate: float | None
    """1 - retention."""
    copy_rate: float | None
    """Share of the corrections of wrong attempts that give the attempt's answer again."""
    retokenized_share: float | None
    """Share of the attempts that are read in other tokens than they were sampled in."""


@dataclass(frozen=True, kw_only=True)
class AnchorFigures:
    """The attempts that are corrected."""

    ratio_target: float | None
    """Share of correct attempts that was asked for."""
    ratio_realised: float | None
    """Share of correct attempts that there was."""
    count: int


@dataclass(frozen=True, kw_only=True)
class BatchFigures:
    """The packed rows."""

    rows: int
    """Rows in use."""
    padding_share: float | None
    """Padding over all places in the rows in use."""


@dataclass(frozen=True, kw_only=True)
class GradFigures:
    """The gradient."""

    norm: float
    """Global norm before clipping."""


@dataclass(frozen=True, kw_only=True)
class ImportanceFigures:
    """Importance weights against the sampler; None without importance correction."""

    weight: float | None
    """Mean weight."""
    bounded_share: float | None
    """Share of tokens whose weight is bounded."""


@dataclass(frozen=True, kw_only=True)
class LossFigures:
    """The loss and its parts."""

    base: float
    correction: float | None
    kl: float | None
    """Mean divergence from the reference policy, nats a token, where it is in the loss."""
    total: float
    """base + correction.weight * correction."""


@dataclass(frozen=True, kw_only=True)
class OptimizerFigures:
    """The optimizer."""

    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """|trainer - sampler log-prob| of the sampled tokens, nats, before the first update."""

    logprob_abs_mean: float | None
    logprob_abs_max: float
    masked_share: float | None
    """Share of tokens left out by `parity.kind` mask."""
    tripped: float
    """1 where the gaps are beyond the limits of `parity`."""
    mean: dict[str, float | None]
    max: dict[str, float | None]
    """By bucket of tokens (`method.gaps.BUCKETS`)."""


@dataclass(frozen=True, kw_only=True)
class PolicyFigures:
    """The policy on the trained tokens."""

    entropy: float
    """Mean entropy of its law, nats."""
    clip_share: float
    """Share of tokens whose gain is clipped."""
    ratio: float
    """Mean probability ratio against the policy before the first update on the batch."""


@dataclass(frozen=True, kw_only=True)
class TrainFigures:
    """The train step."""

    tokens: float
    """Trained tokens."""


@dataclass(frozen=True, kw_only=True)
class TimeFigures:
    """Seconds by phase; those of verification that did not overlap with sampling."""

    rollout_s: float
    correction_s: float
    verify_s: float
    train_s: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """Tokens of both streams."""

    sampled: int


@dataclass(frozen=True, kw_only=True)
class ThroughputFigures:
    """Tokens a second."""

    sampled_tokens_per_s: float
    trained_tokens_per_s: float
    """Tokens that went through the train step: a shared prompt once, padding not."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """All figures of a step; a field of a field is logged as `field/field`."""

    reward: RewardFigures
    groups: GroupFigures
    sampling: SamplingFigures
    verdict: VerdictFigures
    length: LengthFigures
    correction: CorrectionFigures
    anchors: AnchorFigures
    batch: BatchFigures
    grad: GradFigures
    importance: ImportanceFigures
    loss: LossFigures
    optimizer: OptimizerFigures
    parity: ParityFigures
    policy: PolicyFigures
    train: TrainFigures
    time: TimeFigures
    tokens: TokenFigures
    throughput: ThroughputFigures

    def to_log(self) -> dict[str, float | int | bool | None]:
        """The figures by the names of metrics.jsonl."""
        return dict(_named(self, ""))


def _named(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        parts = value
    elif hasattr(value, "__dataclass_fields__"):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
    else:
        return [(prefix, value)]
    return [
        entry
        for name, part in parts.items()
        for entry in _named(part, f"{prefix}/{name}" if prefix else name)
    ]


def step_metrics(
    iteration: Iteration,
    updates: Sequence[UpdateMetrics],
    *,
    cfg: Config,
    is_sandboxed: bool | None,
    train_s: float,
    step_s: float,
) -> StepMetrics:
    """The figures of a step.

    Args:
      updates: on the host. The last one's figures are the step's, but for the parity of the first,
        which alone compares the sampler's policy with itself.
      train_s, step_s: seconds of the updates, and of the whole step.
    """
    base, corrections, credit = iteration.base, iteration.corrections, iteration.credit
    streams = [base] if corrections is None else [base, corrections.judged]
    last = updates[-1]
    packed = packing(credit.batch)
    num_sampled = sum(j.num_tokens for j in streams)
    has_corrections = corrections is not None and cfg.correction_weight > 0
    has_importance = not isinstance(cfg.importance, Uncorrected)
    return StepMetrics(
        reward=RewardFigures(
            base=_mean_reward(base),
            correction=None if corrections is None else _mean_reward(corrections.judged),
            divergence=credit.base.divergence,
        ),
        groups=GroupFigures(zero_signal_share=_zero_signal_share(iteration)),
        sampling=_sampling(iteration, cfg),
        verdict=VerdictFigures(
            unknown_share=float(
                1 - np.concatenate([j.is_valid_QG.ravel() for j in streams]).mean()
            ),
            is_sandboxed=is_sandboxed,
        ),
        length=LengthFigures(
            base_mean=float(base.length_QG.mean()),
            base_truncated_share=_truncated_share(base),
            correction_mean=(
                None if corrections is None else float(corrections.judged.length_QG.mean())
            ),
            correction_truncated_share=(
                None if corrections is None else _truncated_share(corrections.judged)
            ),
        ),
        correction=_corrections(corrections),
        anchors=AnchorFigures(
            ratio_target=iteration.ratio if cfg.has_correction else None,
            ratio_realised=None if corrections is None else float(corrections.is_right_M.mean()),
            count=0 if corrections is None else len(corrections.shown),
        ),
        batch=BatchFigures(
            rows=packed.num_rows,
            padding_share=None if packed.num_rows == 0 else packed.padding_share,
        ),
        grad=GradFigures(norm=float(last.grad_norm)),
        importance=ImportanceFigures(
            weight=float(last.importance_weight) if has_importance else None,
            bounded_share=float(last.importance_bounded_share) if has_importance else None,
        ),
        loss=LossFigures(
            base=float(last.loss_base),
            correction=float(last.loss_correction) if has_corrections else None,
            kl=float(last.kl) if cfg.kl.is_in_loss else None,
            total=float(last.loss_total),
        ),
        optimizer=OptimizerFigures(learning_rate=float(last.learning_rate)),
        parity=parity_figures(updates[0]),
        policy=PolicyFigures(
            entropy=float(last.entropy),
            clip_share=float(last.clip_share),
            ratio=float(last.ratio),
        ),
        train=TrainFigures(tokens=float(last.num_tokens)),
        time=TimeFigures(
            rollout_s=base.sample_s,
            correction_s=0.0 if corrections is None else corrections.judged.sample_s,
            verify_s=sum(j.verify_s for j in streams),
            train_s=train_s,
            step_s=step_s,
        ),
        tokens=TokenFigures(sampled=num_sampled),
        throughput=ThroughputFigures(
            sampled_tokens_per_s=num_sampled / sum(j.sample_s for j in streams),
            trained_tokens_per_s=len(updates) * packed.num_tokens / train_s,
        ),
    )


def parity_figures(update: UpdateMetrics) -> ParityFigures:
    """How far trainer and sampler are apart in an update, in all and by bucket."""
    mean, largest = by_bucket(update.gaps)
    num_sampled = update.gaps.count[0]
    return ParityFigures(
        logprob_abs_mean=_ratio(update.gaps.total[0], num_sampled),
        logprob_abs_max=float(update.gaps.largest[0]),
        masked_share=_ratio(update.num_masked, num_sampled),
        tripped=float(update.is_tripped),
        mean=mean,
        max=largest,
    )


def by_bucket(gaps: Gaps) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and largest gap, nats, in each bucket but `all`; None in an empty one."""
    mean: dict[str, float | None] = {}
    largest: dict[str, float | None] = {}
    for bucket, count, total, most in zip(
        BUCKETS, gaps.count, gaps.total, gaps.largest, strict=True
    ):
        if bucket != "all":
            mean[bucket] = _ratio(total, count)
            largest[bucket] = float(most) if count else None
    return mean, largest


def _corrections(corrections: Corrections | None) -> CorrectionFigures:
    if corrections is None:
        return CorrectionFigures(
            fix_rate=None, retention=None, break_rate=None, copy_rate=None, retokenized_share=None
        )
    judged = corrections.judged
    on_right_MG = judged.is_valid_QG & corrections.is_right_M[:, None]
    on_wrong_MG = judged.is_valid_QG & ~corrections.is_right_M[:, None]
    retention = _mean(judged.reward_QG, on_right_MG)
    known = [s.is_retokenized for s in corrections.shown if s.is_retokenized is not None]
    return CorrectionFigures(
        fix_rate=_mean(judged.reward_QG, on_wrong_MG),
        retention=retention,
        break_rate=None if retention is None else 1 - retention,
        copy_rate=_copy_rate(corrections),
        retokenized_share=float(np.mean(known)) if known else None,
    )


def _copy_rate(corrections: Corrections) -> float | None:
    """How often the correction of a wrong attempt gives the attempt's own answer again."""
    is_copy = [
        verdict.detail.get("answer") == shown.answer
        for shown, verdicts in zip(corrections.shown, corrections.judged.verdicts, strict=True)
        if not shown.anchor.is_right and shown.answer is not None
        for verdict in verdicts
        if verdict.status is not Status.UNKNOWN
    ]
    return float(np.mean(is_copy)) if is_copy else None


def _zero_signal_share(iteration: Iteration) -> float:
    credits = [c for c in (iteration.credit.base, iteration.credit.correction) if c is not None]
    is_zero = [not a.any() for credit in credits for a in credit.advantage]
    return float(np.mean(is_zero))


def _sampling(iteration: Iteration, cfg: Config) -> SamplingFigures:
    dropped, dropped_corrections = None, None
    if cfg.objective.drops_equal_groups:
        dropped = 1 - num_mixed(iteration.base) / len(iteration.base.prompted)
        if iteration.credit.correction is not None:
            dropped_corrections = float(1 - iteration.credit.correction.is_kept_Q.mean())
    return SamplingFigures(
        rounds=iteration.num_rounds,
        groups=int(iteration.credit.base.is_kept_Q.sum()),
        dropped_share=dropped,
        dropped_correction_share=dropped_corrections,
    )


def _mean_reward(judged: Judged) -> float | None:
    return _mean(judged.reward_QG, judged.is_valid_QG)


def _truncated_share(judged: Judged) -> float:
    return float(1 - judged.rollouts.is_finished_QG.mean())


def _ratio(total: Array, count: Array) -> float | None:
    """In float32, as the device would divide; None for 0 / 0."""
    return float(np.float32(total) / np.float32(count)) if count else None


def _mean(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(values[where].mean()) if where.any() else None
