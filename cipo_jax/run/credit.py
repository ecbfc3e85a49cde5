"""What the samples of a stream are credited with: judged completions in, groups for the batch out.

    verdicts -> reward, less the penalty on length and on divergence -> advantages -> groups

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
from cipo_jax.method.mix import Completion, Group, max_rows, mix, unmixed
from cipo_jax.method.rewards import overlong_penalty
from cipo_jax.records import Batch, Stream
from cipo_jax.rollout.judged import Judged

ScoreReference = Callable[[Batch], np.ndarray]
"""Log-prob of each token of a batch under the reference policy."""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """The advantages of a stream, and the groups that they are trained in."""

    advantage: Advantage
    """Of all groups; 0 in those that are left out."""
    is_kept_Q: Bool[np.ndarray, " Q"]
    groups: list[Group]
    """Those that are kept."""
    divergence: float | None
    """Mean over their tokens from the reference policy, nats, where it is taken from the reward."""


def credit_base(judged: Judged, *, cfg: Config, score_reference: ScoreReference | None) -> Credit:
    """Credit for the base stream, of which at most train.prompts_per_step groups are kept."""

    def advantage_of(kept: Judged, scores: StreamRewards, which: np.ndarray) -> Advantage:
        return objective_advantage(scores, objective=cfg.objective)

    limit = cfg.train.prompts_per_step
    return _credit(Stream.BASE, judged, limit, advantage_of, cfg, score_reference)


def credit_corrections(
    judged: Judged,
    anchors: Sequence[Anchor],
    *,
    cfg: Config,
    score_reference: ScoreReference | None,
) -> Credit:
    """Credit for the corrections of the anchors, in their order."""
    is_right_M = np.array([a.is_right for a in anchors], bool)
    key_id_M = np.array([a.key_id for a in anchors])

    def advantage_of(kept: Judged, scores: StreamRewards, which: np.ndarray) -> Advantage:
        return correction_advantage(
            scores,
            is_right_M[which],
            key_id_M[which],
            raw_MG=kept.reward_QG,
            mode=cfg.correction.advantage,
            risk_penalty=cfg.correction.risk_penalty,
            objective=cfg.objective,
        )

    return _credit(Stream.CORRECTION, judged, len(anchors), advantage_of, cfg, score_reference)


def num_mixed(judged: Judged) -> int:
    """Groups with a right and a wrong sample."""
    return int(is_mixed(judged.reward_QG, judged.is_valid_QG).sum())


def _credit(
    stream: Stream,
    judged: Judged,
    limit: int,
    advantage_of: Callable[[Judged, StreamRewards, np.ndarray], Advantage],
    cfg: Config,
    score_reference: ScoreReference | None,
) -> Credit:
    is_kept_Q = np.ones(len(judged.prompted), bool)
    if cfg.objective.drops_equal_groups:
        is_kept_Q = is_mixed(judged.reward_QG, judged.is_valid_QG)
    which = np.flatnonzero(is_kept_Q)[:limit]
    kept = judged.take(which.tolist())
    penalty_QGC, mean_divergence = None, None
    if cfg.kl.is_in_reward and len(which):
        assert score_reference is not None
        divergence_QGC = _divergence_from_reference(stream, kept, cfg, score_reference)
        penalty_QGC = cfg.kl.weight * divergence_QGC
        num_tokens = int(kept.length_QG[kept.is_valid_QG].sum())
        mean_divergence = float(divergence_QGC.sum() / num_tokens) if num_tokens else None
    scores = StreamRewards(
        reward_QG=_reward(kept, cfg),
        is_valid_QG=kept.is_valid_QG,
        length_QG=kept.length_QG,
        token_penalty_QGC=penalty_QGC,
    )
    of_kept = advantage_of(kept, scores, which)
    advantage = np.zeros((len(judged.prompted), *of_kept.shape[1:]), np.float32)
    advantage[which] = of_kept
    return Credit(
        advantage=advantage,
        is_kept_Q=np.isin(np.arange(len(judged.prompted)), which),
        groups=_groups(stream, kept, of_kept),
        divergence=mean_divergence,
    )


def _reward(judged: Judged, cfg: Config) -> Float[np.ndarray, "Q G"]:
    """The verdict as a number, less what the objective takes for a completion's length."""
    reward_QG = judged.reward_QG.astype(np.float64)
    if not isinstance(cfg.objective, Dapo):
        return reward_QG
    return reward_QG - overlong_penalty(
        judged.length_QG,
        limit=cfg.sampling.max_new_tokens,
        share=cfg.objective.overlong_share,
        penalty=cfg.objective.overlong_penalty,
    )


def _divergence_from_reference(
    stream: Stream, judged: Judged, cfg: Config, score_reference: ScoreReference
) -> Float[np.ndarray, "Q G C"]:
    """The divergence estimate of each sampled token, nats: of the law that was sampled from against
    the reference policy. 0 where there is no token, and for samples that are not valid."""
    groups = _groups(stream, judged, np.zeros(judged.is_valid_QG.shape, np.float32))
    batch = mix(
        groups,
        objective=cfg.objective,
        train=cfg.train,
        max_new_tokens=cfg.sampling.max_new_tokens,
        max_rows=max_rows(cfg),
        keep_zero_signal=True,
    )
    log_gap_BT = np.where(
        batch.is_target_BT, batch.sampler_logprob_BT - np.asarray(score_reference(batch)), 0.0
    )
    divergence_BT = np.asarray(divergence(log_gap_BT, estimator=cfg.kl.estimator))
    return unmixed(divergence_BT, groups, train=cfg.train, keep_zero_signal=True)


def _groups(stream: Stream, judged: Judged, advantage: Advantage) -> list[Group]:
    return [
        Group(
            stream=stream,
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
