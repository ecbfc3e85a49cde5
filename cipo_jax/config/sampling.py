"""How problems become prompts, and prompts completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How problems and attempts become token sequences."""

    max_prompt_tokens: int = 1024
    """Most tokens of a base prompt. A longer one is an error when it is met, never cut."""
    max_attempt_tokens: int = 4096
    """An attempt longer than this loses its middle in the correction prompt; the problem and the
    instructions are never cut."""
    max_correction_prompt_tokens: int = 5376
    """Most tokens of a correction prompt: problem, attempt and template."""
    system: str = ""
    """System message; empty: none is given. A template that has a text of its own for that case
    (SmolLM2, Qwen2.5) then shows it, as the model was trained with it."""
    thinking: bool = False
    """The chat template's thinking switch, where it has one (Qwen3)."""
    correction_template: Literal["attempt_last", "attempt_first"] = "attempt_last"
    """`attempt_first` puts the attempt before the problem, which small models correct better."""

    def __post_init__(self) -> None:
        require_at_least(
            1,
            self,
            "prompts",
            "max_prompt_tokens",
            "max_attempt_tokens",
            "max_correction_prompt_tokens",
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Rollouts during training. Always the full distribution: the policy ratio is wrong by the kept
    mass under top-k or top-p, so neither exists here."""

    samples_per_prompt: int = 8
    """G, samples of each base prompt and of each correction prompt, from 2 to 511."""
    temperature: float = 1.0
    """Divisor of the logits before the softmax, in sampling and in every log-prob."""
    max_new_tokens: int = 4096
    """Most tokens of a completion; longer ones are cut, and judged as they are."""
    prompts_per_call: int = 32
    """Prompts that are sampled at once; the keys and values of all their samples are in memory. A
    step with more prompts than this samples them in waves."""

    def __post_init__(self) -> None:
        require(
            self.samples_per_prompt >= 2,
            f"sampling.samples_per_prompt is {self.samples_per_prompt}: a group baseline needs at "
            "least 2 samples of a prompt.",
        )
        require(
            self.samples_per_prompt <= 511,
            f"sampling.samples_per_prompt is {self.samples_per_prompt}; at most 511, so that every "
            "sample has a random key of its own.",
        )
        require(
            self.temperature > 0,
            f"sampling.temperature is {self.temperature}: training samples need a positive one "
            "(evaluation has a greedy setting of its own).",
        )
        require_at_least(1, self, "sampling", "max_new_tokens", "prompts_per_call")
