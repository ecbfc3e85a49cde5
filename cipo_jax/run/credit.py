"""What the samples of a step are credited with: judged completions in, one mixed batch out.

    verdicts -> reward, less the penalty on length and on divergence -> advantages -> batch

Both streams take this way, each with statistics of its own; corrections have the risk penalty
besides. Verdicts stay as they are: anchors, retention and every metric are read from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cipo_jax.config import Config, Dapo
from cipo_jax.method.advantages import (
    Advantage,
    StreamRewards,
    correction_advantage,
    objective_advantage,
)
from cipo_jax.method.anchors import Anchor
from cipo_jax.method.baselines import is_mixed
from cipo_jax.method.losses import divergence
from cipo_jax.method.mix import Completion, Group, Mixed, max_rows, mix
from cipo_jax.method.rewards import overlong_penalty
from cipo_jax.records import Batch, Stream
from cipo_jax.rollout.judged import Judged

ScoreReference = Callable[[Batch], np.ndarray]
"""Log-prob of each token of a batch under the reference policy."""


@dataclass(frozen=True, kw_only=True)
class StreamCredit:
    """The advantages of a stream."""

    advantage: Advantage
    """In each group; 0 in those that are left out."""
    is_kept_Q: Bool[np.ndarray, " Q"]
    """Which groups are trained on."""
    divergence: float | None
    """Mean divergence from the reference policy over their tokens, nats, where it is taken from the
    reward of the stream."""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """What both streams are credited with, and the batch that trains on it."""

    base: StreamCredit
    correction: StreamCredit | None
    """None without corrections."""
    batch: Batch


def credit(
    base: Judged,
    corrections: Judged | None,
    anchors: Sequence[Anchor],
    *,
    cfg: Config,
    score_reference: ScoreReference | None,
) -> Credit:
    """Credit for both streams, and their batch.

    At most train.prompts_per_step groups of the base stream are kept. With correction.weight 0 the
    corrections are credited, but are no part of the batch, which is that of plain RLVR.

    Args:
      corrections: of the anchors, in their order; None if there are none.
      score_reference: needed where a KL penalty is taken from the reward.
    """
    kept = [_keep(Stream.BASE, base, cfg.train.prompts_per_step, cfg)]
    if corrections is not None:
        kept.append(_keep(Stream.CORRECTION, corrections, len(anchors), cfg))
    in_batch = [k for k in kept if k.stream is Stream.BASE or cfg.correction_weight > 0]
    if not cfg.kl.is_in_reward:
        advantages = {k.stream: _advantage(k, anchors, cfg, None) for k in kept}
        groups = [group for k in in_batch for group in _groups(k, advantages[k.stream])]
        batch = _mix(groups, cfg, keep_zero_signal=cfg.trains_on_zero_signal).batch
        return _credit(kept, advantages, {}, batch)
    assert score_reference is not None
    # Scored in the rows that are trained on afterwards: only the advantages are put in later.
    silent = [group for k in in_batch for group in _groups(k, np.zeros(k.judged.is_valid_QG.shape))]
    mixed = _mix(silent, cfg, keep_zero_signal=True)
    divergence_QGC = _divergence_from_reference(mixed, cfg, score_reference)
    starts = np.cumsum([0, *(len(k.which) for k in in_batch)])
    divergences = {
        k.stream: divergence_QGC[start:stop, :, : int(k.judged.length_QG.max(initial=0))]
        for k, start, stop in zip(in_batch, starts[:-1], starts[1:], strict=True)
        if len(k.which)
    }
    advantages = {k.stream: _advantage(k, anchors, cfg, divergences.get(k.stream)) for k in kept}
    batch = mixed.credited([row for k in in_batch for row in advantages[k.stream]])
    return _credit(kept, advantages, divergences, batch)


def num_mixed(judged: Judged) -> int:
    """Groups with a right and a wrong sample."""
    return int(is_mixed(judged.reward_QG, judged.is_valid_QG).sum())


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The groups of a stream that are trained on."""

    stream: Stream
    num_groups: int
    """Groups of the stream, with those that are left out."""
    which: np.ndarray
    """Indices of those that are kept."""
    judged: Judged
    """Those that are kept."""


def _keep(stream: Stream, judged: Judged, limit: int, cfg: Config) -> _Kept:
    """The first `limit` groups; with dynamic sampling, of those with a right and a wrong sample."""
    is_kept_Q = np.ones(len(judged.prompted), bool)
    if cfg.objective.drops_equal_groups:
        is_kept_Q = is_mixed(judged.reward_QG, judged.is_valid_QG)
    which = np.flatnonzero(is_kept_Q)[:limit]
    return _Kept(
        stream=stream,
        num_groups=len(judged.prompted),
        which=which,
        judged=judged.take(which.tolist()),
    )


