"""`cipo study STUDY.yaml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cipo_jax.cli.command import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", metavar="STUDY", type=Path, help="a YAML file, as in configs/studies/"
    )
    parser.add_argument("--output", type=Path, help="the study's folder (default: runs/FILE-NAME)")
    parser.add_argument("--arms", metavar="NAMES", help="only these, as in cipo,grpo")
    parser.add_argument("--report", action="store_true", help="only write the page")


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.report import study as page
    from cipo_jax.run import study

    read = study.read(parsed.study, arms=parsed.arms.split(",") if parsed.arms else None)
    folder = parsed.output or Path("runs") / parsed.study.stem
    if not parsed.report:
        study.run(read, folder)
    path = page.write(folder, name=read.name, arms=tuple(read.arms))
    print(f"\n{path.read_text()}\n{path}")
    return 0


STUDY = Command(
    name="study",
    help="one configuration in several arms over several seeds",
    description="Run the arms of STUDY over its seeds and write the page that compares them. "
    "Finished runs are not done again. See docs/evaluation.md.",
    add_options=_add_options,
    run=_run,
)
