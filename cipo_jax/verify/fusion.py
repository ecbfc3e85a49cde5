"""Programs run by a SandboxFusion server, and judged here.

The server only runs them: it gets the program and the input of one case, never the expected output,
and its own opinion of the result is not asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from cipo_jax.verify.code import fenced, judging
from cipo_jax.verify.remote import Endpoint, EndpointError, ThreadedPool
from cipo_jax.verify.verdict import (
    PlainReference,
    Reason,
    Reference,
    StdioReference,
    Verdict,
    right,
    wrong,
)

if TYPE_CHECKING:
    from cipo_jax.config import Verify

TRIAL = "print(6 * 7)"
"""The program with which a server shows that it runs programs."""

_Fit = PlainReference | StdioReference


def check_kinds(kinds: Iterable[type[Reference]]) -> None:
    """Raises: ValueError where one of these kinds of reference needs more than a runner."""
    others = [kind.__name__ for kind in kinds if not issubclass(kind, _Fit)]
    if others:
        raise ValueError(
            "verify.service_kind is 'sandbox-fusion', a server that runs programs which read "
            f"standard input, and there are problems with {', '.join(sorted(others))}: judge them "
            "with `cipo verify-serve`, or here (leave verify.service_url empty)."
        )


class FusionPool(ThreadedPool):
    """Judges programs that read standard input; numbers and texts are judged on the spot.

    Args:
      url: of the server.
      settings: `config.Verify`; its limits of memory and time (or the reference's `case_s`) hold
        for each case.
      deadline_s: for one verdict with all its cases and tries.
      connections: programs that run at the same time.
    Raises: EndpointError if the server can't be reached or doesn't run a first program.
    """

    def __init__(
        self, url: str, settings: Verify, *, deadline_s: float = 120.0, connections: int = 16
    ) -> None:
        self._endpoint = Endpoint(url, {})
        self._settings = settings
        self._deadline_s = deadline_s
        self.is_sandboxed = None  # by that server, or not: it doesn't say
        self.report = (
            f"SandboxFusion {url}: programs run there under that server's own isolation, which is "
            "not checked from here"
        )
        trial = self._run(TRIAL, "", settings.deadline_s, min(10.0, deadline_s))
        if trial != ("ok", "42\n"):
            raise EndpointError(f"{url} does not run Python: {TRIAL!r} gave {trial}.")
        super().__init__(connections)

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come. Raises: ValueError for references that need more than a runner."""
        check_kinds([type(reference)])
        return super().submit(completion, reference)

    def _judge(self, completion: str, reference: Reference) -> Verdict:
        assert isinstance(reference, StdioReference)
        deadline = time.monotonic() + self._deadline_s
        source = fenced.extract(completion)
        if refused := judging.refusal(source):
            return refused
        source = judging.with_prelude(reference.prelude, source)
        run_s = reference.case_s or self._settings.deadline_s
        for index, (given, expected) in enumerate(reference.cases):
            reason, printed = self._run(source, given, run_s, deadline - time.monotonic())
            if reason == "ok" and not judging.same_output(printed, expected):
                reason = "wrong_answer"
            if reason != "ok":
                return wrong(reason, case=index)
        return right()

    def _run(self, source: str, given: str, run_s: float, left_s: float) -> tuple[Reason, str]:
        """How one run ended, and what it printed."""
        question = {
            "language": "python",
            "code": source,
            "stdin": given,
            "run_timeout": run_s,
            "memory_limit_MB": self._settings.memory_mb,
        }
        match self._endpoint.ask("POST", "/run_code", question, deadline_s=left_s):
            case {"run_result": {"status": "TimeLimitExceeded"}}:
                return "timeout", ""
            case {"run_result": {"status": "Finished", "return_code": 0, "stdout": str(printed)}}:
                return "ok", printed
            case {"run_result": {"status": "Finished", "return_code": int()}}:
                return "runtime_error", ""
            case reply:
                raise EndpointError(f"the server's own failure: {str(reply)[:200]}")
