"""The samples of an evaluation as rows of a table: all that its measures are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Bool, Int

from cipo_jax.rollout.judged import Judged

Stream = Literal["greedy", "sampled", "corrected", "critique", "critique_corrected"]


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One completion and its verdict."""

    problem_id: str
    tags: str
    """JSON of the problem's level, subject and the like."""
    stream: Stream
    sample: int
    """Among the problem's samples; a correction has the number of the attempt that it corrects."""
    prompt_tokens: int
    tokens: int
    """Sampled ones, the end-of-sequence token included."""
    is_finished: bool
    """False: cut by the length limit."""
    completion: str
    status: str
    """`right`, `wrong` or `unknown`."""
    reason: str
    answer: str | None
    """What the verifier read as the answer, where it says so."""
    response_is_right: bool | None
    """Of the response that a critique or its correction speaks about."""


SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("tags", pa.string()),
        ("stream", pa.string()),
        ("sample", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("is_finished", pa.bool_()),
        ("completion", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("response_is_right", pa.bool_()),
    ]
)


def rows_of(
    judged: Judged,
    stream: Stream,
    tags: Mapping[str, Mapping[str, str]],
    *,
    first_sample: Sequence[int] | None = None,
    responses: Mapping[str, bool] | None = None,
) -> Iterator[SampleRow]:
    """The rows of one pass.

    Args:
      tags: of each problem, by id.
      first_sample: of each prompt, the number of its first completion; None for 0.
      responses: by problem id, whether the response that is criticised is right.
    """
    for q, prompted in enumerate(judged.prompted):
        problem_id = prompted.problem.id
        for g, verdict in enumerate(judged.verdicts[q]):
            yield SampleRow(
                problem_id=problem_id,
                tags=json.dumps(dict(tags[problem_id])),
                stream=stream,
                sample=g + (first_sample[q] if first_sample else 0),
                prompt_tokens=len(prompted.token_ids),
                tokens=int(judged.length_QG[q, g]),
                is_finished=bool(judged.rollouts.is_finished_QG[q, g]),
                completion=judged.text[q][g],
                status=verdict.status.value,
                reason=verdict.reason,
                answer=verdict.detail.get("answer"),
                response_is_right=responses[problem_id] if responses else None,
            )


def write(rows: Sequence[SampleRow], path: Path) -> None:
    """As parquet, complete or not at all."""
    unfinished = path.with_suffix(".tmp")
    # A completion may hold a lone surrogate, which parquet can't.
    records = [
        {k: _sound(v) if isinstance(v, str) else v for k, v in asdict(r).items()} for r in rows
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(records, SCHEMA), unfinished)
    unfinished.replace(path)


def read(path: Path) -> list[SampleRow]:
    """The rows that `write` wrote."""
    return [SampleRow(**record) for record in pyarrow.parquet.read_table(path).to_pylist()]


def _sound(text: str) -> str:
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One stream laid out as problems times samples."""

    problem_ids: tuple[str, ...]
    rows: tuple[tuple[SampleRow, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[SampleRow], stream: Stream) -> Sheet:
        """The rows of a stream, by problem in the order of their first rows, then by sample."""
        by_problem: dict[str, list[SampleRow]] = {}
        for row in rows:
            if row.stream == stream:
                by_problem.setdefault(row.problem_id, []).append(row)
        return cls(
            problem_ids=tuple(by_problem),
            rows=tuple(tuple(sorted(r, key=lambda x: x.sample)) for r in by_problem.values()),
        )

    def __bool__(self) -> bool:
        return bool(self.problem_ids)

    @property
    def num_samples(self) -> int:
        return max((len(row) for row in self.rows), default=0)

    @property
    def is_right_QG(self) -> Bool[np.ndarray, "Q G"]:
        return np.array([[r.status == "right" for r in row] for row in self.rows], bool)

    @property
    def is_known_QG(self) -> Bool[np.ndarray, "Q G"]:
        return np.array([[r.status != "unknown" for r in row] for row in self.rows], bool)

    @property
    def tokens_QG(self) -> Int[np.ndarray, "Q G"]:
        return np.array([[r.tokens for r in row] for row in self.rows], int)

    @property
    def answers(self) -> list[list[str | None]]:
        return [[r.answer for r in row] for row in self.rows]
