"""Advantages: how much better a sample did than its siblings.

Two streams, and never one set of statistics for both: a correction prompt shows an attempt, so its
success rate is another than the base prompt's.

A sample whose verdict is unknown has advantage 0 and counts in no mean, no standard deviation and
no group size. A group with fewer than two valid samples, or with equal rewards, has advantage 0:
exactly, not up to rounding, so that later stages may leave such sequences out. (`progress` compares
with the attempt and REINFORCE++ with the whole stream, so there equal rewards may carry a signal.)

All sums run in float64; results are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from cipo_jax.config import (
    Cispo,
    CorrectionAdvantage,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    Objective,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
)
from cipo_jax.method.baselines import (
    centred,
    group_std,
    leave_one_out,
    standardised,
    whitened,
)
from cipo_jax.method.rewards import correction_reward


@dataclass(frozen=True, kw_only=True)
class StreamRewards:
    """What a stream's samples earned, besides what its advantages are told apart.

    `reward` is the verifier's score with the shaping that both streams share (length); any value,
    NaN too, where not valid. `token_penalty` is taken from the reward of each token (a divergence
    from the reference policy) and is 0 beyond `length`.
    """

    reward_QG: Float[np.ndarray, "Q G"]
    is_valid_QG: Bool[np.ndarray, "Q G"]
    length_QG: Int[np.ndarray, "Q G"]
    token_penalty_QGC: Float[np.ndarray, "Q G C"] | None = None

    @property
    def total_QG(self) -> Float[np.ndarray, "Q G"]:
        """The reward of the whole sequence, its tokens' penalties taken off; 0 where not valid."""
        total_QG = np.where(self.is_valid_QG, self.reward_QG, 0.0).astype(np.float64)
        if self.token_penalty_QGC is not None:
            total_QG = total_QG - self.token_penalty_QGC.sum(axis=-1, dtype=np.float64)
        return np.where(self.is_valid_QG, total_QG, 0.0)


Advantage = Float32[np.ndarray, "Q G"] | Float32[np.ndarray, "Q G C"]
"""One number for a sequence, or one for each token where they differ, 0 beyond its length."""


def objective_advantage(
    rewards: StreamRewards,
    *,
    objective: Objective,
    spread_QG: Float[np.ndarray, "Q G"] | None = None,
) -> Advantage:
    """The advantages that an objective is defined with, over the samples of one stream.

        grpo, dapo, gspo, cispo       (R - mean R) / (std R + eps)   over the samples of a prompt
        dr_grpo, grpo without std     R - mean R                     the same
        rloo                          n / (n - 1) * (R - mean R)     the same, n of them
        reinforce_plus_plus           (G - mean G) / (std G + eps)   over all tokens of the stream
        reinforce_plus_plus_baseline  (B - mean B) / (std B + eps)   the same, B = R - mean R of the
                                                                     prompt

    with R the reward of a sequence less its tokens' penalties, and the return of a token

        G[t] = reward - sum of the penalties of the tokens from t on    (no discount)

    Args:
      spread_QG: rewards whose deviation a group is divided by; R where not given.
    Returns: float32 [Q, G], or [Q, G, C] for reinforce_plus_plus with penalties of tokens.
    """
    valid_QG = rewards.is_valid_QG
    # Where every token of a sequence has the sequence's value, it counts with its length.
    count_QG = valid_QG * rewards.length_QG
    match objective:
        case Grpo(scale_by_std=False) | DrGrpo():
            return centred(rewards.total_QG, valid_QG).astype(np.float32)
        case Grpo() | Dapo() | Gspo() | Cispo():
            return standardised(
                rewards.total_QG,
                valid_QG,
                ddof=objective.ddof,
                eps=objective.std_eps,
                spread_QG=spread_QG,
            )
        case Rloo():
            return leave_one_out(rewards.total_QG, valid_QG)
        case ReinforcePlusPlus() if rewards.token_penalty_QGC is not None:
            # The sum from t on: of the tokens in reverse, cumulated, and reversed again.
            to_come_QGC = np.cumsum(
                rewards.token_penalty_QGC[..., ::-1], axis=-1, dtype=np.float64
            )[..., ::-1]
            return_QGC = np.where(valid_QG, rewards.reward_QG, 0.0)[..., None] - to_come_QGC
            is_token_QGC = np.arange(return_QGC.shape[-1]) < count_QG[..., None]
            return whitened(return_QGC, is_token_QGC, ddof=objective.ddof, eps=objective.std_eps)
        case ReinforcePlusPlus():
            value_QG = rewards.total_QG
            return whitened(value_QG, count_QG, ddof=objective.ddof, eps=objective.std_eps)
        case ReinforcePlusPlusBaseline():
            value_QG = centred(rewards.total_QG, valid_QG)
            return whitened(value_QG, count_QG, ddof=objective.ddof, eps=objective.std_eps)


