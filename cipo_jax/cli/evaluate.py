"""`cipo evaluate MODEL_OR_RUN --benchmarks NAMES`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cipo_jax.cli.command import Command
from cipo_jax.cli.flags import add_flags, given_flags, read_flags
from cipo_jax.config import Benchmarking, Prompts, Train, Verify

PROMPTS = ("system", "thinking", "correction_template")
"""Fields of `Prompts` that an evaluation may choose; the sizes follow from the model's."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    from cipo_jax.tasks.benchmarks import ELEVEN

    names = "\n".join(
        f"  {b.name:<14} {b.title}, {b.num_rows} rows, {b.samples} samples each" for b in ELEVEN
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"benchmarks, and their usual numbers of samples:\n{names}\n"
        "  humaneval+, mbpp+    EvalPlus's versions of two, with more tests\n"
        "  all, maths, code, critique    several of the eleven"
    )
    parser.add_argument(
        "model",
        metavar="MODEL_OR_RUN",
        help="a run's folder, or a model: a folder, a .gguf file, a hub id, package:NAME",
    )
    parser.add_argument("--benchmarks", required=True, metavar="NAMES", help="aime24,math500; all")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with NAME.jsonl or .parquet; else the hub"
    )
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--step", type=int, help="of a run: which checkpoint; 0: before training")
    parser.add_argument(
        "--compare-to", type=Path, metavar="DIR", help="another evaluation's folder"
    )
    add_flags(parser, "what is measured", Benchmarking)
    add_flags(parser, "how the model is asked", Prompts, *PROMPTS, default="the run's")
    by_device = "float32 on CPUs, bfloat16 elsewhere"
    add_flags(parser, "how it is computed", Train, "compute_dtype", default=by_device)
    add_flags(parser, "how completions are judged", Verify)


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.tasks.benchmarks import named

    settings = read_flags(parsed, Benchmarking)
    verify = read_flags(parsed, Verify)
    prompts = given_flags(parsed, Prompts)
    compute_dtype = given_flags(parsed, Train).get("compute_dtype")
    chosen = named(parsed.benchmarks)
    from cipo_jax.evaluate import suite
    from cipo_jax.evaluate.subject import default_output, open_subject
    from cipo_jax.report import evaluation

    loaded = suite.load_all(chosen, parsed.data, settings.limit)
    subject = open_subject(parsed.model, step=parsed.step, prompts=prompts)
    output = parsed.output or default_output(parsed.model, subject)
    print(f"results: {output}", flush=True)
    suite.evaluate(subject, chosen, loaded, output, settings, verify, compute_dtype=compute_dtype)
    page = evaluation.write(output, compare_to=parsed.compare_to)
    print(f"\n{page.read_text()}\n{page}")
    return 0


EVALUATE = Command(
    name="evaluate",
    help="measure a model or a run on benchmarks",
    description="Measure a model, or a checkpoint of a run, on benchmarks: accuracy, pass@k\n"
    "and majority votes, what it does to its own attempts, and critiques. What is finished\n"
    "in the output folder is not done again. See docs/evaluation.md.",
    add_options=_add_options,
    run=_run,
)
