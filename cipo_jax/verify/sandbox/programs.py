"""What a locked-down process does: run a program, call a function, test one, or judge answers.

Orders come from the payload file, which only this process reads. Nothing here knows an expected
answer, except the tester and the judge of answers, which run no model code.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import gc
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from cipo_jax.verify import answer, protocol, values
from cipo_jax.verify.verdict import MathReference

EXCEPTION, MEMORY, SYNTAX, NO_FUNCTION = 1, 101, 102, 103
"""Exit codes of a program. It may fake them: they only colour the reason of a wrong verdict."""

_BUFFERED = {io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom}
_NAN = re.compile(r"\bnan\b|isnan", re.IGNORECASE)
_TEST_FILES = ("tests.py", "prelude.py")

PASSED, FAILED, RAISED, SOLVER_GONE, BAD_TESTS = 110, 111, 112, 113, 114
"""Exit codes of a tester, which runs no model code and so can be believed."""


def run(program: str) -> NoReturn:
    """Runs one of `PROGRAMS` on the descriptors of `protocol` and ends the process.

    The interpreter's own `sys.stdin` and its fellows were opened on /dev/null by the nursery and
    never used; they now stand on the program's descriptors.
    """
    code = EXCEPTION
    try:
        sys.argv = ["solution.py"]
        orders = json.loads(protocol.content(protocol.PAYLOAD, 2**30))
        code = PROGRAMS[program](orders)
    except MemoryError:
        code = MEMORY
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:
        _print_exception()
    os._exit(code)


def _stdio(orders: dict[str, Any]) -> int:
    """A script: standard input in, standard output out."""
    os.close(protocol.PAYLOAD)
    os.close(protocol.CHANNEL)
    code = 0
    try:
        _execute(orders["source"], "__main__")
    except SystemExit as error:
        code = _exit_code(error)
    except _Unparsable:
        return SYNTAX
    # As the interpreter ends a script: its threads, what it registered, the files that it never
    # closed, then all its objects, some of which may still have something to say.
    if threading.active_count() > 1:
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    is_flushed = _is_flushed(sys.stdout)
    for stream in [each for each in gc.get_objects() if type(each) in _BUFFERED]:
        _is_flushed(stream)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    del sys.modules["__main__"]
    gc.collect()
    return code if is_flushed and _is_flushed(sys.__stdout__) else code or EXCEPTION


def _is_flushed(stream: Any) -> bool:
    """Writes out what a stream holds, and whether that went well. One that the program closed or
    removed has nothing more."""
    if stream is None or getattr(stream, "closed", False):
        return True
    try:
        stream.flush()
    except BaseException:
        return False
    return True


def _calls(orders: dict[str, Any]) -> int:
    """A function: one line for each list of arguments, until one raises."""
    try:
        function = _function(_execute(orders["source"], "solution"), orders["function"])
    except _Unparsable:
        return SYNTAX
    if function is None:
        return NO_FUNCTION
    for arguments in orders["cases"]:
        value = function(*values.decode(arguments))
        line = values.encode(value).encode() + b"\n"
        while line:
            line = line[os.write(protocol.CHANNEL, line) :]
    return 0


def _solver(orders: dict[str, Any]) -> int:
    """A function that a tester in another process calls."""
    try:
        function = _function(_execute(orders["source"], "solution"), orders["function"])
    except _Unparsable:
        return SYNTAX
    if function is None:
        return NO_FUNCTION
    while (frame := protocol.read_frame(protocol.CHANNEL, values.MAX_CHARACTERS)) is not None:
        positional, keywords = values.decode(frame)
        try:
            reply = "v" + values.encode(function(*positional, **keywords))
        except Exception as error:
            reply = "e" + _describe(error)
        protocol.write_frame(protocol.CHANNEL, reply.encode())
    return 0


def _describe(error: Exception) -> str:
    """An exception as the name of the nearest builtin class and its text."""
    named = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    return json.dumps([named[0] if named else "Exception", str(error)[:2000]])


def _tester(orders: dict[str, Any]) -> int:
    """The data set's tests, on a stand-in whose calls go to the solver."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a long complaint is cut, and no crash
    candidate = _Candidate()
    tests = types.ModuleType("__main__")
    sys.modules["__main__"] = tests
    namespace = tests.__dict__
    try:
        # Tests may use what the prelude defines beside the function (HumanEval 32, 38, 50).
        exec(_compiled(orders["prelude"], "prelude.py"), namespace)
    except Exception:
        _print_exception()
    namespace[orders["function"]] = namespace["candidate"] = candidate
    try:
        compiled = _compiled(orders["tests"], "tests.py")
    except Exception:
        _print_exception()
        return BAD_TESTS
    try:
        exec(compiled, namespace)
        if isinstance(check := namespace.get("check"), types.FunctionType):
            check(candidate)
    except BaseException as error:
        _print_exception()
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


def _answers(orders: dict[str, Any]) -> int:
    """Judges final answers, one frame in and one out, until the trainer closes the stream."""
    while (frame := protocol.read_frame(protocol.CHANNEL, 2**24)) is not None:
        order = json.loads(frame)
        fields = order["reference"] | {"answers": tuple(order["reference"]["answers"])}
        reference = MathReference(**fields)
        try:
            judged = answer.judge(order["completion"], reference)
            reply = {
                "status": judged.status.value,
                "reason": judged.reason,
                "detail": dict(judged.detail),
            }
        except MemoryError:
            return MEMORY
        except Exception as error:
            reply = {"status": "unknown", "reason": "infra", "detail": {"error": repr(error)[:500]}}
        protocol.write_frame(protocol.CHANNEL, json.dumps(reply, default=str).encode())
    return 0


PROGRAMS: dict[str, Callable[[dict[str, Any]], int]] = {
    "stdio": _stdio,
    "calls": _calls,
    "solver": _solver,
    "tester": _tester,
    "answers": _answers,
}


class _Unparsable(Exception):
    """The program is not Python."""


def _compiled(source: str, name: str) -> types.CodeType:
    """Compiled without this file's own `from __future__ import annotations`, which it would
    inherit: an annotation with an unknown name must fail as it does in a script."""
    return compile(source, name, "exec", dont_inherit=True)


def _execute(source: str, name: str) -> dict[str, Any]:
    """Runs the source as the module of that name and returns its namespace. Where a function is
    asked for it is not `__main__`, so that a script's own reading of its input does not run.
    """
    module = types.ModuleType(name)
    module.__file__ = sys.argv[0]
    sys.modules["__main__"] = sys.modules[name] = module
    try:
        code = _compiled(source, "solution.py")
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        _print_exception()
        raise _Unparsable from None
    exec(code, module.__dict__)
    return module.__dict__


def _function(namespace: dict[str, Any], name: str) -> Callable[..., Any] | None:
    """The method of a class `Solution`, or else the function of that name.

    The method first: given imports may define a function of the same name (`operator.add`).
    """
    found = None
    if isinstance(namespace.get("Solution"), type):
        found = getattr(namespace["Solution"](), name, None)
    if found is None:
        found = namespace.get(name)
    return found if callable(found) else None


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _print_exception() -> None:
    with contextlib.suppress(BaseException):
        traceback.print_exc(limit=-8)
