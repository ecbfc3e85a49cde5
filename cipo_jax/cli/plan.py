"""`cipo plan CONFIG --topology SLICE`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from cipo_jax.cli.command import Command
from cipo_jax.config import configfile


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, as in configs/")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="SLICE",
        help="v5litepod-16, v6e-64, v5p-16 (cores, as in Google Cloud), v5e:4x4, h100:8",
    )
    parser.add_argument(
        "--hbm-gib", type=float, help="memory of a device (default: what the compiler says)"
    )
    parser.add_argument(
        "--largest",
        default="rows,prompts,length",
        metavar="WHAT",
        help="settings whose largest value is searched for, or none (%(default)s); each trial "
        "that fits costs its compilation",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no tables")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write the tables there, too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the memory, as PNG")
    parser.add_argument(
        "--answers",
        type=Path,
        default=Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "cipo_jax" / "plan",
        metavar="DIR",
        help="where the compiler's answers are kept for the next plan (%(default)s)",
    )


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    cfg = configfile.load(parsed.config, rest)
    from cipo_jax import plan
    from cipo_jax.plan import hardware, search
    from cipo_jax.plan.picture import draw
    from cipo_jax.plan.report import print_plan

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    made = plan.make(
        cfg,
        hardware.parse(parsed.topology),
        hbm_gib=parsed.hbm_gib,
        knobs=search.parse_knobs(parsed.largest),
        answers=parsed.answers.expanduser(),
        say=say,
    )
    if parsed.json:
        print(json.dumps(made.to_json(), indent=1))
    else:
        print_plan(made, Console(width=None if sys.stdout.isatty() else 140, highlight=False))
    if parsed.text is not None:
        with parsed.text.open("w") as text:
            print_plan(made, Console(file=text, width=140, highlight=False))
    if parsed.picture is not None:
        draw(made, parsed.picture)
    return 0 if made.fits else 1


PLAN = Command(
    name="plan",
    help="say whether a run fits a TPU slice or GPUs, without having them",
    description="Compile every program of the run that CONFIG describes for a TPU slice or for "
    "GPUs, neither of which is needed, and add up the memory of the whole cycle. Fields of "
    "the config can be set as for `cipo train`. Exit status: 0 fits, 1 does not fit, 2 error.",
    add_options=_add_options,
    run=_run,
    takes_settings=True,
)
