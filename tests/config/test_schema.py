"""Trees that become dataclasses outside of a configuration: each kind of field, and its refusal."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cipo_jax.config.schema import Schema


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    by_name: Mapping[str, Inner | None] = ()
    settings: Mapping[str, int | str] = ()
    pair: tuple[str, int] = ("", 0)
    pairs: tuple[tuple[str, int], ...] = ()
    colour: Colour = Colour.RED
    inner: Inner | None = None
    whatever: Any = None


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"by_name": {"a": {"size": 1}, "b": None}},
            Outer(by_name={"a": Inner(size=1.0), "b": None}),
        ),
        ({"settings": {"a": 1, "b": "x"}}, Outer(settings={"a": 1, "b": "x"})),
        ({"pair": ("a", 1)}, Outer(pair=("a", 1))),
        ({"pairs": (("a", 1), ("b", 2))}, Outer(pairs=(("a", 1), ("b", 2)))),
        ({"colour": Colour.RED, "inner": None}, Outer()),
        (
            {"inner": {"size": 2.0}, "whatever": [object]},
            Outer(inner=Inner(size=2), whatever=[object]),
        ),
    ],
)
def test_what_fits(tree, expected) -> None:
    assert Schema(Outer, sequence=tuple).build(tree) == expected


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"by_name": 1}, r"^by_name is 1; it must be a mapping of names to "),
        ({"by_name": {1: None}}, r"^by_name is \{1: None\}; it must be a mapping"),
        ({"by_name": {"a": {}}}, r"^by_name\.a\.size is missing\.$"),
        (
            {"by_name": {"a": {"sise": 1}}},
            r"^by_name\.a\.sise is not a setting\. Did you mean by_name\.a\.s",
        ),
        ({"settings": {"a": True}}, r"^settings\.a is True; it must be a whole number or text\.$"),
        (
            {"pair": ("a",)},
            r"^pair is \('a',\); it must be a tuple \[\.\.\.\] of text and a whole number",
        ),
        ({"pair": ["a", 1]}, r"^pair is \['a', 1\]; it must be a tuple"),
        ({"pairs": (("a", 1.0),)}, r"^pairs is .*; it must be a tuple"),
        ({"colour": "red"}, r"^colour is 'red'; it must be red"),
        ({"inner": {"size": 10**400}}, r"^inner\.size is 1000.*\.\.\.; it must be a number\.$"),
        ({"inner": {"size": 10**5000}}, r"^inner\.size is of type int; it must be a number\.$"),
        ({"x" * 1000: 1}, r"^x{200}\.\.\. is not a setting\. The top level has: by_name, "),
    ],
)
def test_what_does_not_fit_is_named(tree, message) -> None:
    with pytest.raises(ValueError, match=message):
        Schema(Outer, sequence=tuple).build(tree)
