"""The nursery: a process started by exec, clean of the trainer's memory, that forks cells.

It imports once what programs may import, so that a program starts in milliseconds and, under the
strictest layer, needs no file. One nursery serves programs and plain numbers (`code`), another has
the symbolic algebra loaded (`math`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from typing import NoReturn

from cipo_jax.verify import protocol
from cipo_jax.verify.sandbox import cell, kernel, preload
from cipo_jax.verify.sandbox.layers import Isolation

BASE_UID = 2**31
"""First of the user ids for programs; far from people and from the usual sub-id ranges."""


def main(descriptor: int, kind: str, trainer: int, hooks: preload.Hooks) -> NoReturn:
    """Serves requests for cells until the trainer is gone.

    Args:
      descriptor: of the socket on which requests come.
      kind: `code` or `math`.
      trainer: its process id, which is our parent's.
      hooks: what modules wanted to do at a fork; only processes that may fork get them.
    """
    connection = socket.socket(fileno=descriptor)
    try:
        _be_killed_first()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        preload.load(kind)
        protocol.send(connection, {"ready": True})
    except BaseException as error:
        protocol.send(connection, {"ready": False, "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    readable = _readable(kind)
    children: set[int] = set()
    has_library = False
    # The socket closes when the trainer dies, unless a process that it forked holds a copy: hence
    # the second look, at who our parent is.
    while os.getppid() == trainer:
        if select.select([connection], [], [], 0.5)[0]:
            request = protocol.receive(connection)
            if request is None:
                break
            order, (cell_end,) = request
            isolation = Isolation(**order["isolation"])
            if not isolation.namespaces and not has_library:
                preload.load_library()
                has_library = True
            pid = os.fork()
            if pid == 0:
                connection.close()
                cell.serve(
                    socket.socket(fileno=cell_end),
                    isolation,
                    uid=BASE_UID + (os.getppid() * 512 + order["index"] % 512) % 2**30,
                    readable=readable,
                    scratch_bytes=order["scratch_bytes"],
                    hooks=hooks,
                )
            os.close(cell_end)
            children.add(pid)
        children -= _reap()
    _end(children)
    os._exit(0)


def _be_killed_first() -> None:
    """Where memory runs out the system ends these processes, whose work can be done again, and not
    the trainer, which is larger. Before they hide from /proc, where this is said.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _readable(kind: str) -> list[str]:
    """Folders that late imports need: the standard library; for mathematics, the packages too."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    if kind == "math":
        paths |= {path for path in sys.path if os.path.isdir(path)}
    real = {os.path.realpath(path) for path in paths}
    return sorted(path for path in real if not any(path.startswith(other + "/") for other in real))


def _reap() -> set[int]:
    reaped = set()
    try:
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            reaped.add(pid)
    except ChildProcessError:
        pass
    return reaped


def _end(children: set[int]) -> None:
    """Cells end by themselves when the trainer closes their sockets; the rest is killed."""
    deadline = time.monotonic() + 1.0
    while children and time.monotonic() < deadline:
        children -= _reap()
        time.sleep(0.005)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    cell.sweep()
