"""One run of one program in a cell: its files made before, read after, and gone."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from cipo_jax.verify import protocol
from cipo_jax.verify.protocol import Exit, ProgramLimits
from cipo_jax.verify.sandbox.host import Cell, SandboxError


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a program left: how it ended, what it wrote (cut at the limit), and its results."""

    exit: Exit
    stdout: bytes
    stderr: bytes
    results: bytes


def run(
    cell: Cell, program: str, orders: dict[str, Any], limits: ProgramLimits, *, stdin: bytes = b""
) -> Run:
    """Runs one of `programs.PROGRAMS` to its end.

    Standard input and all outputs are anonymous files: nothing blocks on a program that does not
    read or never stops writing, and the kernel's own limit on the size of a file bounds them.

    Raises: SandboxError where the sandbox failed; the program then was not run or not finished.
    """
    contents = (stdin, b"", b"", json.dumps(orders).encode(), b"")
    with contextlib.ExitStack() as closing:
        files = []
        for content in contents:
            files.append(protocol.anonymous_file(content))
            closing.callback(os.close, files[-1])
        exit_ = cell.run(program, tuple(files), limits)
        if not exit_.is_ready:
            raise SandboxError("the lock-down failed, so the program was not run.")
        if exit_.is_killed:
            raise SandboxError("something outside the sandbox killed the program.")
        stdout, stderr, results = (
            protocol.content(files[index], limits.output_bytes)
            for index in (protocol.STDOUT, protocol.STDERR, protocol.CHANNEL)
        )
    return Run(exit=exit_, stdout=stdout, stderr=stderr, results=results)
