"""Records made from the letters of their fields' annotations, which alone state shapes."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cipo_jax.mesh.sharding import letters_of

Filled = TypeVar("Filled")


def filled(record: type[Filled], make: Callable[[str, str], Any]) -> Filled:
    """A record with `make(name, letters)` in every annotated field, in the order of the fields.

    Fields that are records are filled in the same way.
    """
    fields = {}
    for name, hint in typing.get_type_hints(record).items():
        letters = letters_of(hint)
        fields[name] = filled(hint, make) if letters is None else make(name, letters)
    return record(**fields)


def shape_of(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a field with these letters, separated by spaces."""
    return tuple(sizes[letter] for letter in letters.split())
