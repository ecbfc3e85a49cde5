"""The samples of an evaluation as rows of a table: all that its measures are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from cipo_jax.config import atomic
from cipo_jax.evaluate.figures import StreamName
from cipo_jax.rollout.judged import Judged
from cipo_jax.tasks.benchmarks import Item


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One completion and its verdict."""

    problem_id: str
    tags: str
    """JSON of the problem's level, subject and the like."""
    stream: StreamName
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
    """The answer that the verifier read, where it says so."""
    response_is_right: bool | None
    """In streams of critiques: whether the given response is right."""

    @property
    def is_known(self) -> bool:
        return self.status != "unknown"

    @property
    def is_right(self) -> bool:
        return self.status == "right"


_COLUMNS = {
    "str": pa.string(),
    "str | None": pa.string(),
    "StreamName": pa.string(),
    "int": pa.int32(),
    "bool": pa.bool_(),
    "bool | None": pa.bool_(),
}
SCHEMA = pa.schema([(field.name, _COLUMNS[str(field.type)]) for field in fields(SampleRow)])


def rows_of(
    judged: Judged,
    stream: StreamName,
    items: Mapping[str, Item],
    *,
    attempts: Sequence[int] | None = None,
) -> Iterator[SampleRow]:
    """The rows of one pass, prompt by prompt.

    Args:
      items: by problem id.
      attempts: of prompts that ask for corrections, the number of the attempt in each.
    """
    length_QG = judged.length_QG
    for q, prompted in enumerate(judged.prompted):
        item = items[prompted.problem.id]
        for g, verdict in enumerate(judged.verdicts[q]):
            yield SampleRow(
                problem_id=prompted.problem.id,
                tags=json.dumps(dict(item.tags)),
                stream=stream,
                sample=attempts[q] if attempts else g,
                prompt_tokens=len(prompted.token_ids),
                tokens=int(length_QG[q, g]),
                is_finished=bool(judged.rollouts.is_finished_QG[q, g]),
                completion=judged.text[q][g],
                status=verdict.status.value,
                reason=verdict.reason,
                answer=verdict.detail.get("answer"),
                response_is_right=item.response.is_right if item.response else None,
            )


def write(rows: Sequence[SampleRow], path: Path) -> None:
    """As parquet, complete or not at all."""
    # A completion may hold a lone surrogate, which parquet can't.
    records = [
        {k: _sound(v) if isinstance(v, str) else v for k, v in asdict(r).items()} for r in rows
    ]
    with atomic.replacing(path) as unfinished:
        pyarrow.parquet.write_table(pa.Table.from_pylist(records, SCHEMA), unfinished)


def read(path: Path) -> list[SampleRow]:
    """The rows that `write` wrote."""
    return [SampleRow(**record) for record in pyarrow.parquet.read_table(path).to_pylist()]


def _sound(text: str) -> str:
    return text.encode(errors="replace").decode()
