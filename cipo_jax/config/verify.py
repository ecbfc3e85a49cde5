"""How completions are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class Verify:
    """The pool of verifier processes on each host."""

    workers: int = 2
    """Completions that are judged at once, each in a process of its own; about one per core."""
    deadline_s: float = 6.0
    """Wall-clock limit of one judgement, seconds; past it the worker is killed and the verdict is
    unknown for a maths answer (the grader's failure) and wrong for a program (its own)."""
    memory_mb: int = 512
    """Address space of a program, MiB, at least 128; the interpreter itself takes 60."""
    output_kb: int = 1024
    """Most that a program may print, or write to one file, KiB. 64 KiB beyond twice what is
    expected of it are always allowed."""
    isolation: Literal["auto", "namespaces", "user-namespaces", "landlock", "strict"] = "auto"
    """The sandbox of model-written programs; auto: the strongest that withstands the attacks at the
    start. docs/verifiers.md says what each covers."""
    allow_unsandboxed: bool = False
    """Where no sandbox holds, run programs all the same, as this user, with limits only of time,
    memory and output."""
    service_url: str = ""
    """Server that judges in place of this host, such as http://10.0.0.7:8790. `workers` is then the
    number of questions asked at once."""
    service_kind: Literal["cipo", "sandbox-fusion"] = "cipo"
    """The server there: `cipo verify-serve`, whose token is read from the environment variable
    CIPO_VERIFY_TOKEN, or SandboxFusion, which only runs programs that read standard input. See
    docs/service.md."""
    service_deadline_s: float = 120.0
    """Time for one verdict of the service, seconds, waiting and retries included; past it the
    verdict is unknown."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "verify", "workers", "output_kb")
        require_positive(self, "verify", "deadline_s", "service_deadline_s")
        require(
            self.memory_mb >= 128,
            f"verify.memory_mb is {self.memory_mb}; it must be at least 128: the interpreter "
            "itself takes 60.",
        )
        require(
            self.service_kind == "cipo" or self.service_url != "",
            f"verify.service_kind is {self.service_kind!r}, but verify.service_url names no "
            "server: set it, or leave verify.service_kind out.",
        )
