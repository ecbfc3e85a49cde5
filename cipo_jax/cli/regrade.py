"""`cipo regrade RUN`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from cipo_jax.cli.command import Command
from cipo_jax.config import configfile


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.report.regrade import regrade, stored_references
    from cipo_jax.verify.opening import open_judge

    cfg = configfile.load(parsed.folder / "config.yaml")
    judge = open_judge(cfg.verify, stored_references(parsed.folder))
    with contextlib.closing(judge):
        print(regrade(parsed.folder, judge).table())
    return 0


REGRADE = Command(
    name="regrade",
    help="judge a run's stored rollouts again",
    description="Judge the stored rollouts of a run with the verifier as it is now, and say "
    "which verdicts would have been others. Nothing is written.",
    add_options=_add_options,
    run=_run,
)
