"""Judging programs: what the model wrote is run, and what comes of it is compared outside.

No expected value ever enters the process that runs model code. Standard output and returned values
come back as plain data and are compared here; tests made of assertions run in a second process that
holds no model code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from cipo_jax.verify import protocol, values
from cipo_jax.verify.code.fenced import extract
from cipo_jax.verify.protocol import Exit, ProgramLimits
from cipo_jax.verify.sandbox import programs, tester
from cipo_jax.verify.sandbox.host import GRACE_S, Cell, SandboxError
from cipo_jax.verify.sandbox.runner import Run, run
from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    Reason,
    Status,
    StdioReference,
    Verdict,
    right,
    unknown,
    wrong,
)

MAX_SOURCE = 65_536
"""Characters of a program; a longer one is wrong, unread."""

_FUTURE = re.compile(r"^from __future__ import (?:\([\w,\s]*\)|[\w, ]+).*$", re.MULTILINE)
_DECIMAL = re.compile(r"[+-]?(\d{1,40}\.\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_SPARE_OUTPUT = 65_536
"""Bytes that a program may print beyond twice what is expected, where that is over the limit."""


def judge_stdio(
    completion: str, reference: StdioReference, cell: Callable[[str], Cell], limits: ProgramLimits
) -> Verdict:
    """Right if the program prints what is expected for every case; each case is a fresh process."""
    source = extract(completion)
    if refused := refusal(source):
        return refused
    orders = {"source": with_prelude(reference.prelude, source)}
    deadline = time.monotonic() + limits.wall_s
    for index, (given, expected) in enumerate(reference.cases):
        left = _left(limits, deadline, reference.case_s)
        if left is None:
            return wrong("timeout", case=index)
        left = _with_room(left, len(expected))
        done = run(
            cell("solver"), "stdio", orders, left,
            stdin=given.encode("utf-8", "surrogateescape"),
        )  # fmt: skip
        if reason := _failure(done.exit, left):
            return wrong(reason, case=index, stderr=_tail(done))
        if not same_output(done.stdout.decode("utf-8", "surrogateescape"), expected):
            return wrong("wrong_answer", case=index)
    return right()


def judge_calls(
    completion: str, reference: CallsReference, cell: Callable[[str], Cell], limits: ProgramLimits
) -> Verdict:
    """Right if the function returns the expected value for every list of arguments."""
    source = extract(completion, function=reference.function)
    if refused := refusal(source):
        return refused
    source = with_prelude(reference.prelude, source)
    if not reference.case_s:
        return _judge_calls(source, reference, range(len(reference.cases)), cell, limits)
    case_limits = dataclasses.replace(limits, wall_s=reference.case_s)
    for index in range(len(reference.cases)):
        verdict = _judge_calls(source, reference, range(index, index + 1), cell, case_limits)
        if verdict.status is not Status.RIGHT:
            return verdict
    return right()


def _judge_calls(
    source: str,
    reference: CallsReference,
    indices: range,
    cell: Callable[[str], Cell],
    limits: ProgramLimits,
) -> Verdict:
    """The verdict on some of the cases, all of them called in one process."""
    cases = [reference.cases[index] for index in indices]
    orders = {
        "source": source,
        "function": reference.function,
        "cases": [values.encode(tuple(arguments)) for arguments, _ in cases],
    }
    # Before the run: an expected value that has no form to come back in is no fault of a program.
    results = [values.encode(expected) for _, expected in cases]
    limits = _with_room(limits, sum(map(len, results)))
    done = run(cell("solver"), "calls", orders, limits)
    if reason := _failure(done.exit, limits):
        return wrong(reason, stderr=_tail(done))
    lines = done.results.split(b"\n")
    if len(lines) != len(cases) + 1 or lines[-1]:
        return wrong("no_result", results=len(lines) - 1)
    for index, line, expected in zip(indices, lines, results, strict=False):
        try:
            returned = values.decode(line)
        except ValueError as error:
            return wrong("no_result", case=index, error=str(error))
        if reference.tuple_is_list and isinstance(returned, tuple):
            returned = list(returned)
        if not values.same(returned, values.decode(expected)):
            return wrong("wrong_answer", case=index)
    return right()


def judge_asserts(
    completion: str, reference: AssertsReference, cell: Callable[[str], Cell], limits: ProgramLimits
) -> Verdict:
    """Right if the data set's tests pass on a stand-in whose calls go to the model's function in
    another process.
    """
    source = extract(completion, function=reference.function)
    if refused := refusal(source):
        return refused
    orders = {"function": reference.function}
    solver_orders = orders | {"source": with_prelude(reference.prelude, source)}
    tester_orders = orders | {"prelude": reference.prelude, "tests": reference.tests}
    solver_cell, tester_cell = cell("solver"), cell("tester")
    solver_end, tester_end = socket.socketpair()
    with solver_end, tester_end, contextlib.ExitStack() as closing:
        report = protocol.anonymous_file()
        closing.callback(os.close, report)
        _start(solver_cell, "solver", solver_orders, solver_end, None, limits)
        _start(tester_cell, "tester", tester_orders, tester_end, report, limits)
        # Each end has its one holder now, so that either sees the other's death.
        solver_end.close()
        tester_end.close()
        tested = tester_cell.wait(limits.wall_s + GRACE_S)
        solver_cell.stop()
        solved = solver_cell.wait(GRACE_S)
        complaint = protocol.content(report, limits.output_bytes)
    if not (tested.is_ready and solved.is_ready):
        raise SandboxError("the lock-down failed, so the program was not run.")
    if tested.is_killed or solved.is_killed:
        raise SandboxError("something outside the sandbox killed the program.")
    said = complaint.decode(errors="replace")[-500:]
    if tested.is_timeout:
        return wrong("timeout")
    match tested.status:
        case tester.PASSED:
            return right()
        case tester.FAILED:
            return wrong("wrong_answer", tests=said)
        case tester.RAISED:
            return wrong("runtime_error", tests=said)
        case tester.SOLVER_GONE:
            return wrong(_failure(solved, limits) or "no_result")
    if tested.status == programs.MEMORY or tested.status < 0:
        # Sound tests do so only on a value that no sound function returns.
        return wrong(_failure(tested, limits) or "no_result", tests=said)
    return unknown("infra", error="the tests themselves fail", status=tested.status, tests=said)


def same_output(printed: str, expected: str) -> bool:
    """Whether the lines agree, but for white space at their ends and empty lines at the end.

    Where the expected token is written with a decimal point, another spelling of the same decimal
    number will do (0.5 for 0.50); never a near one.
    """
    left, right = (
        [line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected)
    )
    return len(left) == len(right) and all(map(_same_line, left, right))


def _same_line(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    if "." not in expected:
        return False
    left, right = printed.split(), expected.split()
    return len(left) == len(right) and all(map(_same_token, left, right))


def _same_token(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    if len(printed) > 100 or not (_DECIMAL.fullmatch(expected) and _NUMBER.fullmatch(printed)):
        return False
    try:
        return Decimal(printed) == Decimal(expected)
    except InvalidOperation:  # an exponent beyond all bounds
        return False


def refusal(source: str) -> Verdict | None:
    """The verdict on a program that is not run at all; None for one that is."""
    if not source.strip():
        return wrong("no_answer")
    if len(source) > MAX_SOURCE:
        return wrong("bad_format", error=f"the program has {len(source)} characters")
    if "\0" in source or (not source.isascii() and re.search("[\ud800-\udfff]", source)):
        return wrong("bad_format", error="the program holds NUL or a lone surrogate")
    return None


def with_prelude(prelude: str, source: str) -> str:
    """The model's code after the given one, but for imports that must come first."""
    if not prelude:
        return source
    first = "".join(f"{line}\n" for line in _FUTURE.findall(source))
    return f"{first}{prelude}\n{_FUTURE.sub('', source)}"


