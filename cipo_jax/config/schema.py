"""Dataclasses as schemas: a tree of plain values becomes a dataclass of dataclasses.

A tree is what YAML and JSON hold: mappings with text as keys, sequences and single values. Every
key must be a field and every value exactly of its field's type (`true` is not a number, nor is
`2.0` a whole one). Where a field may be one of several dataclasses, `kind` in the tree says which.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Names = tuple[str, ...]
"""A setting by the names that lead to it, from the root."""

_SHOWN_CHARACTERS = 200
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Schema(Generic[T]):
    """The rules by which a tree becomes a `root`."""

    root: type[T]
    """A dataclass whose fields are numbers, texts, truth values, `Literal`s, enums, tuples,
    mappings, `Any`, other dataclasses, and unions of them."""
    sequence: type[list[Any]] | type[tuple[Any, ...]] = list
    """The type of the values that become tuples: list in YAML, tuple where types are kept."""

    def build(self, tree: Any) -> T:
        """The dataclass that a tree describes.

        Raises: ValueError that names the setting, its value, and what is possible there.
        """
        built: T = self._built(self.root, tree, ())
        return built

    def owner(self, tp: Any, tree: dict[str, Any], names: Names) -> type:
        """The dataclass that `tree` describes, which has the last of `names` as a field.

        Raises: ValueError if it has no such field, with the nearest name that there is.
        """
        cls = self._variant(tp, tree, names[:-1])
        if names[-1] not in types_of(cls):
            raise self._unknown(tp, cls, names)
        return cls

    def described(self, tp: Any) -> str:
        """The values that a type admits, in words."""
        origin, options = typing.get_origin(tp), typing.get_args(tp)
        if _is_union(tp):
            return " or ".join(map(self.described, options))
        if origin is Literal:
            return " | ".join(map(str, options))
        if origin is tuple:
            items = " and ".join(self.described(o) for o in options if o is not Ellipsis)
            return f"a {self.sequence.__name__} [...] of {items}"
        if origin is Mapping:
            return f"a mapping of names to {self.described(options[1])}"
        if isinstance(tp, type) and issubclass(tp, enum.Enum):
            return " | ".join(str(member.value) for member in tp)
        return "settings of its own" if dataclasses.is_dataclass(tp) else _IN_WORDS[tp]

    def _built(self, tp: Any, value: Any, names: Names) -> Any:
        if value is None and types.NoneType in typing.get_args(tp):
            return None
        if variants(tp):
            return self._section(tp, value, names)
        if typing.get_origin(tp) is Mapping and _has_text_keys(value):
            item = typing.get_args(tp)[1]
            return {name: self._built(item, part, (*names, name)) for name, part in value.items()}
        if not self._fits(tp, value):
            raise ValueError(
                f"{_dotted(names)} is {_shown(value)}; it must be {self.described(tp)}."
                + _suggestion(value, typing.get_args(tp))
            )
        if typing.get_origin(tp) is tuple:
            return tuple(value)
        return float(value) if tp is float else value

    def _section(self, tp: Any, value: Any, names: Names) -> Any:
        tree = section(value, names)
        cls = self._variant(tp, tree, names)
        for name in tree:
            self.owner(tp, tree, (*names, str(name)))
        for field in dataclasses.fields(cls):
            if field.name not in tree and _is_required(field):
                raise ValueError(f"{_dotted((*names, field.name))} is missing.")
        return cls(
            **{
                name: self._built(types_of(cls)[name], part, (*names, name))
                for name, part in tree.items()
            }
        )

    def _fits(self, tp: Any, value: Any) -> bool:
        origin, options = typing.get_origin(tp), typing.get_args(tp)
        if _is_union(tp):
            return any(self._fits(option, value) for option in options)
        if origin is Literal:
            return any(value == c and type(value) is type(c) for c in options)
        if origin is tuple:
            if type(value) is not self.sequence:
                return False
            if options[-1] is Ellipsis:
                return all(self._fits(options[0], item) for item in value)
            return len(value) == len(options) and all(map(self._fits, options, value))
        if origin is Mapping:
            return _has_text_keys(value) and all(self._fits(options[1], x) for x in value.values())
        if tp is float:
            return type(value) is float or (type(value) is int and _is_finite(value))
        return tp is Any or type(value) is tp

    def _variant(self, tp: Any, tree: dict[str, Any], names: Names) -> type:
        """The dataclass that `tree` describes."""
        choices = variants(tp)
        if len(choices) == 1:
            return next(iter(choices.values()))
        kind = tree.get("kind")
        if not isinstance(kind, str) or kind not in choices:
            stated = "is missing" if kind is None else f"is {_shown(kind)}"
            raise ValueError(
                f"{_dotted((*names, 'kind'))} {stated}; choose one of {', '.join(choices)}."
                + _suggestion(kind, choices)
            )
        return choices[kind]

    def _unknown(self, tp: Any, cls: type, names: Names) -> ValueError:
        """The error for a name that is not a field of `cls`, with the nearest one that is."""
        *above, name = names
        message = f"{_cut(_dotted(names))} is not a setting"
        for kind, variant in variants(tp).items():
            if name in types_of(variant):
                own = getattr(cls, "kind", "")
                return ValueError(f"{message} of kind '{own}', but of kind '{kind}'.")
        here = {field: _dotted((*above, field)) for field in types_of(cls)}
        elsewhere = {path[-1]: _dotted(path) for path in _paths(self.root, ())}
        for known in (here, elsewhere):
            if near := _nearest(name, known, cutoff=0.7):
                return ValueError(f"{message}. Did you mean {known[near]}?")
        place = _dotted(above) or "The top level"
        return ValueError(f"{message}. {place} has: {', '.join(here)}.")


_IN_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
    Any: "anything",
}


@cache
def types_of(cls: type) -> dict[str, Any]:
    """The type of every field of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def variants(tp: Any) -> dict[str, type]:
    """The dataclasses that a setting may be, by kind; empty for a single value."""
    options = (tp,) if dataclasses.is_dataclass(tp) else typing.get_args(tp)
    classes = (o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o))
    return {getattr(cls, "kind", ""): cls for cls in classes}


def section(value: Any, names: Names) -> dict[str, Any]:
    """The settings that `value` holds; none where a name has nothing below it.

    Raises: ValueError if it is a single value.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{_dotted(names)} is {_shown(value)}; it must hold settings of its own.")
    return value


def _paths(tp: Any, names: Names) -> Iterator[Names]:
    """Every setting of every variant."""
    for cls in variants(tp).values():
        for name, inner in types_of(cls).items():
            yield (*names, name)
            yield from _paths(inner, (*names, name))


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_union(tp: Any) -> bool:
    return typing.get_origin(tp) in (typing.Union, types.UnionType)


def _has_text_keys(value: Any) -> bool:
    return isinstance(value, dict) and all(type(key) is str for key in value)


def _is_finite(value: int) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _dotted(names: Sequence[str]) -> str:
    return ".".join(names)


def _shown(value: Any) -> str:
    """A value in a message, of any length that it may have come with."""
    try:
        return _cut(repr(value))
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        return f"of type {type(value).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _suggestion(value: Any, choices: Iterable[Any]) -> str:
    near = _nearest(value, map(str, choices), cutoff=0.6)
    return f" Did you mean '{near}'?" if near else ""


def _nearest(value: Any, choices: Iterable[str], *, cutoff: float) -> str | None:
    """The choice that a mistaken name may have meant, if any; names too long to be one are not
    compared, since they may come from outside and take for ever."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        return None
    near = difflib.get_close_matches(value, list(choices), n=1, cutoff=cutoff)
    return near[0] if near else None
