"""`cipo evaluate MODEL_OR_RUN --benchmarks NAMES`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cipo_jax.cli.command import Command
from cipo_jax.config import Benchmarking, Verify


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
    default = Benchmarking()
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
    parser.add_argument("--samples", type=int, help="of each problem; 0: greedy only")
    parser.add_argument(
        "--temperature", type=float, default=default.temperature, help="%(default)s"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=default.max_new_tokens, help="%(default)s"
    )
    parser.add_argument("--no-greedy", action="store_true", help="no greedy completions")
    parser.add_argument("--no-corrections", action="store_true", help="no corrections of samples")
    parser.add_argument("--limit", type=int, help="only the first problems of each benchmark")
    parser.add_argument(
        "--sequences-per-call", type=int, default=default.sequences_per_call,
        help="completions at once; memory grows with it (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="%(default)s")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--system", help="system message (default: the run's, or none)")
    parser.add_argument("--thinking", action="store_true", help="switch the model's thinking on")
    parser.add_argument("--correction-template", choices=("attempt_last", "attempt_first"))
    parser.add_argument("--workers", type=int, default=2, help="verifier processes (%(default)s)")
    parser.add_argument(
        "--deadline-s", type=float, default=6.0, help="limit of one judgement (%(default)s)"
    )
    parser.add_argument("--memory-mb", type=int, default=1024, help="of a program (%(default)s)")
    parser.add_argument(
        "--compare-to", type=Path, metavar="DIR", help="another evaluation's folder"
    )


def _run(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.tasks.benchmarks import named

    settings = Benchmarking(
        samples="usual" if parsed.samples is None else parsed.samples,
        temperature=parsed.temperature,
        max_new_tokens=parsed.max_new_tokens,
        greedy=not parsed.no_greedy,
        corrections=not parsed.no_corrections,
        limit=parsed.limit,
        sequences_per_call=parsed.sequences_per_call,
        seed=parsed.seed,
    )
    verify = Verify(
        workers=parsed.workers, deadline_s=parsed.deadline_s, memory_mb=parsed.memory_mb
    )
    chosen = named(parsed.benchmarks)
    from cipo_jax.evaluate import suite
    from cipo_jax.report import evaluation

    loaded = suite.load_all(chosen, parsed.data, settings.limit)
    subject = suite.open_subject(
        parsed.model,
        step=parsed.step,
        prompts={
            name: value
            for name in ("system", "correction_template", "thinking")
            if (value := getattr(parsed, name))
        },
    )
    output = parsed.output or suite.default_output(parsed.model, subject)
    print(f"results: {output}", flush=True)
    suite.evaluate(
        subject, chosen, loaded, output, settings, verify, compute_dtype=parsed.compute_dtype
    )
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
