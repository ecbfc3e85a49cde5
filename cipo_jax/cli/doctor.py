"""`cipo doctor [CONFIG]`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from cipo_jax.cli.command import Command
from cipo_jax.cli.several import add_several, connect
from cipo_jax.config import configfile


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, as in configs/")
    parser.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    add_several(parser)


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    if rest and parsed.config is None:
        raise ValueError(f"{rest[0]} sets a field of a config: name its file, too.")
    cfg = None if parsed.config is None else configfile.load(parsed.config, rest)
    from cipo_jax import doctor
    from cipo_jax.mesh import processes

    folder = parsed.run_dir or Path("runs") / ("doctor" if cfg is None else cfg.name)
    with _output_to_errors() if parsed.json else contextlib.nullcontext():
        connect(parsed)
        with processes.ending_together():
            everywhere = doctor.examine(cfg, folder)
    is_well = doctor.is_well(everywhere)
    if len(everywhere) == 1 or processes.is_first():
        if parsed.json:
            record = [[finding.to_json() for finding in findings] for findings in everywhere]
            print(json.dumps({"well": is_well, "processes": record}, indent=1))
        else:
            console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
            console.print(doctor.table(everywhere))
            console.print("nothing fails" if is_well else "something fails: see the lines above")
    return 0 if is_well else 1


@contextlib.contextmanager
def _output_to_errors() -> Iterator[None]:
    """Send what libraries print (Gloo does, from C++) to standard error: standard output then holds
    the JSON object alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


DOCTOR = Command(
    name="doctor",
    help="say what would stop a run on this machine, by trying it",
    description="Check devices, versions, memory, the sandbox, the run's folder, the other "
    "processes, and with CONFIG its model, problems and sizes. Fields of the config can be set "
    "as for `cipo train`. Exit status: 0 nothing fails, 1 something does, 2 error.",
    add_options=_add_options,
    run=_run,
    takes_settings=True,
)
