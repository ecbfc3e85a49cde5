"""`cipo train CONFIG`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cipo_jax.cli.command import Command
from cipo_jax.cli.several import add_several, connect
from cipo_jax.config import configfile, meanings
from cipo_jax.run import run_folder


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, as in configs/")
    parser.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="continue the run in --run-dir although its configuration or its problems have "
        "changed; the changes are kept in its changes.jsonl",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also record what devices and host do, with jax.profiler, into the run's folder",
    )
    add_several(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this, and the config's fields")


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    if parsed.help or parsed.config is None:
        parsed.parser.print_help()
        if parsed.config is not None:
            meanings.print_fields(configfile.load(parsed.config, rest))
        return 0 if parsed.help else 2
    cfg = configfile.load(parsed.config, rest)
    if parsed.allow_changes and parsed.run_dir is None:
        raise ValueError("--allow-changes continues an existing run: name its folder by --run-dir.")
    from cipo_jax.mesh import processes
    from cipo_jax.run.loop import train

    connect(parsed)
    with processes.ending_together():
        folder = Path(processes.from_first(lambda: str(parsed.run_dir or run_folder.find(cfg))))
        if processes.is_first():
            print(f"run folder: {folder}", flush=True)
        train(cfg, folder, allow_changes=parsed.allow_changes, profile=parsed.profile)
    return 0


TRAIN = Command(
    name="train",
    help="train a model as a config says",
    description="Train a model as CONFIG says. Any field of it can be set on the command line: "
    "--train.steps 20, --model.path Qwen/Qwen3-0.6B. `cipo train CONFIG --help` lists all "
    "fields with their values.",
    add_options=_add_options,
    run=_run,
    takes_settings=True,
    has_own_help=True,
)
