"""What a locked-down process does: run a program, call a function, test one, or judge answers.

Orders come from the payload file, which only this process reads. Nothing here knows an expected
answer, except the tester (`tester.py`) and the judge of answers, which run no model code.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from cipo_jax.verify import protocol, values
from cipo_jax.verify.answers import judging
from cipo_jax.verify.sandbox import tester
from cipo_jax.verify.sandbox.source import Unparsable, execute, find_function, print_exception
from cipo_jax.verify.verdict import MathReference

EXCEPTION, MEMORY, SYNTAX, NO_FUNCTION = 1, 101, 102, 103
"""Exit codes of a program. It may fake them: they only colour the reason of a wrong verdict."""

_BUFFERED = {io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom}


def run(program: str) -> NoReturn:
    """Runs one of `PROGRAMS` on the descriptors of `protocol` and ends the process.

    The interpreter's own `sys.stdin` and its fellows were opened on /dev/null by the nursery and
    never used; the program's descriptors now point there.
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
        print_exception()
    os._exit(code)


def _stdio(orders: dict[str, Any]) -> int:
    """A script: standard input in, standard output out."""
    os.close(protocol.PAYLOAD)
    os.close(protocol.CHANNEL)
    code = 0
    try:
        execute(orders["source"], "__main__")
    except SystemExit as error:
        code = _exit_code(error)
    except Unparsable:
        return SYNTAX
    return code if _ended() else code or EXCEPTION


def _ended() -> bool:
    """Ends the script as the interpreter does: its threads, what it registered for the end, the
    files that it never closed, then all its objects, some of which may still have something to
    say. Returns whether all that it printed could be written.
    """
    if threading.active_count() > 1:
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    is_flushed = _is_flushed(sys.stdout)
    with contextlib.suppress(MemoryError):  # a list of all there is, where little may be left
        for stream in [each for each in gc.get_objects() if type(each) in _BUFFERED]:
            _is_flushed(stream)
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.modules.pop("__main__", None)
    gc.collect()
    return _is_flushed(sys.__stdout__) and is_flushed


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
        function = find_function(execute(orders["source"], "solution"), orders["function"])
    except Unparsable:
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
        function = find_function(execute(orders["source"], "solution"), orders["function"])
    except Unparsable:
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


def _answers(orders: dict[str, Any]) -> int:
    """Judges final answers, one frame in and one out, until the trainer closes the stream."""
    while (frame := protocol.read_frame(protocol.CHANNEL, 2**24)) is not None:
        order = json.loads(frame)
        fields = order["reference"] | {"answers": tuple(order["reference"]["answers"])}
        reference = MathReference(**fields)
        try:
            judged = judging.judge(order["completion"], reference)
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
    "tester": tester.run,
    "answers": _answers,
}


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1
