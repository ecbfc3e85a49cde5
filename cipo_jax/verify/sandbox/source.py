"""What a model wrote, as a module: compiled, run, and asked for its function."""

from __future__ import annotations

import contextlib
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any


class Unparsable(Exception):
    """The program is not Python."""


def compiled(source: str, name: str) -> types.CodeType:
    """Compiled without this file's own `from __future__ import annotations`, which it would
    inherit: an annotation with an unknown name must fail as it does in a script."""
    return compile(source, name, "exec", dont_inherit=True)


def execute(source: str, name: str) -> dict[str, Any]:
    """Runs the source as the module of that name and returns its namespace. Where a function is
    asked for it is not `__main__`, so that a script's own reading of its input does not run.
    """
    module = types.ModuleType(name)
    module.__file__ = sys.argv[0]
    sys.modules["__main__"] = sys.modules[name] = module
    try:
        code = compiled(source, "solution.py")
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        print_exception()
        raise Unparsable from None
    exec(code, module.__dict__)
    return module.__dict__


def find_function(namespace: dict[str, Any], name: str) -> Callable[..., Any] | None:
    """The method of a class `Solution`, or else the function of that name.

    The method first: given imports may define a function of the same name (`operator.add`).
    """
    found = None
    if isinstance(namespace.get("Solution"), type):
        found = getattr(namespace["Solution"](), name, None)
    if found is None:
        found = namespace.get(name)
    return found if callable(found) else None


def print_exception() -> None:
    with contextlib.suppress(BaseException):
        traceback.print_exc(limit=-8)
