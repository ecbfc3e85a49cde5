"""How a model is measured: on a run's held-out problems, and on benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out problems, before, during and after training."""

    every: int = 50
    """Steps between evaluations; 0: only before and after."""
    problems: int = 64
    """Held-out problems that are measured; all of them where there are fewer."""
    samples_per_problem: int = 8
    """Samples of each problem at `sampling.temperature`, for accuracy and pass@k; one greedy
    completion comes on top."""
    corrections_per_attempt: int = 4
    """Corrections of the first sample of each problem, correct or not."""
    max_new_tokens: int = 4096
    """Most tokens of a completion; longer ones are cut."""
    prompts_per_call: int = 64
    """Prompts that are sampled at once; more problems than this go in waves."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "evaluation", "every")
        require_at_least(
            1,
            self,
            "evaluation",
            "problems",
            "samples_per_problem",
            "corrections_per_attempt",
            "max_new_tokens",
            "prompts_per_call",
        )


@dataclass(frozen=True, kw_only=True)
class Benchmarking:
    """How a model is measured on benchmarks (`cipo evaluate`); docs/evaluation.md says what the
    paper's settings are known to be."""

    samples: int | Literal["usual"] = "usual"
    """Samples of each problem; usual: the benchmark's own number; 0: greedy only."""
    temperature: float = 1.0
    """Temperature of the samples, over the full distribution. [unknown] in the paper."""
    max_new_tokens: int = 4096
    """Most tokens of a completion. [unknown] in the paper; its open re-implementation has 8192."""
    greedy: bool = True
    """Also one greedy completion of each problem."""
    corrections: bool = True
    """Also one correction of each sample, correct or not."""
    limit: int | None = None
    """Only the first problems of each benchmark, so many."""
    sequences_per_call: int = 64
    """Completions that are sampled at once; the keys and values of all are in memory."""
    seed: int = 0
    """Seed of the samples and of the bootstrap intervals."""

    def __post_init__(self) -> None:
        require(
            self.samples == "usual" or 0 <= self.samples <= 511,
            f"samples is {self.samples}; it must be from 0 (greedy only) to 511.",
        )
        require(self.samples != 0 or self.greedy, "samples 0 and no greedy: nothing is left.")
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be positive.")
        for name in ("max_new_tokens", "sequences_per_call", "limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1.")
