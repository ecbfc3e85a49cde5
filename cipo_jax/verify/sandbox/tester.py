"""The tester: a data set's assertions, run on a stand-in for the model's function.

It holds no model code. The stand-in passes each call on to the solver, another process, and gives
back what comes, so what ends this process with `PASSED` is the tests alone.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import signal
import sys
import traceback
import types
from typing import Any

from cipo_jax.verify import protocol, values
from cipo_jax.verify.sandbox.source import compiled, print_exception

PASSED, FAILED, RAISED, SOLVER_GONE, BAD_TESTS = 110, 111, 112, 113, 114
"""Exit codes of a tester, which runs no model code and so can be believed."""

_NAN = re.compile(r"\bnan\b|isnan", re.IGNORECASE)
_TEST_FILES = ("tests.py", "prelude.py")


def run(orders: dict[str, Any]) -> int:
    """Runs `tests` after `prelude`, and `check` where they define one; one of the exit codes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a long complaint is cut, and no crash
    candidate = _Candidate()
    tests = types.ModuleType("__main__")
    sys.modules["__main__"] = tests
    namespace = tests.__dict__
    try:
        # Tests may use what the prelude defines beside the function (HumanEval 32, 38, 50).
        exec(compiled(orders["prelude"], "prelude.py"), namespace)
    except Exception:
        print_exception()
    namespace[orders["function"]] = namespace["candidate"] = candidate
    try:
        code = compiled(orders["tests"], "tests.py")
    except Exception:
        print_exception()
        return BAD_TESTS
    try:
        exec(code, namespace)
        if isinstance(check := namespace.get("check"), types.FunctionType):
            check(candidate)
    except BaseException as error:
        print_exception()
        if candidate.is_gone:
            return SOLVER_GONE
        if candidate.raised is not None:
            return RAISED if error is candidate.raised else FAILED
        return BAD_TESTS if _is_fault_of_tests(error, orders["tests"]) else FAILED
    if candidate.num_calls == 0:
        return BAD_TESTS
    if candidate.is_gone:
        return SOLVER_GONE
    # A comparison that was written for numbers may come out either way for what is none.
    is_expected = _NAN.search(orders["prelude"] + orders["tests"])
    return FAILED if candidate.has_returned_nan and not is_expected else PASSED


def _is_fault_of_tests(error: BaseException, tests: str) -> bool:
    """Whether the tests failed by themselves: they use a name that nothing in them gives a value,
    or import a module that is not there. A name to which they give one in a loop over what was
    returned, or a module named by what was returned, is the function's fault.
    """
    if isinstance(error, _BadTests):
        return True
    if isinstance(error, SystemExit):
        return not error.code
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].filename not in _TEST_FILES:
        return False
    nodes = list(ast.walk(ast.parse(tests)))
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler) and n.name}
        return error.name not in stored
    imported = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    return isinstance(error, ImportError) and error.name in imported


class _BadTests(BaseException):
    """The tests ask for what can't be done."""


class _SolverGone(BaseException):
    """The solver ended or broke the protocol."""


class _Candidate:
    """The model's function, seen from the tests."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.raised: Exception | None = None
        self.has_returned_nan = False
        self.is_gone = False

    def __call__(self, *positional: Any, **keywords: Any) -> Any:
        self.num_calls += 1
        try:
            request = values.encode((positional, keywords))
        except values.ForeignTypeError as error:
            raise _BadTests(f"the tests pass what can't cross: {error}") from None
        try:
            protocol.write_frame(protocol.CHANNEL, request.encode())
            frame = protocol.read_frame(protocol.CHANNEL, values.MAX_CHARACTERS + 1)
            if frame is None:
                raise ValueError("the solver has ended.")
            kind, body = frame[:1], frame[1:]
            if kind == b"v":
                value = values.decode(body)
                self.has_returned_nan |= values.has_nan(value)
                return value
            name, text = json.loads(body)
            raised = getattr(builtins, name)
            if kind != b"e" or not issubclass(raised, Exception):
                raise ValueError(f"not a reply: {frame[:80]!r}.")
        except Exception:
            self.is_gone = True
            raise _SolverGone from None
        if issubclass(raised, StopIteration | StopAsyncIteration):
            raised = RuntimeError  # it would end a loop of the tests, `all(map(...))` among them
        try:
            spoken = raised(text)
        except TypeError:  # UnicodeDecodeError and its kin ask for more than a text
            spoken = Exception(text)
        self.raised = spoken
        raise spoken
