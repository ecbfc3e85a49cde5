"""Values that cross from model code: what they survive, and what can't pass."""

import collections
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipo_jax.verify import values

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers()
    | st.text(st.characters(exclude_categories=())) | st.binary()
)  # fmt: skip
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple)
    | st.frozensets(inner, max_size=3), max_leaves=6,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=20,
)


def canonical(value: object) -> object:
    """Types all the way down and the text of the leaves, which tells NaN and -0.0."""
    kind = type(value).__name__
    if isinstance(value, set | frozenset):
        return kind, sorted(repr(canonical(item)) for item in value)
    if isinstance(value, list | tuple):
        return kind, [canonical(item) for item in value]
    if isinstance(value, dict):
        return kind, [(canonical(key), canonical(item)) for key, item in value.items()]
    return kind, repr(value)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_round_trip_keeps_value_and_type(value: object) -> None:
    assert canonical(values.decode(values.encode(value))) == canonical(value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_foreign_text_is_refused_or_gives_builtin_types(text: str | bytes) -> None:
    try:
        value = values.decode(text)
    except ValueError:
        return
    assert type(value).__module__ == "builtins"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from("ifcublsdtz0")
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_foreign_json_is_refused_or_gives_builtin_types(tree: object) -> None:
    try:
        value = values.decode(json.dumps(tree))
    except ValueError:
        return
    assert type(value).__module__ == "builtins"


class AlwaysEqual:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [
        AlwaysEqual(),
        [AlwaysEqual()],
        type("Int", (int,), {})(5),
        type("Str", (str,), {})("x"),
        type("List", (list,), {})([1]),
        type("Counter", (collections.Counter,), {})("a"),
        object(),
        int,
        len,
        Ellipsis,
        NotImplemented,
        math,
    ],
)
def test_other_types_have_no_encoding(value: object) -> None:
    with pytest.raises(ValueError, match="only builtin types"):
        values.encode(value)


def test_limits() -> None:
    deep: list = []
    for _ in range(values.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        values.encode(deep)
    with pytest.raises(ValueError, match="deeper"):
        values.decode('["l",[' * 70 + "null" + "]]" * 70)
    with pytest.raises(ValueError, match="characters"):
        values.encode("x" * (values.MAX_CHARACTERS + 1))
    with pytest.raises(ValueError, match="not an encoded value"):
        values.decode("[" * 100_000)
    with pytest.raises(ValueError, match="items"):
        values.encode(0 for _ in range(values.MAX_ITEMS + 1))


def test_colliding_keys_are_refused_before_a_set_is_built() -> None:
    """Multiples of 2^61 - 1 have hash 0. The control: as many that do not collide."""
    one_hash = [["i", hex((2**61 - 1) * i)] for i in range(20_000)]
    distinct = [["i", hex((2**61 - 3) * i)] for i in range(20_000)]
    assert len(values.decode(json.dumps(["s", distinct]))) == 20_000
    for colliding in (["s", one_hash], ["d", [[key, None] for key in one_hash]]):
        with pytest.raises(ValueError, match="collide"):
            values.decode(json.dumps(colliding))


def test_lazy_sequences_and_dict_classes_are_flattened() -> None:
    given_ = (range(3), collections.deque([1]), collections.Counter("aa"), map(str, [1]))
    assert values.decode(values.encode(given_)) == ([0, 1, 2], [1], {"a": 2}, ["1"])


def test_same_is_equality_with_nan_equal_to_itself() -> None:
    nan = float("nan")
    assert values.same([nan, {"a": (nan,)}], [nan, {"a": (nan,)}])
    assert values.same(1, 1.0)
    assert not values.same([1, 2], (1, 2))
    assert not values.same({"a": 1}, {"a": 2})
    assert not values.same(nan, 0.0)
