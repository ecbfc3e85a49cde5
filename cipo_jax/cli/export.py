"""`cipo export RUN OUT`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cipo_jax.cli.command import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="RUN",
        help="the run's folder; or a model, as model.path of a configuration names it",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder that is not there yet")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of the weights (default: that of the base model's files)",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="the LoRA adapter alone, as a folder for peft (default: merged into the base)",
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not compare with transformers, which takes memory for the model twice",
    )


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from cipo_jax.export import export

    exported = export(
        parsed.source,
        parsed.out,
        step=parsed.step,
        dtype=parsed.dtype,
        as_adapter=parsed.adapter,
        has_check=not parsed.no_check,
    )
    at_step = "" if exported.step is None else f", step {exported.step}"
    print(f"{exported.folder}: {exported.dtype}{at_step}\n{exported.check}")
    return 0


EXPORT = Command(
    name="export",
    help="write a run's model as a folder that transformers loads",
    description="Write the policy of a run to the new folder OUT, for transformers or peft, "
    "with a model card. Runs on the CPU, so a training process keeps its accelerator. See "
    "docs/export.md.",
    add_options=_add_options,
    run=_run,
)
