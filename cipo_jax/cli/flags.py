"""Fields of a configuration's dataclass as flags: `--memory-mb 512` for `Verify.memory_mb`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

from cipo_jax.config.meanings import meanings_of
from cipo_jax.config.overrides import value_of
from cipo_jax.config.schema import Schema, types_of

T = TypeVar("T")


def add_flags(
    parser: argparse.ArgumentParser,
    title: str,
    cls: type,
    *names: str,
    default: str | None = None,
) -> None:
    """A group with a flag for each of the named fields of a dataclass, or for all of them; a truth
    value has `--name` and `--no-name`.

    Args:
      default: what is taken without the flag, where that is not the field's default.
    """
    group = parser.add_argument_group(title)
    schema: Schema[Any] = Schema(cls)
    for field in dataclasses.fields(cls):
        if names and field.name not in names:
            continue
        tp, own = types_of(cls)[field.name], default or _written(field.default)
        told = f"default: {own}" if tp is bool else f"{schema.described(tp)}, default: {own}"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            action=argparse.BooleanOptionalAction if tp is bool else "store",
            default=argparse.SUPPRESS,
            help=f"{meanings_of(cls)[field.name]} ({told})".replace("%", "%%"),
        )


def read_flags(parsed: argparse.Namespace, cls: type[T]) -> T:
    """The dataclass with the flags that were given. Raises: ValueError as for a configuration."""
    return Schema(cls).build(_given(parsed, cls))


def given_flags(parsed: argparse.Namespace, cls: type[T]) -> dict[str, Any]:
    """The values of the flags that were given, by field. Raises: ValueError."""
    built = read_flags(parsed, cls)
    return {name: getattr(built, name) for name in _given(parsed, cls)}


def _given(parsed: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The tree of settings that the flags of a dataclass describe."""
    tree = {}
    for name, tp in types_of(cls).items():
        value = getattr(parsed, name, None)
        if value is not None:
            tree[name] = value_of(value, tp, (name,)) if isinstance(value, str) else value
    return tree


def _written(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return {None: "null", "": "none"}.get(default, str(default))
