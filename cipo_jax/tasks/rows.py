"""Rows of a local .jsonl, .json or .parquet file, or of a data set on the Hugging Face hub."""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row and where it stands, `FILE:NUMBER`, from 1 (blank lines of a .jsonl count)."""

    where: str
    fields: dict[str, Any]

    def value(self, field: str, *, setting: str = "") -> Any:
        """What a field holds; dots lead into nested ones (`reward_model.ground_truth`).

        Raises: ValueError that names the row, the field and the setting that asks for it, if one
          does.
        """
        if field in self.fields:
            return self.fields[field]
        value: Any = self.fields
        for key in field.split("."):
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                near = difflib.get_close_matches(field, self.fields, n=1, cutoff=0.5)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise ValueError(
                    f"{self.where}: no field '{field}'{_asked_by(setting)}.{hint} The row has: "
                    f"{', '.join(self.fields)}."
                )
        return value

    def text(self, field: str, *, setting: str = "") -> str:
        """A field that must hold text (or a number, taken as it is written), not empty."""
        value = self.value(field, setting=setting)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{self.where}: field '{field}'{_asked_by(setting)} must be text that is not "
                f"empty, it is {abbreviated(value)}."
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{self.where}: field '{field}'{_asked_by(setting)} is not valid Unicode ({error})."
            ) from error
        return value.strip()


def _asked_by(setting: str) -> str:
    return f" (tasks.{setting})" if setting else ""


def abbreviated(value: Any) -> str:
    """A value as an error message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def file_rows(path: Path, *, setting: str) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file.

    Raises: ValueError that names the file and the line.
    """
    if not path.is_file():
        raise ValueError(
            f"tasks.{setting}: there is no file {path} (looked for from {Path.cwd()}). A data set "
            "of the hub is named by tasks.kind 'hub' and tasks.dataset."
        )
    if not path.name.endswith(SUFFIXES):
        raise ValueError(
            f"tasks.{setting}: {path} is none of {', '.join(SUFFIXES)}; convert it to one."
        )
    return rows_of(path, name=str(path))


SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def rows_of(path: Path, *, name: str) -> Iterator[Row]:
    """The rows of a file with one of `SUFFIXES`, which `name` names in errors and in `Row.where`.

    A .json file holds one array of objects, or the same as a .jsonl file.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path, name=name)
    if path.suffix == ".json" and _begins_an_array(path):
        return _array_rows(path, name=name)
    return _jsonl_rows(path, name=name)


def hub_rows(dataset: str, *, subset: str, split: str) -> Iterator[Row]:
    """The rows of one split of a hub data set; the files are cached by the hub's client.

    They are read from the conversion to parquet that the hub keeps of every data set, so that one
    layout serves all and no loading script of a data set is ever run.
    """
    import huggingface_hub

    source = {"repo_id": dataset, "repo_type": "dataset", "revision": "refs/convert/parquet"}
    try:
        files = huggingface_hub.list_repo_files(**source)
        chosen = parquet_files(files, dataset=dataset, subset=subset, split=split)
        paths = [huggingface_hub.hf_hub_download(filename=name, **source) for name in chosen]
    # Of the first kind are answers of the hub (unknown, gated), of the second a missing network.
    except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"tasks.dataset '{dataset}' could not be read from the hub: {error} Check the id and "
            "the network, set HF_TOKEN for a gated data set, or download its files and use "
            "tasks.kind 'file'."
        ) from error
    for name, path in zip(chosen, paths, strict=True):
        yield from _parquet_rows(Path(path), name=f"{dataset}/{name}")


def hub_file_rows(dataset: str, files: Sequence[str]) -> Iterator[Row]:
    """The rows of named files of a hub data set, for those that the hub has not converted."""
    import huggingface_hub

    for name in files:
        try:
            path = huggingface_hub.hf_hub_download(dataset, name, repo_type="dataset")
        except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
            raise ValueError(
                f"{name} of the data set '{dataset}' could not be read from the hub: {error}"
            ) from error
        yield from rows_of(Path(path), name=f"{dataset}/{name}")


def parquet_files(files: Sequence[str], *, dataset: str, subset: str, split: str) -> list[str]:
    """The files of one split in a listing of `SUBSET/SPLIT/NUMBER.parquet`.

    An empty `subset` is the only one, or the one called `default`.
    """
    splits: dict[str, dict[str, list[str]]] = {}
    for name in sorted(files):
        match name.split("/"):
            case [folder, part, file] if file.endswith(".parquet"):
                splits.setdefault(folder, {}).setdefault(part, []).append(name)
    if not subset:
        subset = next(iter(splits)) if len(splits) == 1 else "default"
    if subset not in splits:
        raise ValueError(
            f"tasks.subset: '{dataset}' has no subset '{subset}'; it has: "
            f"{', '.join(splits) or 'none that the hub could convert to parquet'}."
        )
    if split not in splits[subset]:
        raise ValueError(
            f"tasks.split: subset '{subset}' of '{dataset}' has no split '{split}'; it has: "
            f"{', '.join(splits[subset])}."
        )
    return splits[subset][split]


def _begins_an_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).lstrip().startswith(b"[")


def _array_rows(path: Path, *, name: str) -> Iterator[Row]:
    try:
        array = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{name}: not valid JSON ({error}).") from error
    for number, fields in enumerate(array, start=1):
        if not isinstance(fields, dict):
            raise ValueError(f"{name}:{number}: not a JSON object, but {abbreviated(fields)}.")
        yield Row(where=f"{name}:{number}", fields=fields)


def _jsonl_rows(path: Path, *, name: str) -> Iterator[Row]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{name}:{number}"
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: not valid JSON ({error}).") from error
            if not isinstance(fields, dict):
                raise ValueError(
                    f"{where}: a line must hold one JSON object, this is {abbreviated(fields)}."
                )
            yield Row(where=where, fields=fields)


def _parquet_rows(path: Path, *, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name}: not a parquet file ({error}).") from error
    number = 0
    for batch in file.iter_batches(batch_size=1024):
        for fields in batch.to_pylist():
            number += 1
            yield Row(where=f"{name}:{number}", fields=fields)
