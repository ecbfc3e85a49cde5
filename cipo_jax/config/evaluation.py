"""What is measured on held-out problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Benchmarking:
    """How a model is measured on benchmarks (`cipo evaluate`); docs/evaluation.md says what the
    paper's settings are known to be."""

    samples: int | Literal["usual"] = "usual"
    """Samples of each problem; usual: the benchmark's own number."""
    temperature: float = 1.0
    """Of the samples, over the full distribution. [unknown] in the paper."""
    max_new_tokens: int = 4096
    """Tokens of a completion. [unknown] in the paper; its open re-implementation has 8192."""
    greedy: bool = True
    """Also one greedy completion of each problem."""
    corrections: bool = True
    """Also one correction of each sample, right or wrong as it comes."""
    limit: int | None = None
    """Only the first problems of each benchmark."""
    sequences_per_call: int = 64
    """Completions that are sampled at once; the keys and values of all are in memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples != "usual":
            require(
                0 <= self.samples <= 511,
                f"samples is {self.samples}; from 0 (greedy only) to 511.",
            )
        require(self.samples != 0 or self.greedy, "samples 0 and no greedy: nothing is left.")
        require(self.temperature > 0, f"temperature is {self.temperature}; must be positive.")
        require(self.max_new_tokens >= 1, "max_new_tokens must be at least 1.")
        require(self.limit is None or self.limit >= 1, "limit must be at least 1.")
        require(self.sequences_per_call >= 1, "sequences_per_call must be at least 1.")
