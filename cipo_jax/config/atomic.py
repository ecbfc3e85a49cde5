"""Files that are complete or not there, however a process ends while it writes them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""Suffix of a file that is being written; one that a killed process left behind is overwritten."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; the file there takes the place of `path` when the block ends.

    Where the block raises, `path` is as it was before.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            # Or a crash of the machine could leave an empty file under the new name.
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The text, in UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, record: Any, *, indent: int = 1) -> None:
    """The record as JSON. Raises: ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(record, indent=indent, allow_nan=False) + "\n")
