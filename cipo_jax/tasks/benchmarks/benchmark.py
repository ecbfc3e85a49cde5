"""What a benchmark is: where its rows lie, how one becomes a problem, how it is usually run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.references import Unusable
from cipo_jax.tasks.rows import SUFFIXES, Row, hub_file_rows, hub_rows, rows_of


@dataclass(frozen=True, kw_only=True)
class HubSplit:
    """A split of a hub data set, read from the hub's own conversion to parquet."""

    dataset: str
    subset: str = ""
    split: str = "test"

    def rows(self) -> Iterator[Row]:
        return hub_rows(self.dataset, subset=self.subset, split=self.split)

    def __str__(self) -> str:
        subset = f", subset {self.subset}" if self.subset else ""
        return f"{self.dataset}{subset}, split {self.split}"


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Named files of a hub data set that only a loading script would turn into splits."""

    dataset: str
    files: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        return hub_file_rows(self.dataset, self.files)

    def __str__(self) -> str:
        return f"{self.dataset}, files {', '.join(self.files)}"


@dataclass(frozen=True, kw_only=True)
class Response:
    """Somebody's response to a problem, which is to be criticised, and whether it is right."""

    text: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a benchmark."""

    problem: Problem
    tags: Mapping[str, str] = field(default_factory=dict)
    """Level, subject, platform and the like; results are also given by each."""
    response: Response | None = None
    """For benchmarks that ask for critiques."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark, in the form in which its authors published it."""

    name: str
    """On the command line, and of its file: `NAME.jsonl` or any other of `rows.SUFFIXES`."""
    title: str
    area: Literal["maths", "code", "critique"]
    source: HubSplit | HubFiles
    num_rows: int
    """Rows of that source, as published."""
    fields: tuple[str, ...]
    """Those that are read, by their published names."""
    samples: int
    """Samples of a problem that are usual."""
    read: Callable[[Row], Item]
    """One row as an item. Raises: Unusable for rows that can't be judged here; ValueError."""
    note: str = ""

    def rows(self, data: Path | None) -> Iterator[Row]:
        """From the files below `data`, or from the hub.

        Raises: ValueError that names what is missing, its form, and where to get it.
        """
        if data is None:
            return self._hub_rows()
        files = self._files(data)
        if not files:
            names = ", ".join(f"{self.name}{suffix}" for suffix in SUFFIXES)
            raise ValueError(
                f"benchmark {self.name}: no data in {data}. Put one of {names} there, or a folder "
                f"{self.name}/ with several such files. A row has the fields "
                f"{', '.join(self.fields)}; published as {self.source} on the Hugging Face hub "
                f"(hf download --repo-type dataset {self.source.dataset}). Without --data it is "
                "read from the hub."
            )
        return (row for file in files for row in rows_of(file, name=str(file)))

    def _hub_rows(self) -> Iterator[Row]:
        try:
            yield from self.source.rows()
        except ValueError as error:
            raise ValueError(
                f"benchmark {self.name}: {error} Where there is no network, put its file "
                f"({self.name}.jsonl or .parquet, fields {', '.join(self.fields)}) into a folder "
                "and name that with --data."
            ) from error

    def _files(self, data: Path) -> list[Path]:
        folder = data / self.name
        if folder.is_dir():
            return sorted(f for f in folder.iterdir() if f.name.endswith(SUFFIXES))
        return [f for suffix in SUFFIXES if (f := data / f"{self.name}{suffix}").is_file()][:1]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The items of a benchmark, and the rows that were left out, counted by reason."""

    items: tuple[Item, ...]
    left_out: Mapping[str, int]


def load(benchmark: Benchmark, data: Path | None, *, limit: int | None = None) -> Loaded:
    """The items of a benchmark, at most the first `limit`.

    Raises: ValueError where there is no data, no usable row, or a row that is not in the published
      form.
    """
    items: dict[str, Item] = {}
    left_out: Counter[str] = Counter()
    for row in benchmark.rows(data):
        if limit is not None and len(items) == limit:
            break
        try:
            item = benchmark.read(row)
        except Unusable as reason:
            left_out[str(reason)] += 1
            continue
        if item.problem.id in items:
            raise ValueError(
                f"{row.where}: there is another row '{item.problem.id}'. Ids must be unique; is "
                "the file twice in the folder?"
            )
        items[item.problem.id] = item
    if not items:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        raise ValueError(f"benchmark {benchmark.name}: no usable row ({reasons or 'no rows'}).")
    return Loaded(items=tuple(items.values()), left_out=dict(left_out))


def number_of(row: Row) -> str:
    """The row's number in its file, as an id for data sets without one."""
    return row.where.rpartition(":")[2]


def any_of(row: Row, *names: str) -> str:
    """The first of these fields that the row has; copies of a data set differ in their names."""
    return next((name for name in names if name in row.fields), names[0])
