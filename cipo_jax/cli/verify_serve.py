"""`cipo verify-serve`."""

from __future__ import annotations

import argparse
import os

from cipo_jax.cli.command import Command
from cipo_jax.cli.flags import add_flags, read_flags
from cipo_jax.config import Verify

HERE = ("workers", "deadline_s", "memory_mb", "output_kb", "isolation", "allow_unsandboxed")
"""Fields of `Verify` that are of the machine that judges."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8790, help="port (%(default)s)")
    add_flags(parser, "how completions are judged", Verify, *HERE)


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.verify.remote import TOKEN_VARIABLE
    from cipo_jax.verify.service import serve

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ValueError(
            f"the environment variable {TOKEN_VARIABLE} must hold the secret that every request "
            f"has to carry: export {TOKEN_VARIABLE}=$(python -c 'import secrets; "
            "print(secrets.token_urlsafe())'), and the same on the trainers."
        )
    serve(read_flags(parsed, Verify), token=token, host=parsed.host, port=parsed.port)
    return 0


VERIFY_SERVE = Command(
    name="verify-serve",
    help="judge for trainers on other machines",
    description="Serve this machine's verifier pool over HTTP. Every request must carry the "
    "token of the environment variable CIPO_VERIFY_TOKEN; trainers are pointed here by "
    "--verify.service-url. See docs/service.md.",
    add_options=_add_options,
    run=_run,
)
