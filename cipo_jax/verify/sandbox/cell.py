"""A cell: a small process that starts one program at a time, locked down, and sees to its end.

It is forked from the nursery, so it holds no secret, no payload and no expected answer; and it runs
no model code itself. It speaks with the trainer over one socket. When that closes it kills its
program and ends.
"""

from __future__ import annotations

import contextlib
import os
import posix
import select
import signal
import socket
import time
from typing import Any, NoReturn

from cipo_jax.verify import protocol
from cipo_jax.verify.sandbox import (
    kernel,
    landlock,
    lockdown,
    namespaces,
    preload,
    programs,
    seccomp,
)
from cipo_jax.verify.sandbox.layers import Isolation

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
             "/etc/ld.so.cache", "/etc/localtime")  # fmt: skip


def serve(
    connection: socket.socket, isolation: Isolation, *, uid: int, readable: list[str],
    scratch_bytes: int, hooks: preload.Hooks,
) -> NoReturn:  # fmt: skip
    """Builds the walls that the cell has once for all, says so, and runs programs until the trainer
    is gone.
    """
    try:
        if isolation.namespaces:
            namespaces.enter(user=isolation.namespaces == "user")
            _become_first_process()
            namespaces.new_root(
                readable=[*readable, *LIBRARIES], devices=DEVICES, scratch_bytes=scratch_bytes
            )
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        rules = -1
        if isolation.landlock:
            rules = landlock.ruleset(
                readable=[*readable, *LIBRARIES],
                devices=DEVICES,
                scratch=namespaces.SCRATCH if isolation.namespaces else "",
            )
        if isolation.seccomp:
            seccomp.program(kernel.MACHINE, pid=0, strict=isolation.seccomp == "strict")
        os.register_at_fork = posix.register_at_fork
        if isolation.level == "none":  # the only one in which a program may fork
            for each in hooks:
                os.register_at_fork(**each)
        # Python ignores it; in a program the kernel shall end what writes more than it may.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        children = _Children()
        protocol.send(connection, {"ready": True})
    except Exception as error:
        protocol.send(connection, {"ready": False, "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    while (request := protocol.receive(connection)) is not None:
        order, files = request
        if "program" not in order:
            continue  # a stop for a program that had just ended by itself
        limits = protocol.ProgramLimits(**order["limits"])
        read_end, write_end = os.pipe()
        pid = children.fork()
        if pid == 0:
            _run(order["program"], isolation, limits, tuple(files), rules, write_end, uid)
        for descriptor in (*files, write_end):
            os.close(descriptor)
        exit_ = _watch(connection, children, pid, limits.wall_s)
        exit_["is_ready"] = os.read(read_end, 1) == b"R"
        # Under the filter a program can't send itself this signal, nor lower its limits.
        is_at_limit = 0 < 0.9 * limits.wall_s <= exit_["cpu_s"]
        exit_["is_killed"] &= isolation.seccomp != "" and not is_at_limit
        os.close(read_end)
        if isolation.namespaces:
            namespaces.clean_scratch(scratch_bytes)
        protocol.send(connection, exit_)
    os._exit(0)


def _run(
    program: str, isolation: Isolation, limits: protocol.ProgramLimits, files: tuple[int, ...],
    rules: int, report: int, uid: int,
) -> NoReturn:  # fmt: skip
    """In the child: lock down, say so, run. The word that the walls are up is given before any of
    the model's code is read, so that a program can't pass its own failure off as the verifier's.
    """
    try:
        report = lockdown.lock_down(
            isolation, limits, files=files, rules=rules, report=report, uid=uid, parent=_cell_pid
        )
        os.write(report, b"R")
        os.close(report)
    except BaseException:
        os._exit(1)
    programs.run(program)


class _Children:
    """Forks, and turns the death of a child into something that poll sees."""

    def __init__(self) -> None:
        global _cell_pid
        _cell_pid = os.getpid()
        self.wake, write_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write_end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
        return pid


_cell_pid = 0


def _watch(
    connection: socket.socket, children: _Children, pid: int, wall_s: float
) -> dict[str, Any]:
    """Waits for the end of the program, or brings it about."""
    deadline = time.monotonic() + wall_s if wall_s else float("inf")
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(children.wake, select.POLLIN)
    is_timeout = is_killed_here = False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            is_timeout = is_killed_here = True
            _, status, usage = _kill(pid)
            break
        events = dict(poll.poll(None if left == float("inf") else left * 1000))
        if connection.fileno() in events:
            stop = protocol.receive(connection)
            is_killed_here = True
            _, status, usage = _kill(pid)
            if stop is None:
                sweep(pid)
                os._exit(0)
            break
        if children.wake in events:
            os.read(children.wake, 4096)
    sweep(pid)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "is_timeout": is_timeout,
        "is_killed": os.waitstatus_to_exitcode(status) == -signal.SIGKILL and not is_killed_here,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def _kill(pid: int) -> tuple[int, int, Any]:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.wait4(pid, 0)


def sweep(group: int = 0) -> None:
    """Ends what a program of this process group may have left. Under seccomp it can't have started
    anything; without it, its orphans come to this process, which is their reaper.
    """
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if group:
                    os.killpg(group, signal.SIGKILL)
            for orphan in _children_of_this_process():
                os.kill(orphan, signal.SIGKILL)
            time.sleep(0.001)


def _children_of_this_process() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []


def _become_first_process() -> None:
    """Forks into the new process namespace; the outer half waits, so that whoever kills it, or the
    nursery, kills everything inside.
    """
    pid = os.fork()
    if pid:
        os.closerange(3, 65536)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.waitpid(pid, 0)
        os._exit(0)
