"""Where the problems come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class GeneratedTask:
    """Problems of our own small generators; training and held-out problems are disjoint."""

    kind: Literal["generated"] = "generated"
    name: Literal[
        "addition", "subtraction", "multiplication", "maximum", "last_item", "programs"
    ] = "addition"
    """The kind of problem: arithmetic on whole numbers, the largest of them, the last item of a
    list, or a program that changes a list of numbers step by step."""
    low: int = 1
    """Smallest operand; for `programs`, smallest constant of a step."""
    high: int = 12
    """Largest operand; for `programs`, largest constant of a step."""
    num_operands: int = 2
    """Numbers in a problem, at least 2; for `programs`, steps."""
    num_held_out: int = 32
    """Distinct problems kept apart for evaluation."""
    split_seed: int = 0
    """Which problems are held out. Separate from the run's seed, so that runs with different seeds
    are evaluated on the same problems."""

    def __post_init__(self) -> None:
        require(self.low <= self.high, f"tasks: low {self.low} exceeds high {self.high}.")
        require_at_least(2, self, "tasks", "num_operands")
        require_at_least(1, self, "tasks", "num_held_out")


@dataclass(frozen=True, kw_only=True)
class GymTask:
    """A procedural data set of reasoning-gym (`pip install cipo-jax[gym]`)."""

    kind: Literal["gym"] = "gym"
    dataset: str
    """Its name there, e.g. `chain_sum`; one whose answer is an exact number."""
    size: int = 10_000
    """Training problems that are generated; repeated questions are left out."""
    num_held_out: int = 64
    """Problems kept apart for evaluation."""
    seed: int = 0
    """Seed of the data set, apart from the run's, so that runs with different seeds are trained and
    evaluated on the same problems."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "tasks", "size", "num_held_out")


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The settings of problems that are read row by row, wherever the rows come from."""

    num_held_out: int = 64
    """Rows kept apart for evaluation, where it has no file or split of its own."""
    question_field: str = "question"
    """The field with the text of a problem; dots lead into nested fields (`extra.prompt`)."""
    answer_field: str = "answer"
    """The field with the answer or the tests, in the form that `judge` reads; dots lead into nested
    fields (`reward_model.ground_truth`)."""
    judge: Literal["number", "math", "stdio", "asserts"] = "math"
    """How completions are judged. `number`: by their last number; `math`: by the mathematical value
    of their final answer; `stdio`: as a program, by what it prints for each input; `asserts`: as a
    function, by Python assertions. Of an answer with `####` (GSM8K) what follows it counts."""
    answer_format: str = "Put your final answer within \\boxed{}."
    """Last line of every prompt: it tells the model the form that the judge expects."""
    function_field: str = ""
    """Judge `asserts`: the field with the function's name (`entry_point` in HumanEval); empty: the
    first function that the assertions call."""
    prelude_field: str = ""
    """Judge `asserts`: the field with given code that is put before the model's; empty: none."""
    split_seed: int = 0
    """Which rows are held out, apart from the run's seed, so that runs with different seeds are
    evaluated on the same problems."""


@dataclass(frozen=True, kw_only=True)
class FileTask(_Rows):
    """Problems in a local .jsonl or .parquet file."""

    kind: Literal["file"] = "file"
    path: str
    """A .jsonl, .json or .parquet file, relative to the working directory."""
    held_out_path: str = ""
    """A second file for evaluation; empty: `num_held_out` rows of the first are kept apart."""

    def __post_init__(self) -> None:
        if not self.held_out_path:
            require_at_least(1, self, "tasks", "num_held_out")


@dataclass(frozen=True, kw_only=True)
class HubTask(_Rows):
    """Problems of a data set on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    dataset: str
    """Data-set id, e.g. `open-r1/DAPO-Math-17k-Processed`."""
    subset: str = ""
    """Subset (configuration) of the data set; empty: its only one, or `default`."""
    split: str = "train"
    """The split that is trained on."""
    held_out_split: str = ""
    """A second split for evaluation; empty: `num_held_out` rows of the first are kept apart."""

    def __post_init__(self) -> None:
        if not self.held_out_split:
            require_at_least(1, self, "tasks", "num_held_out")


TaskSource = GeneratedTask | GymTask | FileTask | HubTask
