"""Settings from the command line: `--train.steps 2` on top of the tree of a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from cipo_jax.config import Config, yaml_text
from cipo_jax.config.schema import Names, Schema, section, types_of, variants

SCHEMA = Schema(Config)


def apply(overrides: Sequence[str], tree: dict[str, Any]) -> None:
    """Change a tree of settings as the options say, making the sections on the way.

    Raises: ValueError that names the option, and what is possible.
    """
    # A change of variant comes first, wherever it is among the options: it drops settings.
    for names, text in sorted(_pairs(overrides), key=lambda pair: pair[0][-1] != "kind"):
        _set(tree, names, text)


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[Names, str]]:
    """The names and the text of each option."""
    remaining = iter(overrides)
    for option in remaining:
        if not option.startswith("--") or len(option) == 2:
            raise ValueError(f"'{option}' is not an option; write --section.field VALUE.")
        name, is_joined, value = option[2:].partition("=")
        if not is_joined:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE.")
        yield tuple(name.replace("-", "_").split(".")), value


def _set(tree: dict[str, Any], names: Names, text: str) -> None:
    """Set one setting in a tree."""
    tp: Any = Config
    for depth in range(1, len(names)):
        cls = SCHEMA.owner(tp, tree, names[:depth])
        tp = types_of(cls)[names[depth - 1]]
        if not variants(tp):
            raise ValueError(
                f"--{'.'.join(names)}: {'.'.join(names[:depth])} is a single value "
                f"({SCHEMA.described(tp)})."
            )
        tree = _below(tree, cls, names[:depth])
    if names[-1] == "kind" and len(variants(tp)) > 1:
        _choose(tree, text)
    else:
        cls = SCHEMA.owner(tp, tree, names)
        tree[names[-1]] = value_of(text, types_of(cls)[names[-1]], names)


def _below(tree: dict[str, Any], cls: type, names: Names) -> dict[str, Any]:
    """The section `names` of a tree of `cls`, which is put there if it is missing: with the kind of
    its default, where it has one."""
    below = tree[names[-1]] = section(tree.get(names[-1]), names)
    (field,) = (f for f in dataclasses.fields(cls) if f.name == names[-1])
    if not below and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        if hasattr(default, "kind"):
            below["kind"] = default.kind
    return below


def _choose(tree: dict[str, Any], kind: str) -> None:
    """Make a section one of another variant, which has no use for the settings that are there."""
    if tree.get("kind") != kind:
        tree.clear()
        tree["kind"] = kind


def value_of(text: str, tp: Any, names: Names) -> Any:
    """The value of an option: its text where the setting is a text, else what YAML reads in it."""
    if tp is str:
        return text
    try:
        return yaml_text.read(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--{'.'.join(names)}: {text!r} is not valid YAML.") from error
