"""Configurations as YAML files and on the command line.

A file, changed by overrides such as `--train.steps 2`, becomes the dataclasses of `config/`.
Every key must be a field and every value of its type; a mistake is answered with the full name of
the setting and with what is possible there.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cipo_jax.config import Config


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with command-line overrides on top.

    Args:
      overrides: `--section.field VALUE` or `--section.field=VALUE`, with dashes or underscores;
        values are written as in YAML. `--section.kind NAME` changes to another variant and drops
        the settings that the file gives for its own.
    Raises: ValueError that names the file or the setting, the value, and what is possible.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no configuration file {path} (looked for from {Path.cwd()}).")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings such as `name: demo`, it holds {tree!r}.")
    # A change of variant comes first, wherever it stands among the overrides.
    for names, text in sorted(_pairs(overrides), key=lambda pair: pair[0][-1] != "kind"):
        _override(tree, names, text)
    try:
        return _built(Config, tree, ())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dump(cfg: Config, path: str | Path) -> None:
    """Write every setting as YAML that `load` reads back to an equal configuration."""
    text = yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def print_fields(cfg: Config, console: Console | None = None) -> None:
    """Print every field as the option that changes it, with its value, meaning and type."""
    table = Table("setting", "value", "meaning", box=None, padding=(0, 2, 0, 0))
    for names, tp, value, doc in _settings(cfg, ()):
        option = f"--{'.'.join(names)}".replace("_", "-")
        meaning = f"{' '.join(doc.split())} ({_described(tp)})".strip()
        table.add_row(option, Text(str(value)), Text(meaning))
    (console or Console()).print(table)


# --- YAML ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-6 is a number (YAML 1.1 asks for 1.0e-6) and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' stands here twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


# --- the tree of settings -----------------------------------------------------------------------

Names = tuple[str, ...]


@cache
def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _variants(tp: Any) -> dict[str, type]:
    """The dataclasses that a setting may be, by kind; empty for a single value."""
    if dataclasses.is_dataclass(tp):
        options: tuple[Any, ...] = (tp,)
    else:
        options = tuple(o for o in typing.get_args(tp) if dataclasses.is_dataclass(o))
    return {getattr(option, "kind", ""): option for option in options}


def _variant(tp: Any, tree: dict[str, Any], names: Names) -> type:
    """The dataclass that `tree` describes."""
    variants = _variants(tp)
    if len(variants) == 1:
        return next(iter(variants.values()))
    kind = tree.get("kind")
    if not isinstance(kind, str) or kind not in variants:
        stated = "is missing" if kind is None else f"is {kind!r}"
        raise ValueError(
            f"{'.'.join((*names, 'kind'))} {stated}; choose one of {', '.join(variants)}."
            + _suggestion(str(kind), variants)
        )
    return variants[kind]


def _built(tp: Any, value: Any, names: Names) -> Any:
    """The dataclass or single value that part of a YAML tree describes."""
    if not _variants(tp):
        if not _fits(tp, value):
            choices = [str(choice) for choice in typing.get_args(tp)]
            raise ValueError(
                f"{'.'.join(names)} is {value!r}; it must be {_described(tp)}."
                + _suggestion(str(value), choices)
            )
        if typing.get_origin(tp) is tuple:
            return tuple(value)
        return float(value) if tp is float else value
    tree = {} if value is None else value  # `section:` with nothing below it.
    if not isinstance(tree, dict):
        raise ValueError(f"{'.'.join(names)} is {value!r}; it must hold settings of its own.")
    cls = _variant(tp, tree, names)
    for name in tree:
        if name not in _types(cls):
            raise _unknown(tp, cls, (*names, str(name)))
    for field in dataclasses.fields(cls):
        is_required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if is_required and field.name not in tree:
            raise ValueError(f"{'.'.join((*names, field.name))} is missing.")
    return cls(
        **{name: _built(_types(cls)[name], part, (*names, name)) for name, part in tree.items()}
    )


def _fits(tp: Any, value: Any) -> bool:
    origin = typing.get_origin(tp)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in typing.get_args(tp))
    if origin is Literal:
        return any(value == c and type(value) is type(c) for c in typing.get_args(tp))
    if origin is tuple:
        return isinstance(value, list) and all(_fits(typing.get_args(tp)[0], x) for x in value)
    if tp is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is tp


def _described(tp: Any) -> str:
    origin = typing.get_origin(tp)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(option) for option in typing.get_args(tp))
    if origin is Literal:
        return " | ".join(str(choice) for choice in typing.get_args(tp))
    if origin is tuple:
        return f"a list [...] of {_described(typing.get_args(tp)[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[tp]


# --- overrides ----------------------------------------------------------------------------------


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[Names, str]]:
    remaining = iter(overrides)
    for option in remaining:
        if not option.startswith("--") or len(option) == 2:
            raise ValueError(f"'{option}' is no override; write --section.field VALUE.")
        name, is_joined, value = option[2:].partition("=")
        if not is_joined:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE.")
        yield tuple(name.replace("-", "_").split(".")), value


def _override(tree: dict[str, Any], names: Names, text: str) -> None:
    """Set one setting in a YAML tree, making the sections on the way."""
    tp: Any = Config
    default: Any = None
    for depth, name in enumerate(names):
        if not _variants(tp):
            raise ValueError(
                f"--{'.'.join(names)}: {'.'.join(names[:depth])} is a single value "
                f"({_described(tp)})."
            )
        if name == "kind" and depth == len(names) - 1 and len(_variants(tp)) > 1:
            if tree.get("kind") != text:
                tree.clear()
                tree["kind"] = text
            return
        if not tree and default is not None and len(_variants(tp)) > 1:
            tree["kind"] = default.kind
        cls = _variant(tp, tree, names[:depth])
        if name not in _types(cls):
            raise _unknown(tp, cls, names[: depth + 1])
        tp, default = _types(cls)[name], _default(cls, name)
        if depth == len(names) - 1:
            tree[name] = text if tp is str else _parsed(text, names)
        else:
            if not isinstance(tree.get(name), dict):
                tree[name] = {}
            tree = tree[name]


def _parsed(text: str, names: Names) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--{'.'.join(names)}: {text!r} is no YAML value.") from error


def _default(cls: type, name: str) -> Any:
    factory = {f.name: f.default_factory for f in dataclasses.fields(cls)}[name]
    return None if factory is dataclasses.MISSING else factory()


# --- help ---------------------------------------------------------------------------------------


def _unknown(tp: Any, cls: Any, names: Names) -> ValueError:
    """The error for a name that is no field of `cls`, with the nearest that there is."""
    *section, name = names
    message = f"{'.'.join(names)} is no setting"
    for kind, variant in _variants(tp).items():
        if name in _types(variant):
            return ValueError(f"{message} of kind '{cls.kind}', but of kind '{kind}'.")
    here = {field: ".".join((*section, field)) for field in _types(cls)}
    elsewhere = {path[-1]: ".".join(path) for path in _paths(Config, ())}
    for known in (here, elsewhere):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
            return ValueError(f"{message}. Did you mean {known[near[0]]}?")
    place = ".".join(section) or "The top level"
    return ValueError(f"{message}. {place} has: {', '.join(here)}.")


def _suggestion(name: str, choices: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, choices, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _paths(tp: Any, names: Names) -> Iterator[Names]:
    """Every setting of every variant."""
    for cls in _variants(tp).values():
        for name, inner in _types(cls).items():
            yield (*names, name)
            yield from _paths(inner, (*names, name))


def _settings(part: Any, names: Names) -> Iterator[tuple[Names, Any, Any, str]]:
    """Name, type, value and docstring of every setting of a configuration."""
    cls: Any = type(part)
    docs = _docstrings(cls)
    for name, tp in _types(cls).items():
        value = getattr(part, name)
        variants = _variants(tp)
        if len(variants) > 1:
            kinds = Literal[tuple(variants)]
            yield (*names, name, "kind"), kinds, value.kind, inspect.getdoc(type(value)) or ""
        if variants:
            yield from _settings(value, (*names, name))
        elif name != "kind":
            shown = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else value
            yield (*names, name), tp, shown, docs.get(name, "")


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, which Python itself doesn't keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= _docstrings(base)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = doc
    return docs
