"""The trainer's side of the sandbox: starts nurseries, asks them for cells, runs programs in cells.

The trainer is never forked: a nursery is started by exec. Descriptors are closed on exec, so no
process that the trainer starts keeps a cell alive by accident.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from cipo_jax.verify import protocol
from cipo_jax.verify.protocol import Exit, ProgramLimits
from cipo_jax.verify.sandbox import preload
from cipo_jax.verify.sandbox.layers import Isolation

START_S = 120.0
"""A nursery that has not said a word by then is taken for dead (cold imports on a slow disk)."""
GRACE_S = 10.0
"""A cell that has not answered this long after its program's wall-clock limit is taken for dead."""

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])


class SandboxError(RuntimeError):
    """The sandbox itself failed: a nursery or a cell would not start, or died."""


class Nursery:
    """A clean process that forks cells; started on first use and again when it has died."""

    def __init__(self, kind: Literal["code", "math"]) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._num_cells = 0

    def cell(self, isolation: Isolation, *, scratch_bytes: int) -> Cell:
        """A new cell.

        Raises: SandboxError where the nursery does not start, or a layer can't be put in place.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with self._lock:
                order = {
                    "isolation": dataclasses.asdict(isolation),
                    "index": self._num_cells,
                    "scratch_bytes": scratch_bytes,
                }
                self._num_cells += 1
                try:
                    protocol.send(self._ready_connection(), order, (theirs.fileno(),))
                except OSError as error:
                    self._stop()
                    raise SandboxError(f"the {self.kind} nursery is gone: {error}.") from error
        return Cell(ours)

    def close(self) -> None:
        """Ends the nursery and all its cells, and waits for that."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int:
        """Id of the process that runs; 0 before the first cell."""
        return self._process.pid if self._process else 0

    def _ready_connection(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        return self._connection

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        is_code = self.kind == "code"
        paths = [_PACKAGE_ROOT] if is_code else [path for path in sys.path if path]
        flags = ["-s", "-P", *(["-S"] if is_code else [])]
        command = [sys.executable, *flags, "-c", preload.BOOT]
        command += [str(theirs.fileno()), self.kind, str(os.getpid()), *paths]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(START_S)
        try:
            answer = protocol.receive(ours)
        except OSError as error:
            answer = ({"error": str(error)}, [])
        message = answer[0] if answer else {"error": "it ended before it was ready"}
        self._connection = ours
        if not message.get("ready"):
            self._stop()
            raise SandboxError(f"the {self.kind} nursery did not start: {message.get('error')}.")

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class Cell:
    """One cell: runs one program at a time. Used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = 0
        connection.settimeout(START_S)
        try:
            data, ancillary, _, _ = connection.recvmsg(
                protocol.MAX_MESSAGE, socket.CMSG_SPACE(struct.calcsize("3i"))
            )
        except OSError as error:
            data, ancillary = str(error).encode(), []
        if not data.startswith(b'{"ready": true'):
            self.close()
            text = data.decode(errors="replace") or "it ended before it was ready"
            raise SandboxError(f"a cell did not start: {text}")
        for _, kind, credentials in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                self.pid = struct.unpack("3i", credentials)[0]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)

    def start(self, program: str, files: tuple[int, ...], limits: ProgramLimits) -> None:
        """Starts a program on the five descriptors of `protocol`; `wait` tells its end."""
        order: dict[str, Any] = {"program": program, "limits": dataclasses.asdict(limits)}
        self._connection.settimeout(GRACE_S)
        try:
            protocol.send(self._connection, order, files)
        except OSError as error:
            raise SandboxError(f"the cell is gone: {error}.") from error

    def wait(self, timeout_s: float) -> Exit:
        """The end of the program that was started.

        Raises: SandboxError where the cell itself dies, or is silent for `timeout_s`.
        """
        self._connection.settimeout(timeout_s)
        try:
            reply = protocol.receive(self._connection)
        except OSError as error:
            raise SandboxError(f"the cell does not answer: {error}.") from error
        if reply is None:
            raise SandboxError("the cell died.")
        return Exit(**reply[0])

    def run(self, program: str, files: tuple[int, ...], limits: ProgramLimits) -> Exit:
        """`start` and `wait`."""
        self.start(program, files, limits)
        return self.wait(limits.wall_s + GRACE_S)

    def stop(self) -> None:
        """Kills the program; its end still has to be waited for."""
        try:
            protocol.send(self._connection, {"stop": True})
        except OSError as error:
            raise SandboxError(f"the cell is gone: {error}.") from error

    def close(self) -> None:
        """Lets the cell end, with whatever runs in it."""
        self._connection.close()

    def kill(self) -> None:
        """Ends a cell that may not be listening any more."""
        self._connection.close()
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """Everything that a nursery is told, written from scratch: nothing of the user's is in it."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        # Symbols are looked up once here instead of in every program.
        "LD_BIND_NOW": "1",
        # Without gmpy2, whose big-integer calls can't be interrupted, unless the user asks for it;
        # the verdicts are the same either way.
        "SYMPY_GROUND_TYPES": os.environ.get("SYMPY_GROUND_TYPES", "python"),
    }
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment
