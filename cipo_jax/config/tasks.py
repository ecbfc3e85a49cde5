"""Where the problems come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class GeneratedTask:
    """Problems of our own small generators; train and held-out problems are disjoint."""

    kind: Literal["generated"] = "generated"
    name: Literal[
        "addition", "subtraction", "multiplication", "maximum", "last_item", "programs"
    ] = "addition"
    low: int = 1
    """Smallest operand."""
    high: int = 12
    """Largest operand."""
    num_operands: int = 2
    num_held_out: int = 32
    """Distinct problems kept apart for evaluation."""
    split_seed: int = 0
    """Which problems are held out. Separate from the run's seed, so that runs with different seeds
    are evaluated on the same problems."""

    def __post_init__(self) -> None:
        require(self.low <= self.high, f"tasks: low {self.low} exceeds high {self.high}.")
        require(self.num_operands >= 2, f"tasks.num_operands is {self.num_operands}; at least 2.")
        require(self.num_held_out >= 1, f"tasks.num_held_out is {self.num_held_out}; at least 1.")


@dataclass(frozen=True, kw_only=True)
class GymTask:
    """A procedural data set of reasoning-gym (`pip install cipo-jax[gym]`)."""

    kind: Literal["gym"] = "gym"
    dataset: str
    """Its name there, e.g. `chain_sum`."""
    size: int = 10_000
    num_held_out: int = 64
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What problems that are read row by row have in common, wherever the rows come from."""

    num_held_out: int = 64
    """Rows kept apart for evaluation, where it has no file or split of its own."""
    question_field: str = "question"
    answer_field: str = "answer"
    judge: Literal["number", "math", "stdio", "asserts"] = "math"
    answer_format: str = "Put your final answer within \\boxed{}."
    """Last line of every prompt: it tells the model the form that the judge expects."""
    function_field: str = ""
    """Judge `asserts`: the field with the function's name (`entry_point` in HumanEval); empty: the
    first function that the assertions call."""
    prelude_field: str = ""
    """Judge `asserts`: the field with given code that stands before the model's; empty: none."""
    split_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FileTask(_Rows):
    """Problems in a local .jsonl or .parquet file."""

    kind: Literal["file"] = "file"
    path: str
    held_out_path: str = ""
    """A second file for evaluation; empty: `num_held_out` rows of the first are kept apart."""


@dataclass(frozen=True, kw_only=True)
class HubTask(_Rows):
    """Problems of a data set on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    dataset: str
    """Data-set id, e.g. `open-r1/DAPO-Math-17k-Processed`."""
    subset: str = ""
    split: str = "train"
    held_out_split: str = ""
    """A second split for evaluation; empty: `num_held_out` rows of the first are kept apart."""


TaskSource = GeneratedTask | GymTask | FileTask | HubTask
