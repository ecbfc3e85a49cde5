"""Every dimension letter of the package is in the legend of `records.py`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cipo_jax import records
from tests import ROOT

PACKAGE = ROOT / "cipo_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LEGEND = set(re.findall(r"^    ([A-Za-z])  \S", records.__doc__, re.MULTILINE))

# Of an array's name: letters with a capital among them, and 1 for an axis of length one. Words such
# as sympy's `is_Rational` have more small letters in a row than an array has small axes.
SUFFIX = re.compile(r"[a-z]\w*_((?=\w*[A-Z])(?!\w*[a-z]{3})[A-Za-z0-9]+)")
EINSUM = re.compile(r"[A-Za-z.]+(,[A-Za-z.]+)+->[A-Za-z.]*")
# An ellipsis, a number, or an axis that is named by a word.
NO_LETTER = re.compile(r"\.\.\.|\d+|\*?[a-z_]{2,}")


def annotations(tree: ast.AST) -> Iterator[str]:
    """The axes of `Float[Array, "B T"]`, as in every annotation of two items with a string last."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
            continue
        is_jaxtyping = isinstance(node.value, ast.Name) and node.value.id in JAXTYPING
        *_, last = node.slice.elts
        if is_jaxtyping and isinstance(last, ast.Constant) and isinstance(last.value, str):
            yield last.value


JAXTYPING = {
    "Bool", "Float", "Float32", "Float64", "Int", "Int32", "Shaped", "UInt32",
}  # fmt: skip


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.FunctionDef(name=name):
                yield name


def unknown(source: str) -> set[str]:
    """Where a letter that is not in the legend is used: the annotations, names and strings."""
    tree = ast.parse(source)
    found = set()
    for axes in annotations(tree):
        letters = {
            axis.removesuffix("+1") for axis in axes.split() if not NO_LETTER.fullmatch(axis)
        }
        if not letters <= LEGEND:
            found.add(axes)
    for name in names(tree):
        suffix = SUFFIX.fullmatch(name)
        if suffix and not set(suffix[1]) <= LEGEND | {"1"}:
            found.add(name)
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        is_einsum = isinstance(text, str) and EINSUM.fullmatch(text)
        if is_einsum and set(text) - set(".,->") - LEGEND:
            found.add(text)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_letter_is_in_the_legend(path: Path) -> None:
    assert not unknown(path.read_text())


def test_the_legend_is_read() -> None:
    assert {"Q", "G", "B", "T", "J"} <= LEGEND
    letters = re.findall(r"^    ([A-Za-z])  \S", records.__doc__, re.MULTILINE)
    assert len(letters) == len(LEGEND), "a letter has two meanings"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('x: Float[Array, "B ħ"]', {"B ħ"}),
        ('x: Float[Array, " q"]', {" q"}),
        ("def f(x_BTq): ...", {"x_BTq"}),
        ("x.logits_Bc = 0", {"logits_Bc"}),
        ("f(x_Qg=0)", {"x_Qg"}),
        ('einsum("BT,TD->Bj", x, y)', {"BT,TD->Bj"}),
        ('x: Float[Array, "B T+1 2 ..."] = y_B1 + is_Rational + MAX_Q', set()),
        ('x: Float[Array, "*shape"] | Float[Array, " buckets"] | Float[Array, ""]', set()),
    ],
)
def test_an_unknown_letter_would_be_found(source: str, expected: set[str]) -> None:
    assert unknown(source) == expected
