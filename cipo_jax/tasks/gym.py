"""Procedural problems of the reasoning-gym package (an extra of this one).

The data sets there bring their own scorers, often with partial credit; a verifier process knows
only our references. Taken are therefore the data sets whose answer is always one number that a
solver can state exactly: `NumberReference` judges those as their own scorer does. Rounded answers
(`decimal_arithmetic`), several right answers (`countdown`, `sudoku`) and texts are refused.
"""

from __future__ import annotations

import re
from typing import Any

from cipo_jax.config import GymTask
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.verify.verdict import NumberReference

NUMERIC = (
    "aiw",
    "basic_arithmetic",
    "binary_alternation",
    "chain_sum",
    "circuit_logic",
    "count_bits",
    "count_primes",
    "decimal_chain_sum",
    "dice",
    "gcd",
    "gsm_symbolic",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "maze",
    "number_format",
    "number_sequence",
    "products",
    "rectangle_count",
    "rotten_oranges",
    "self_reference",
    "simple_equations",
    "simple_geometry",
)
"""Sets of reasoning-gym 0.1.25: of each, 60 items were generated, all had a number as answer, and
the data set's scorer gave 1 to it and less to its neighbour."""

ANSWER_FORMAT = "End your reply with the answer, a number."

_NUMBER = re.compile(r"-?\d+(\.\d+)?(/\d+)?")


def generate(cfg: GymTask) -> Tasks:
    """`num_held_out` problems and up to `size` others, all with distinct questions.

    Raises: ImportError without the package; ValueError for a data set that can't be judged.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(
            "tasks.kind 'gym' needs reasoning-gym: pip install 'cipo-jax[gym]' "
            "(or pip install reasoning-gym)."
        ) from error
    if cfg.dataset not in NUMERIC:
        raise ValueError(
            f"tasks.dataset is '{cfg.dataset}'. Only data sets of reasoning-gym whose answer is "
            "one exact number are taken, since the others need scorers of their own: "
            f"{', '.join(NUMERIC)}."
        )
    source = reasoning_gym.create_dataset(
        cfg.dataset, seed=cfg.seed, size=cfg.size + cfg.num_held_out
    )
    distinct: dict[str, Problem] = {}
    for index in range(len(source)):
        problem = _problem(cfg.dataset, index, source[index])
        distinct.setdefault(problem.question, problem)
    problems = list(distinct.values())
    if len(problems) <= cfg.num_held_out:
        raise ValueError(
            f"tasks: {len(source)} items of '{cfg.dataset}' are only {len(problems)} distinct "
            f"problems, and holding {cfg.num_held_out} of them out leaves none to train on: lower "
            "tasks.num_held_out or raise tasks.size."
        )
    return Tasks(
        train=tuple(problems[cfg.num_held_out :]), held_out=tuple(problems[: cfg.num_held_out])
    )


def _problem(dataset: str, index: int, entry: dict[str, Any]) -> Problem:
    answer = str(entry["answer"]).strip()
    if not _NUMBER.fullmatch(answer):
        raise ValueError(
            f"tasks.dataset '{dataset}': item {index} has the answer '{answer}', which is not a "
            "number. The installed reasoning-gym differs from the version this list was made for "
            "(0.1.25); choose another data set."
        )
    return Problem(
        id=f"{dataset}:{index}",
        question=str(entry["question"]).strip(),
        answer_format=ANSWER_FORMAT,
        reference=NumberReference(answer=answer),
    )
