"""Held-out problems: how often the model is right, how often one of k samples is, and what it does
to its own attempts when it is asked to go over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from cipo_jax.config import Config
from cipo_jax.evaluate import correction, measures
from cipo_jax.model.transformer import Params
from cipo_jax.rollout.judged import Engine, Judged, Prompted, Shape, roll_out
from cipo_jax.tasks.problem import Problem

# Key ids of held-out prompts start here, apart from those of training prompts.
FIRST_KEY_ID = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Of the sampler's calls in the three passes of an evaluation."""

    greedy: Shape
    sampled: Shape
    corrected: Shape

    @classmethod
    def of(cls, cfg: Config, num_problems: int) -> Shapes:
        """The shapes for `num_problems` held-out problems."""
        ev = cfg.evaluation

        def shape(num_samples: int, prompt_tokens: int) -> Shape:
            return Shape(
                num_prompts=min(ev.prompts_per_call, num_problems),
                num_samples=num_samples,
                prompt_tokens=prompt_tokens,
                new_tokens=ev.max_new_tokens,
            )

        return cls(
            greedy=shape(1, cfg.prompts.max_prompt_tokens),
            sampled=shape(ev.samples_per_problem, cfg.prompts.max_prompt_tokens),
            corrected=shape(ev.corrections_per_attempt, cfg.prompts.max_correction_prompt_tokens),
        )


def evaluate(
    engine: Engine, params: Params, problems: Sequence[Problem], key: jax.Array, cfg: Config
) -> dict[str, Any]:
    """Accuracy, pass@k and correction rates with bootstrap intervals over problems.

    Three passes: one greedy completion of each problem; `samples_per_problem` at the training
    temperature; and `corrections_per_attempt` corrections of the first of those samples, right or
    wrong as it comes. Completions whose verdict is unknown are left out, and their share is
    reported.

    Returns: a JSON-able dict: `greedy`, `sampled` (avg@n), `pass_at_k` and `maj_at_k` for powers of
      two (`maj_at_k` empty for programs, which have no answer to vote by), `correction` (see
      `correction.correction_measures`), `per_problem`, and shares of unknown verdicts and of
      completions cut by the length limit.
    """
    ev = cfg.evaluation
    asked = [
        Prompted(problem=p, token_ids=engine.renderer.base(p), key_id=FIRST_KEY_ID + i)
        for i, p in enumerate(problems)
    ]

    shapes = Shapes.of(cfg, len(problems))
    greedy = roll_out(engine, params, asked, key, shape=shapes.greedy, temperature=0.0)
    sampled = roll_out(
        engine,
        params,
        asked,
        key,
        shape=shapes.sampled,
        temperature=cfg.sampling.temperature,
    )
    attempts = [
        Prompted(
            problem=p,
            token_ids=engine.renderer.correction(p, sampled.text[i][0]),
            key_id=FIRST_KEY_ID + i,
        )
        for i, p in enumerate(problems)
    ]
    corrected = roll_out(
        engine,
        params,
        attempts,
        jax.random.fold_in(key, 1),
        shape=shapes.corrected,
        temperature=cfg.sampling.temperature,
    )
    num_right_Q = sampled.is_right_QG.sum(axis=1)
    num_valid_Q = sampled.is_valid_QG.sum(axis=1)
    samples = ev.samples_per_problem
    return {
        "problems": len(problems),
        "samples": samples,
        "greedy": measures.mean_with_interval(
            np.where(greedy.is_valid_QG, greedy.reward_QG, np.nan)[:, 0], seed=cfg.seed
        ),
        "sampled": measures.mean_with_interval(
            np.where(num_valid_Q > 0, num_right_Q / np.maximum(num_valid_Q, 1), np.nan),
            seed=cfg.seed,
        ),
        "pass_at_k": {
            str(k): measures.mean_with_interval(
                measures.pass_at_k(num_right_Q[num_valid_Q >= k], num_valid_Q[num_valid_Q >= k], k),
                seed=cfg.seed,
            )
            for k in measures.powers_of_two(samples)
        },
        "maj_at_k": _majorities(sampled, cfg.seed),
        "correction": _corrections(sampled, corrected, cfg.seed),
        "unknown_share": _unknown_share([greedy, sampled, corrected]),
        "length_mean": float(sampled.length_QG.mean()),
        "truncated_share": float(1 - sampled.rollouts.is_finished_QG.mean()),
        "per_problem": [
            {
                "id": problem.id,
                "greedy": bool(greedy.is_right_QG[q, 0]),
                "num_right": int(num_right_Q[q]),
                "num_valid": int(num_valid_Q[q]),
                "attempt_is_right": bool(sampled.is_right_QG[q, 0]),
                "num_right_corrections": int(corrected.is_right_QG[q].sum()),
            }
            for q, problem in enumerate(problems)
        ],
    }


def _majorities(sampled: Judged, seed: int) -> dict[str, measures.Estimate]:
    """maj@k for powers of two over the samples with a known verdict. Programs have no answer that
    could be voted by: none then."""
    answers, is_right = [], []
    for q, row in enumerate(sampled.verdicts):
        known = np.flatnonzero(sampled.is_valid_QG[q])
        answers.append([row[g].detail.get("answer") for g in known])
        is_right.append([bool(sampled.is_right_QG[q, g]) for g in known])
    if all(answer is None for row in answers for answer in row):
        return {}
    return {
        str(k): measures.mean_with_interval(measures.majority_at_k(answers, is_right, k), seed=seed)
        for k in measures.powers_of_two(sampled.is_valid_QG.shape[1])
    }


def _corrections(sampled: Judged, corrected: Judged, seed: int) -> dict[str, measures.Estimate]:
    """Correction measures over the pairs whose two verdicts are both known."""
    was_right_QG = np.broadcast_to(sampled.is_right_QG[:, :1], corrected.is_right_QG.shape)
    is_known_QG = corrected.is_valid_QG & sampled.is_valid_QG[:, :1]
    problem_QG = np.broadcast_to(np.arange(len(was_right_QG))[:, None], was_right_QG.shape)
    is_copy_QG = np.array(
        [
            [
                answer is not None and verdict.detail.get("answer") == answer
                for verdict in corrected.verdicts[q]
            ]
            for q, answer in enumerate(row[0].detail.get("answer") for row in sampled.verdicts)
        ]
    )
    return correction.correction_measures(
        problem_QG[is_known_QG],
        was_right_QG[is_known_QG],
        corrected.is_right_QG[is_known_QG],
        is_copy_N=is_copy_QG[is_known_QG],
        seed=seed,
    )


def _unknown_share(judged: Sequence[Judged]) -> float:
    return float(1 - np.concatenate([j.is_valid_QG.ravel() for j in judged]).mean())
