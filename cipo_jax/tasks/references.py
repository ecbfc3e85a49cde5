"""What a row's answer field means to each judge.

number   the answer as text or number; of a worked solution that ends in `#### 42` (GSM8K), what
         follows the last `####`
math     the same, or a list of answers of which each one counts as right
stdio    test cases for a program: [[input, output], ...], [{"input", "output"}, ...] or
         {"inputs": [...], "outputs": [...]}, as values or as JSON text
asserts  Python assertions, as text or as a list of texts
"""

from __future__ import annotations

import ast
import builtins
import json
from fractions import Fraction
from typing import Any

from cipo_jax.config import FileTask, HubTask
from cipo_jax.tasks.rows import Row, abbreviated
from cipo_jax.verify.verdict import (
    AssertsReference,
    MathReference,
    NumberReference,
    Reference,
    StdioReference,
)

DatasetTask = FileTask | HubTask


class Unusable(Exception):
    """A sound row that the configured judge can't use; such rows are left out and counted."""


def read_reference(cfg: DatasetTask, row: Row) -> Reference:
    """The reference of one row.

    Raises: ValueError that names the row and the field; Unusable.
    """
    match cfg.judge:
        case "number":
            return NumberReference(answer=_number(cfg, row))
        case "math":
            return MathReference(answers=_answers(cfg, row))
        case "stdio":
            return StdioReference(cases=_cases(cfg, row))
        case "asserts":
            return _asserts(cfg, row)


def _final(answer: str) -> str:
    return answer.rpartition("####")[2].strip()


def _number(cfg: DatasetTask, row: Row) -> str:
    answer = _final(row.text(cfg.answer_field, setting="answer_field"))
    number = answer.replace(",", "").removeprefix("$").removesuffix(".").strip()
    try:
        Fraction(number)
    except (ValueError, ZeroDivisionError) as error:
        raise _malformed(cfg, row, "a number", answer, "Judge 'math' takes expressions.") from error
    return number


def _answers(cfg: DatasetTask, row: Row) -> tuple[str, ...]:
    value = row.value(cfg.answer_field, setting="answer_field")
    if not isinstance(value, list):
        return (_final(row.text(cfg.answer_field, setting="answer_field")),)
    if not value or not all(isinstance(answer, str) and answer.strip() for answer in value):
        raise _malformed(cfg, row, "text or a list of texts", value)
    return tuple(answer.strip() for answer in value)


def _cases(cfg: DatasetTask, row: Row) -> tuple[tuple[str, str], ...]:
    tests = _parsed(cfg, row)
    match tests:
        case {"fn_name": str(function)}:
            raise Unusable(f"tests that call a function (here '{function}')")
        case {"inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            pairs = list(zip(inputs, outputs, strict=True))
        case list():
            pairs = [_pair(test) for test in tests]
        case _:
            pairs = []
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise _malformed(
            cfg,
            row,
            'test cases [[input, output], ...], [{"input", "output"}, ...] or '
            '{"inputs": [...], "outputs": [...]} of texts',
            tests,
        )
    return tuple((given, expected) for given, expected in pairs)


def _pair(test: Any) -> tuple[Any, Any]:
    match test:
        case {"type": str(form)} | {"testtype": str(form)} if not form.startswith("std"):
            raise Unusable(f"tests of type '{form}'")
        case {"input": given, "output": expected} | [given, expected]:
            return given, expected
    return None, None


def _asserts(cfg: DatasetTask, row: Row) -> AssertsReference:
    value = row.value(cfg.answer_field, setting="answer_field")
    tests = "\n".join(map(str, value)) if isinstance(value, list) else value
    try:
        tree = ast.parse(tests)
    except (SyntaxError, TypeError, ValueError) as error:
        raise _malformed(cfg, row, "Python assertions", value) from error
    if cfg.function_field:
        function = row.text(cfg.function_field, setting="function_field")
    else:
        function = tested_function(tree)
    if not function.isidentifier():
        raise _malformed(
            cfg,
            row,
            "assertions that call the function by its name",
            value,
            "Or name the field with the function's name in tasks.function_field.",
        )
    prelude = ""
    if cfg.prelude_field:
        prelude = str(row.value(cfg.prelude_field, setting="prelude_field"))
    return AssertsReference(function=function, tests=tests, prelude=prelude)


def tested_function(tree: ast.Module) -> str:
    """The first function in an assertion that is none of Python's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            for inner in ast.walk(node.test):
                match inner:
                    case ast.Call(func=ast.Name(id=name)) if not hasattr(builtins, name):
                        return name
    return ""


def _parsed(cfg: DatasetTask, row: Row) -> Any:
    value = row.value(cfg.answer_field, setting="answer_field")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise _malformed(cfg, row, "test cases as JSON", value) from error


def _malformed(
    cfg: DatasetTask, row: Row, expected: str, value: Any, way_out: str = ""
) -> ValueError:
    return ValueError(
        f"{row.where}: for tasks.judge '{cfg.judge}' the field '{cfg.answer_field}' must hold "
        f"{expected}, it is {abbreviated(value)}. {way_out}".rstrip()
    )
