"""The meaning of each setting: the text below its field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cipo_jax.config import Config
from cipo_jax.config.schema import Names, Schema, types_of, variants


def print_fields(cfg: Config, console: Console | None = None) -> None:
    """Print every field as the option that changes it, with its value, meaning and type."""
    schema = Schema(Config)
    table = Table("setting", "value", "meaning", box=None, padding=(0, 2, 0, 0))
    for names, tp, value, meaning in _settings(cfg, ()):
        option = f"--{'.'.join(names)}".replace("_", "-")
        told = f"{meaning} ({schema.described(tp)})".strip()
        table.add_row(option, Text(str(value)), Text(told))
    (console or Console()).print(table)


def _settings(part: Any, names: Names) -> Iterator[tuple[Names, Any, Any, str]]:
    """Name, type, value and meaning of every setting of a configuration."""
    cls: type = type(part)
    meanings = meanings_of(cls)
    for name, tp in types_of(cls).items():
        value = getattr(part, name)
        choices = variants(tp)
        if len(choices) > 1:
            kinds = Literal[tuple(choices)]
            yield (*names, name, "kind"), kinds, value.kind, _one_line(inspect.getdoc(value) or "")
        if choices:
            yield from _settings(value, (*names, name))
        elif name != "kind":
            shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else value
            yield (*names, name), tp, shown, meanings.get(name, "")


@cache
def meanings_of(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, which Python itself doesn't keep, on one line."""
    meanings: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            meanings |= meanings_of(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, text in itertools.pairwise(statements):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                meanings[name] = _one_line(meaning)
    return meanings


def _one_line(text: str) -> str:
    return " ".join(text.split())
