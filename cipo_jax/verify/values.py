"""Values that may cross from a process that ran model code: exact builtin types, as text.

The encoding is JSON with one tag a value, written by the side that ran the model's code and read by
a side that did not. Only exact builtin types have an encoding, so an object with its own `__eq__`,
a subclass of int or a pickled callable cannot cross: what arrives compares as Python's own values
do. Integers travel in hexadecimal, because reading decimal text takes quadratic time.
"""

from __future__ import annotations

import collections
import json
from typing import Any

MAX_DEPTH = 64
MAX_CHARACTERS = 64_000_000
"""Room for the largest inputs of programming tasks; what a program may return is far less, by the
limit on its output."""
MAX_ITEMS = 1_000_000
"""Items of one iterator that is drained into a list."""
MAX_COLLISIONS = 16
"""Keys of one set or dict that may have the same hash, equal ones included."""

_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}
_FROM_TAG = {tag: kind for kind, tag in _SEQUENCES.items()}
_FLATTENED_TO_LIST = {
    collections.deque, range, map, filter, zip, enumerate, reversed,
    type(_ for _ in ()), type({}.keys()), type({}.values()), type({}.items()),
}  # fmt: skip
_FLATTENED_TO_DICT = {collections.Counter, collections.OrderedDict, collections.defaultdict}


class ForeignTypeError(ValueError):
    """A value is of a type that has no encoding."""


def encode(value: Any) -> str:
    """The text of a value.

    Lazy sequences (range, map, generators, deque) become lists and the dict classes of
    `collections` become dicts, as a checker that prints them would see them.

    Raises: ForeignTypeError for any other type, subclasses of builtins included; ValueError for
      nesting deeper than `MAX_DEPTH` and for text longer than `MAX_CHARACTERS`.
    """
    text = json.dumps(_pack(value, 0), separators=(",", ":"))
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the value takes {len(text)} characters; at most {MAX_CHARACTERS}.")
    return text


def decode(text: str | bytes) -> Any:
    """The value of a text, with nothing but exact builtin types in it.

    Raises: ValueError for anything that `encode` does not write.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the value takes {len(text)} characters; at most {MAX_CHARACTERS}.")
    try:
        return _unpack(json.loads(text), 0)
    except (RecursionError, TypeError, OverflowError) as error:
        raise ValueError(f"not an encoded value: {error}.") from None


def same(left: Any, right: Any) -> bool:
    """Equality of decoded values, as `==` has it, with NaN equal to NaN."""
    if isinstance(left, float) and isinstance(right, float) and left != left and right != right:
        return True
    if isinstance(left, list | tuple) and type(left) is type(right):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return bool(left == right)


def has_nan(value: Any) -> bool:
    """Whether a decoded value is or holds a float that is no number."""
    if isinstance(value, dict):
        return any(map(has_nan, value)) or any(map(has_nan, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(has_nan, value))
    return isinstance(value, float | complex) and value != value


def _pack(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"the value is nested deeper than {MAX_DEPTH}.")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    if kind is str:
        # JSON's own escapes carry lone surrogates unharmed.
        return ["u", value]
    if kind is bytes or kind is bytearray:
        return ["b", bytes(value).hex()]
    if kind in _FLATTENED_TO_LIST:
        value, kind = _drain(value), list
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], [_pack(item, depth + 1) for item in value]]
    if kind is dict or kind in _FLATTENED_TO_DICT:
        return ["d", [[_pack(k, depth + 1), _pack(v, depth + 1)] for k, v in dict.items(value)]]
    raise ForeignTypeError(
        f"a value of type {kind.__name__[:80]} can't cross: only builtin types do."
    )


def _drain(iterable: Any) -> list[Any]:
    items: list[Any] = []
    for item in iterable:
        if len(items) == MAX_ITEMS:
            raise ValueError(f"an iterator gave more than {MAX_ITEMS} items.")
        items.append(item)
    return items


def _unpack(node: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"the value is nested deeper than {MAX_DEPTH}.")
    if node is None or node is True or node is False:
        return node
    match node:
        case ["i", str(text)]:
            return int(text, 16)
        case ["f", str(text)]:
            return float.fromhex(text)
        case ["c", str(real), str(imag)]:
            return complex(float.fromhex(real), float.fromhex(imag))
        case ["u", str(text)]:
            return text
        case ["b", str(text)]:
            return bytes.fromhex(text)
        case ["l" | "t" as tag, list(items)]:
            return _FROM_TAG[tag](_unpack(item, depth + 1) for item in items)
        case ["s" | "z" as tag, list(items)]:
            return _FROM_TAG[tag](_hashable([_unpack(item, depth + 1) for item in items]))
        case ["d", list(items)]:
            if any(type(pair) is not list or len(pair) != 2 for pair in items):
                raise ValueError("not an encoded value: a dict item is not a pair.")
            keys = _hashable([_unpack(k, depth + 1) for k, _ in items])
            return dict(zip(keys, [_unpack(v, depth + 1) for _, v in items], strict=True))
    raise ValueError(f"not an encoded value: {str(node)[:80]}.")


def _hashable(keys: list[Any]) -> list[Any]:
    """The keys, unless they were chosen to collide: a set of thirty thousand integers of one hash
    takes this process, which is the trainer's, ten seconds to build.
    """
    if max(collections.Counter(map(hash, keys)).values(), default=0) > MAX_COLLISIONS:
        raise ValueError("the keys of a set or dict collide.")
    return keys
