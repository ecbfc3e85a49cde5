"""`cipo`: the command line, a file a command.

cipo train CONFIG [--run-dir DIR [--allow-changes]] [--profile] [--any.field value ...]
cipo export RUN OUT [--step N] [--adapter]
cipo evaluate MODEL_OR_RUN --benchmarks NAMES [--data DIR]
cipo plan CONFIG --topology v5litepod-16 [--json] [--picture FILE] [--any.field value ...]
cipo doctor [CONFIG] [--run-dir DIR] [--json] [--any.field value ...]
cipo study STUDY.yaml [--output DIR]
cipo regrade RUN
cipo verify-serve [--host HOST] [--port PORT] [--workers N]

Commands load jax late: --help and the errors of a configuration need no accelerator.
"""

from __future__ import annotations

import argparse
import os
import sys

from cipo_jax import __version__
from cipo_jax.cli.command import Command
from cipo_jax.cli.doctor import DOCTOR
from cipo_jax.cli.evaluate import EVALUATE
from cipo_jax.cli.export import EXPORT
from cipo_jax.cli.plan import PLAN
from cipo_jax.cli.regrade import REGRADE
from cipo_jax.cli.study import STUDY
from cipo_jax.cli.train import TRAIN
from cipo_jax.cli.verify_serve import VERIFY_SERVE

COMMANDS = (TRAIN, EXPORT, EVALUATE, PLAN, DOCTOR, STUDY, REGRADE, VERIFY_SERVE)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    An error that says what to do is printed without a traceback; CIPO_DEBUG=1 shows it.
    """
    parser = argparse.ArgumentParser(
        prog="cipo",
        description="Reinforcement learning of language models on their own corrections.",
    )
    parser.add_argument("--version", action="version", version=f"cipo_jax {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            add_help=not command.has_own_help,
        )
        command.add_options(own)
        own.set_defaults(chosen=command, parser=own)
    parsed, rest = parser.parse_known_args(arguments)
    chosen: Command = parsed.chosen
    if rest and not chosen.takes_settings:
        parser.error(f"cipo {chosen.name} has no such argument: {' '.join(rest)}")
    # Only its tokenizers are used; it would remark on every start that there is no PyTorch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return chosen.run(parsed, rest)
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        told = _without_devices(error)
        if os.environ.get("CIPO_DEBUG") or (isinstance(error, AssertionError) and not told):
            raise
        print(f"cipo {chosen.name}: {told or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _without_devices(error: Exception) -> str:
    """The way out where jax can't open a device, since its own error says little or nothing; empty
    for any other error."""
    if not isinstance(error, (RuntimeError, AssertionError)) or "jax" not in sys.modules:
        return ""
    from cipo_jax.doctor import devices

    return "" if devices.are_open() else ". ".join(devices.unopened(error))
