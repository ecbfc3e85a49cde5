"""One worker's share of the sandbox: its cells, and one judgement at a time in them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket

from cipo_jax.verify import protocol
from cipo_jax.verify.answers.extract import said
from cipo_jax.verify.code import judging
from cipo_jax.verify.protocol import Limits
from cipo_jax.verify.sandbox import programs
from cipo_jax.verify.sandbox.host import GRACE_S, Cell, Nursery, SandboxError
from cipo_jax.verify.sandbox.layers import Isolation
from cipo_jax.verify.verdict import (
    AssertsReference,
    CallsReference,
    Reference,
    Status,
    StdioReference,
    Verdict,
    right,
    unknown,
    wrong,
)

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Tries at one judgement before the verifier's own failure makes it unknown."""
MATH_MEMORY_BYTES = 2 * 2**30
ANSWERS_PER_WORKER = 500
"""A worker for answers is replaced after so many: symbolic algebra keeps caches."""


class Slot:
    """The cells of one worker, by role, made when they are first needed."""

    def __init__(self, nurseries: dict[str, Nursery], isolation: Isolation, limits: Limits) -> None:
        self._nurseries = nurseries
        self._isolation = isolation
        self._limits = limits
        self._cells: dict[str, Cell] = {}
        self._answerer: Answerer | None = None

    def judge(self, completion: str, reference: Reference) -> Verdict:
        """One verdict, whatever happens."""
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                return self._judge(completion, reference)
            except SandboxError as error:
                trouble = str(error)
                self._discard()
            except Exception as error:
                log.exception("the verifier failed on a %s", type(reference).__name__)
                trouble = repr(error)
                self._discard()
                break
        return unknown("infra", error=trouble)

    def close(self) -> None:
        """Lets every cell end."""
        if self._answerer is not None:
            self._answerer.close()
            self._answerer = None
        for cell in self._cells.values():
            cell.close()
        self._cells.clear()

    def _discard(self) -> None:
        """After trouble the next judgement starts from fresh cells."""
        for cell in self._cells.values():
            cell.kill()
        self.close()

    def _judge(self, completion: str, reference: Reference) -> Verdict:
        match reference:
            case StdioReference():
                return judging.judge_stdio(completion, reference, self._cell, self._limits)
            case CallsReference():
                return judging.judge_calls(completion, reference, self._cell, self._limits)
            case AssertsReference():
                return judging.judge_asserts(completion, reference, self._cell, self._limits)
        if self._answerer is None or not self._answerer.is_running:
            self._answerer = Answerer(self._cell("math"))
        return self._answerer.judge(completion, reference, self._limits.wall_s)

    def _cell(self, role: str) -> Cell:
        if role not in self._cells:
            nursery = self._nurseries["math" if role == "math" else "code"]
            self._cells[role] = nursery.cell(
                self._isolation, scratch_bytes=self._limits.scratch_bytes
            )
        return self._cells[role]


class Answerer:
    """A locked-down process that judges final answers one after another."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._num_judged = 0
        self._stream, theirs = socket.socketpair()
        payload = protocol.anonymous_file(b"{}")
        null = protocol.anonymous_file()
        limits = Limits(wall_s=0.0, memory_bytes=MATH_MEMORY_BYTES, output_bytes=2**20)
        with theirs:
            cell.start("answers", (null, null, null, payload, theirs.fileno()), limits)
        for descriptor in (payload, null):
            os.close(descriptor)
        self.is_running = True

    def judge(self, completion: str, reference: Reference, wall_s: float) -> Verdict:
        """One verdict; past the limit the process is killed and the verdict is unknown."""
        order = {
            "reference": dataclasses.asdict(reference),
            "completion": said(completion),
        }
        try:
            frame = protocol.exchange(
                self._stream, json.dumps(order).encode(), limit=2**24, timeout_s=wall_s
            )
        except TimeoutError:
            self._cell.stop()
            self._end()
            return unknown("timeout")
        except OSError:
            frame = None
        if frame is None:
            end = self._end()
            if end.is_ready and end.status in (programs.MEMORY, -signal.SIGABRT):  # GMP aborts
                return unknown("memory")
            raise SandboxError(f"the judge of answers ended with {end.status}.")
        self._num_judged += 1
        if self._num_judged == ANSWERS_PER_WORKER:
            self._end()
        reply = json.loads(frame)
        match Status(reply["status"]):
            case Status.RIGHT:
                return right(**reply["detail"])
            case Status.WRONG:
                return wrong(reply["reason"], **reply["detail"])
        return unknown(reply["reason"], **reply["detail"])

    def close(self) -> None:
        """Leaves the process to the end of its cell."""
        self._stream.close()

    def _end(self) -> protocol.Exit:
        self.is_running = False
        self._stream.close()
        return self._cell.wait(GRACE_S)