def of_sequences(
    advantage: Advantage, length_QG: Int[np.ndarray, "Q G"]
) -> Float[np.ndarray, "Q G"]:
    """The mean advantage of each sequence's tokens."""
    if advantage.ndim == 2:
        return advantage
    mean_QG: np.ndarray = advantage.sum(axis=-1) / np.maximum(length_QG, 1)
    return mean_QG


def correction_advantage(
    rewards: StreamRewards,
    is_right_M: Bool[np.ndarray, " M"],
    prompt_M: Int[np.ndarray, " M"],
    *,
    raw_MG: Float[np.ndarray, "M G"],
    mode: CorrectionAdvantage,
    risk_penalty: float,
    objective: Objective,
) -> Advantage:
    """The advantage of corrections, from the risk-averse reward r~ of their scores r.

        objective     that of `objective_advantage`, of r~; where it divides by the deviation of a
                      group, by that of r
        raw_std       (r~ - mean r~) / (std r + eps)     over the corrections of one anchor
        std           (r~ - mean r~) / (std r~ + eps)    the same; risk_penalty has no effect
        none          r~ - mean r~                       the same
        batch_std     (r~ - mean r~) / (S + eps)         S = std of r~ over all valid corrections
        prompt_group  (r~ - mean r~) / (std r~ + eps)    over all corrections of one problem
        progress      r~ - z                             z = 1 if the anchor is right

    The penalty is taken for a broken attempt alone, so r~ and r differ by it and by nothing else;
    what else shapes the reward (length, divergence) is in both.

    Why `raw_std` and not `std`: the rewards of one anchor's group take two values, {0, 1} or
    {-risk_penalty, 1}. Both sets become the same numbers when they are centred and divided by their
    own deviation. Dividing by the deviation of the *raw* scores leaves the groups of wrong anchors
    as in GRPO and scales those of right anchors by 1 + risk_penalty.

    Args:
      rewards: of the corrections, the risk penalty not taken.
      is_right_M: whether the anchor of the row is a right attempt.
      prompt_M: identity of the anchor's problem, used by `prompt_group` alone.
      raw_MG: the verifier's own scores, in [0, 1]; any value, NaN too, where not valid.
      risk_penalty: lambda_r.
      objective: also the ddof and eps of the other modes; the deviation of the population and 1e-8
        where it has none.
    Returns: float32; 0 where not valid and, but for `progress` and REINFORCE++, in groups with
      fewer than two valid samples.
    Raises: ValueError for another mode.
    """
    valid_MG = rewards.is_valid_QG
    raw_MG = np.where(valid_MG, raw_MG, 0.0).astype(np.float64)
    risk_MG = correction_reward(raw_MG, is_right_M, risk_penalty) - raw_MG
    if mode == "objective":
        shaped = replace(rewards, reward_QG=rewards.reward_QG + risk_MG)
        return objective_advantage(shaped, objective=objective, spread_QG=rewards.total_QG)

    plain_MG = rewards.total_QG
    shaped_MG = np.where(valid_MG, plain_MG + risk_MG, 0.0)
    match objective:
        case DrGrpo() | Rloo():
            ddof, eps = 0, 1e-8
        case _:
            ddof, eps = objective.ddof, objective.std_eps

    if mode == "prompt_group":
        advantage_MG = np.zeros(raw_MG.shape, np.float32)
        for prompt in np.unique(prompt_M):
            rows = prompt_M == prompt
            # One prompt, whose samples are the corrections of all its anchors.
            shaped_1G, valid_1G = (x_MG[rows].reshape(1, -1) for x_MG in (shaped_MG, valid_MG))
            together_1G = standardised(shaped_1G, valid_1G, ddof=ddof, eps=eps)
            advantage_MG[rows] = together_1G.reshape(-1, shaped_MG.shape[1])
        return advantage_MG

    if mode == "progress":
        has_siblings_M1 = valid_MG.sum(axis=1, keepdims=True) >= 2
        gain_MG = shaped_MG - is_right_M[:, None]
        return np.where(valid_MG & has_siblings_M1, gain_MG, 0.0).astype(np.float32)

    match mode:
        case "raw_std":
            return standardised(shaped_MG, valid_MG, ddof=ddof, eps=eps, spread_QG=plain_MG)
        case "std":
            return standardised(shaped_MG, valid_MG, ddof=ddof, eps=eps)
        case "none":
            return centred(shaped_MG, valid_MG).astype(np.float32)
        case "batch_std":
            std = group_std(shaped_MG.reshape(1, -1), valid_MG.reshape(1, -1), ddof=ddof)
            return (centred(shaped_MG, valid_MG) / (std + eps)).astype(np.float32)
        case _:
            raise ValueError(
                f"correction.advantage is {mode!r}; it is one of objective, raw_std, std, none, "
                "batch_std, prompt_group and progress."
            )