def _advantage(
    kept: _Kept,
    anchors: Sequence[Anchor],
    cfg: Config,
    divergence_QGC: Float[np.ndarray, "Q G C"] | None,
) -> Advantage:
    """The advantages in the groups that are kept."""
    judged = kept.judged
    scores = StreamRewards(
        reward_QG=_reward(judged, cfg),
        is_valid_QG=judged.is_valid_QG,
        length_QG=judged.length_QG,
        token_penalty_QGC=None if divergence_QGC is None else cfg.kl.weight * divergence_QGC,
    )
    if kept.stream is Stream.BASE:
        return objective_advantage(scores, objective=cfg.objective)
    return correction_advantage(
        scores,
        np.array([anchors[m].is_right for m in kept.which], bool),
        np.array([anchors[m].key_id for m in kept.which], int),
        raw_MG=judged.reward_QG,
        mode=cfg.correction.advantage,
        risk_penalty=cfg.correction.risk_penalty,
        objective=cfg.objective,
    )


def _reward(judged: Judged, cfg: Config) -> Float[np.ndarray, "Q G"]:
    """The verdict as a number, less what the objective takes for a completion's length."""
    reward_QG = judged.reward_QG.astype(np.float64)
    if not isinstance(cfg.objective, Dapo):
        return reward_QG
    penalty_QG = overlong_penalty(
        judged.length_QG,
        limit=cfg.sampling.max_new_tokens,
        share=cfg.objective.overlong_share,
        penalty=cfg.objective.overlong_penalty,
    )
    return np.asarray(reward_QG - penalty_QG)


def _divergence_from_reference(
    mixed: Mixed, cfg: Config, score_reference: ScoreReference
) -> Float[np.ndarray, "Q G C"]:
    """The divergence estimate of each sampled token, nats: of the law that was sampled from against
    the reference policy. 0 where there is no token, and for samples that are not valid."""
    batch = mixed.batch
    log_gap_BT = np.where(
        batch.is_target_BT, batch.sampler_logprob_BT - np.asarray(score_reference(batch)), 0.0
    )
    return mixed.places.back(np.asarray(divergence(log_gap_BT, estimator=cfg.kl.estimator)))


def _mix(groups: Sequence[Group], cfg: Config, *, keep_zero_signal: bool) -> Mixed:
    return mix(
        groups,
        objective=cfg.objective,
        train=cfg.train,
        max_new_tokens=cfg.sampling.max_new_tokens,
        max_rows=max_rows(cfg),
        keep_zero_signal=keep_zero_signal,
    )


def _groups(kept: _Kept, advantage: Advantage) -> list[Group]:
    judged = kept.judged
    return [
        Group(
            stream=kept.stream,
            prompt_P=np.asarray(prompted.token_ids, np.int32),
            completions=[
                Completion(
                    token_C=np.asarray(judged.completion_ids(q, g), np.int32),
                    logprob_C=judged.completion_logprobs(q, g),
                )
                for g in range(advantage.shape[1])
            ],
            advantage_G=advantage[q],
            is_valid_G=judged.is_valid_QG[q],
        )
        for q, prompted in enumerate(judged.prompted)
    ]


def _credit(
    kept: Sequence[_Kept],
    advantages: dict[Stream, Advantage],
    divergences: dict[Stream, np.ndarray],
    batch: Batch,
) -> Credit:
    streams = {k.stream: _of_all(k, advantages[k.stream], divergences.get(k.stream)) for k in kept}
    return Credit(base=streams[Stream.BASE], correction=streams.get(Stream.CORRECTION), batch=batch)


def _of_all(
    kept: _Kept, of_kept: Advantage, divergence_QGC: Float[np.ndarray, "Q G C"] | None
) -> StreamCredit:
    """From the groups that are kept to all of the stream."""
    advantage = np.zeros((kept.num_groups, *of_kept.shape[1:]), np.float32)
    advantage[kept.which] = of_kept
    mean_divergence = None
    if divergence_QGC is not None:
        num_tokens = int(kept.judged.length_QG[kept.judged.is_valid_QG].sum())
        mean_divergence = float(divergence_QGC.sum() / num_tokens) if num_tokens else None
    return StreamCredit(
        advantage=advantage,
        is_kept_Q=np.isin(np.arange(kept.num_groups), kept.which),
        divergence=mean_divergence,
    )
