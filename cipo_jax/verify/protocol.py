"""What passes between the trainer's process, its cells and the programs that they run.

Control messages are JSON datagrams on a Unix socket, with file descriptors beside them. Payloads
(code, inputs, outputs) never pass through a cell's own memory: they travel in anonymous files whose
descriptors the cell hands on, so that no program can find another's in the memory it inherits.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 65536
NUM_FILES = 5
STDOUT, STDERR, PAYLOAD, CHANNEL = range(1, NUM_FILES)
"""Descriptors of a program, after its standard input: two standard outputs, the file from which it
reads its orders, and the file or socket to which its results go."""


@dataclass(frozen=True, kw_only=True)
class ProgramLimits:
    """Hard limits of one program. Zero means none, which only long-lived trusted workers get."""

    wall_s: float
    memory_bytes: int
    output_bytes: int
    scratch_bytes: int = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a program ended.

    is_ready: the lock-down held and the program was started; False is the verifier's own failure.
    status: exit code, or minus the signal that killed it.
    is_timeout: the wall-clock limit was reached and the cell killed it.
    is_killed: something outside the sandbox killed it (the system, for want of memory).
    """

    is_ready: bool
    status: int
    is_timeout: bool
    is_killed: bool
    cpu_s: float


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """One control message, with descriptors. Raises OSError where the other side is gone."""
    socket.send_fds(connection, [json.dumps(message).encode()], files)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next control message and its descriptors; None once the other side is gone."""
    data, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE, NUM_FILES)
    return (json.loads(data), files) if data else None


def anonymous_file(content: bytes = b"") -> int:
    """A descriptor, at offset 0, of a file that has no name and vanishes with its descriptors."""
    descriptor = os.memfd_create("verify", os.MFD_CLOEXEC)
    written = 0
    try:
        while written < len(content):
            written += os.pwrite(descriptor, content[written : written + 2**20], written)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def content(descriptor: int, limit: int) -> bytes:
    """The first `limit` bytes of an anonymous file."""
    parts, offset = [], 0
    while offset < limit:
        part = os.pread(descriptor, min(2**20, limit - offset), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def write_frame(descriptor: int, data: bytes) -> None:
    """A length and then the data, on a stream."""
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frame(descriptor: int, limit: int) -> bytes | None:
    """The next frame; None where the stream ends first.

    Raises: ValueError where the frame says that it is longer than `limit`.
    """
    header = _read_exactly(descriptor, 4)
    if header is None:
        return None
    length = int.from_bytes(header, "big")
    if length > limit:
        raise ValueError(f"a frame of {length} bytes; at most {limit}.")
    return _read_exactly(descriptor, length)


def exchange(
    connection: socket.socket, data: bytes, *, limit: int, timeout_s: float
) -> bytes | None:
    """Sends one frame and returns the next; None where the stream ends first.

    Raises: TimeoutError after `timeout_s`; OSError where the other side is gone.
    """
    deadline = time.monotonic() + timeout_s
    connection.settimeout(timeout_s)
    connection.sendall(len(data).to_bytes(4, "big") + data)
    received = bytearray()
    wanted = 4
    while len(received) < wanted:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        part = connection.recv(min(2**20, wanted - len(received)))
        if not part:
            return None
        received += part
        if wanted == 4 and len(received) == 4:
            wanted = 4 + int.from_bytes(received, "big")
            if wanted > limit:
                return None
    return bytes(received[4:])


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        part = os.read(descriptor, min(2**20, length - len(data)))
        if not part:
            return None
        data += part
    return bytes(data)
