"""The held-out problems of a run: measured as any benchmark is, in calls of the run's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from cipo_jax.config import Config
from cipo_jax.evaluate.figures import StreamName
from cipo_jax.evaluate.passes import Sampler, solve
from cipo_jax.evaluate.summary import per_problem, summarise
from cipo_jax.model.transformer import Params
from cipo_jax.rollout.judged import Engine, Shape
from cipo_jax.tasks.benchmarks import Item
from cipo_jax.tasks.problem import Problem


def evaluate(
    engine: Engine, params: Params, problems: Sequence[Problem], key: jax.Array, cfg: Config
) -> dict[str, Any]:
    """All measures of the held-out problems, as JSON: `Summary`, and `per_problem`.

    One greedy completion of each problem; `evaluation.samples_per_problem` samples at the training
    temperature; `evaluation.corrections_per_attempt` corrections of the first of those samples,
    right or wrong as it comes.
    """
    shapes = shapes_of(cfg, len(problems))
    rows = solve(
        Sampler(
            engine=engine,
            params=params,
            keys={"greedy": key, "sampled": key, "corrected": jax.random.fold_in(key, 1)},
            shape=lambda stream, _: shapes[stream],
        ),
        [Item(problem=problem) for problem in problems],
        has_greedy=True,
        has_samples=True,
        num_corrected=1,
        temperature=cfg.sampling.temperature,
    )
    return {**summarise(rows, seed=cfg.seed), "per_problem": per_problem(rows)}


def shapes_of(cfg: Config, num_problems: int) -> dict[StreamName, Shape]:
    """The sampler's calls in each pass over `num_problems` held-out problems, in their order."""
    ev, prompts = cfg.evaluation, cfg.prompts

    def shape(num_samples: int, prompt_tokens: int) -> Shape:
        return Shape(
            num_prompts=min(ev.prompts_per_call, num_problems),
            num_samples=num_samples,
            prompt_tokens=prompt_tokens,
            new_tokens=ev.max_new_tokens,
        )

    return {
        "greedy": shape(1, prompts.max_prompt_tokens),
        "sampled": shape(ev.samples_per_problem, prompts.max_prompt_tokens),
        "corrected": shape(ev.corrections_per_attempt, prompts.max_correction_prompt_tokens),
    }
