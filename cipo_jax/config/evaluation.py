"""What is measured on held-out problems."""

from __future__ import annotations

from dataclasses import dataclass

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out problems, before, during and after training."""

    every: int = 50
    """Steps between evaluations; 0: only before and after."""
    problems: int = 64
    samples_per_problem: int = 8
    corrections_per_attempt: int = 4
    max_new_tokens: int = 4096
    prompts_per_call: int = 64
    """Prompts that are sampled at once; more problems than this go in waves."""

    def __post_init__(self) -> None:
        require(self.prompts_per_call >= 1, "evaluation.prompts_per_call must be at least 1.")
        require(self.problems >= 1, "evaluation.problems must be at least 1.")
        require(self.samples_per_problem >= 1, "evaluation.samples_per_problem must be >= 1.")
        require(
            self.corrections_per_attempt >= 1, "evaluation.corrections_per_attempt must be >= 1."
        )
        require(self.every >= 0, "evaluation.every can't be negative; 0: before and after only.")