def _left(limits: ProgramLimits, deadline: float, case_s: float) -> ProgramLimits | None:
    """The limits of the next case: its own, or what is left of the judgement's."""
    left = case_s or deadline - time.monotonic()
    if left <= 0:
        return None
    return dataclasses.replace(limits, wall_s=left)


def _with_room(limits: ProgramLimits, num_expected: int) -> ProgramLimits:
    """A right program must not fail for want of room for what it is asked for."""
    room = 2 * num_expected + _SPARE_OUTPUT
    return dataclasses.replace(limits, output_bytes=max(limits.output_bytes, room))


def _failure(end: Exit, limits: ProgramLimits) -> Reason | None:
    """Why a program that did not end with 0 failed; None for one that did."""
    if end.is_timeout:
        return "timeout"
    match end.status:
        case 0:
            return None
        case programs.MEMORY:
            return "memory"
        case programs.SYNTAX:
            return "bad_format"
        case programs.NO_FUNCTION:
            return "no_result"
    if end.status == -signal.SIGXFSZ:
        return "output_limit"
    if end.status in (-signal.SIGKILL, -signal.SIGXCPU) and end.cpu_s >= limits.wall_s * 0.9:
        return "timeout"
    return "runtime_error"


def _tail(done: Run) -> str:
    return done.stderr[-500:].decode(errors="replace")


def _start(
    cell: Cell, program: str, orders: dict[str, Any], channel: socket.socket,
    report: int | None, limits: ProgramLimits,
) -> None:  # fmt: skip
    with contextlib.ExitStack() as closing:
        payload = protocol.anonymous_file(json.dumps(orders).encode())
        closing.callback(os.close, payload)
        null = os.open(os.devnull, os.O_RDWR)
        closing.callback(os.close, null)
        stderr = null if report is None else report
        cell.start(program, (null, null, stderr, payload, channel.fileno()), limits)
