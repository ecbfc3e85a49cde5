"""Configurations as YAML files: read with changes from the command line on top, and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from cipo_jax.config import Config, atomic, overrides, yaml_text


def load(path: str | Path, options: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with command-line options on top.

    Args:
      options: `--section.field VALUE` or `--section.field=VALUE`, with dashes or underscores;
        values are written as in YAML. `--section.kind NAME` changes to another variant and drops
        the settings that the file gives for its own.
    Raises: ValueError that names the file or the setting, the value, and what is possible.
    """
    path = Path(path)
    tree = yaml_text.read_file(path)
    overrides.apply(options, tree)
    try:
        return overrides.SCHEMA.build(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dump(cfg: Config, path: str | Path) -> None:
    """Write every setting as YAML that `load` reads back to an equal configuration."""
    text = yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)
    atomic.write_text(Path(path), text)
