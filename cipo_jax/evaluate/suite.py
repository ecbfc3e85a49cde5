"""A model on several benchmarks, into a folder; what is finished there is not done again.

OUTPUT/settings.json           what is measured, and how
OUTPUT/NAME/samples.parquet    every completion with its verdict
OUTPUT/NAME/problems.parquet   counts by problem, by which two evaluations are compared
OUTPUT/NAME/summary.json       the figures; written last, it marks the benchmark as finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import pyarrow as pa
import pyarrow.parquet
import rich.console
from rich import progress

from cipo_jax import __version__
from cipo_jax.config import Benchmarking, Verify, atomic
from cipo_jax.evaluate import samples
from cipo_jax.evaluate.figures import BenchmarkSummary, StreamName
from cipo_jax.evaluate.passes import Sampler, criticise, solve
from cipo_jax.evaluate.samples import SampleRow
from cipo_jax.evaluate.subject import Subject
from cipo_jax.evaluate.summary import per_problem, summarise
from cipo_jax.rollout.judged import Engine, Prompted, Shape
from cipo_jax.tasks import benchmarks
from cipo_jax.tasks.benchmarks import Benchmark, Loaded
from cipo_jax.verify.opening import open_judge


def load_all(
    chosen: Sequence[Benchmark], data: Path | None, limit: int | None
) -> dict[str, Loaded]:
    """The items of all benchmarks. Whatever is missing is said before anything is sampled."""
    return {b.name: benchmarks.load(b, data, limit=limit) for b in chosen}


def evaluate(
    subject: Subject,
    chosen: Sequence[Benchmark],
    loaded: dict[str, Loaded],
    output: Path,
    settings: Benchmarking,
    verify: Verify,
    *,
    compute_dtype: str | None = None,
) -> None:
    """Measure the model on each benchmark that isn't finished in `output`.

    Args:
      compute_dtype: None for float32 on CPUs, where bfloat16 is slow, and bfloat16 elsewhere.
    Raises: ValueError if `output` holds an evaluation with other settings, or a prompt doesn't fit.
    """
    if compute_dtype is None:
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    _open_folder(output, subject, settings, compute_dtype)
    missing = [b for b in chosen if not (output / b.name / "summary.json").is_file()]
    console = rich.console.Console(highlight=False)
    for benchmark in chosen:
        if benchmark not in missing:
            console.print(f"{benchmark.title}: finished before")
    if not missing:
        return
    references = [i.problem.reference for b in missing for i in loaded[b.name].items]
    with contextlib.closing(open_judge(verify, references)) as judge:
        console.print(str(judge.report))
        engine = Engine(
            arch=subject.arch,
            mesh=subject.mesh,
            eos_ids=subject.eos_ids,
            renderer=subject.renderer(settings.max_new_tokens),
            judge=judge,
            compute_dtype=compute_dtype,
        )
        for benchmark in missing:
            _evaluate_one(benchmark, loaded[benchmark.name], engine, subject, settings, output)


def _evaluate_one(
    benchmark: Benchmark,
    loaded: Loaded,
    engine: Engine,
    subject: Subject,
    settings: Benchmarking,
    output: Path,
) -> None:
    folder = output / benchmark.name
    folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    try:
        rows = _rows(benchmark, loaded, engine, subject, settings)
    except ValueError as error:
        raise ValueError(
            f"{benchmark.title}: {error} Prompts may have what the model's "
            f"{subject.arch.max_position} positions leave beside max_new_tokens "
            f"{settings.max_new_tokens}: lower that."
        ) from error
    samples.write(rows, folder / "samples.parquet")
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(per_problem(rows)), folder / "problems.parquet"
    )
    found = BenchmarkSummary(
        benchmark=benchmark.name,
        title=benchmark.title,
        rows_published=benchmark.num_rows,
        left_out=dict(loaded.left_out),
        note=benchmark.note,
        seconds=time.perf_counter() - start,
        **summarise(rows, seed=settings.seed),
    )
    atomic.write_json(folder / "summary.json", found)


_KEYS: dict[StreamName, int] = {
    "greedy": 0, "sampled": 1, "corrected": 2, "critique": 3, "critique_corrected": 4,
}  # fmt: skip


def _rows(
    benchmark: Benchmark,
    loaded: Loaded,
    engine: Engine,
    subject: Subject,
    settings: Benchmarking,
) -> list[SampleRow]:
    """All samples of one benchmark, judged, with a progress bar for each stream."""
    num_samples = benchmark.samples if settings.samples == "usual" else settings.samples
    room = subject.room(settings.max_new_tokens)

    def shape(stream: StreamName, prompted: Sequence[Prompted]) -> Shape:
        each = num_samples if stream == "sampled" else 1
        return Shape(
            num_prompts=max(1, min(settings.sequences_per_call // each, len(prompted))),
            num_samples=each,
            prompt_tokens=min(bucket(max(len(p.token_ids) for p in prompted)), room),
            new_tokens=settings.max_new_tokens,
        )

    bars = progress.Progress(
        progress.TextColumn("{task.description:<34}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("prompts"),
        progress.TimeRemainingColumn(),
    )
    bar_of: dict[StreamName, progress.TaskID] = {}

    def on_progress(stream: StreamName, done: int, total: int) -> None:
        if stream not in bar_of:
            name = f"{benchmark.title}, {stream.replace('_', ' ')}"
            bar_of[stream] = bars.add_task(name, total=total)
        bars.update(bar_of[stream], completed=done)

    key = jax.random.key(settings.seed)
    sampler = Sampler(
        engine=engine,
        params=subject.params,
        keys={stream: jax.random.fold_in(key, number) for stream, number in _KEYS.items()},
        shape=shape,
        on_progress=on_progress,
    )
    with bars:
        if benchmark.area == "critique":
            return criticise(sampler, loaded.items)
        return solve(
            sampler,
            loaded.items,
            has_greedy=settings.greedy,
            has_samples=num_samples > 0,
            num_corrected=num_samples if settings.corrections else 0,
            temperature=settings.temperature,
        )


def bucket(length: int) -> int:
    """The padded length of a batch of prompts: at most a quarter is padding, and few lengths, each
    of which is one compiled program, serve all benchmarks.

    The least multiple of a quarter of the power of two below `length`, from 256 on.
    """
    if length <= 256:
        return 256
    step = 1 << (length.bit_length() - 3)
    return -(-length // step) * step


def _open_folder(
    output: Path, subject: Subject, settings: Benchmarking, compute_dtype: str
) -> None:
    device = jax.devices()[0]
    now = {
        "model": subject.name,
        **dataclasses.asdict(settings),
        "system": subject.prompts.system,
        "thinking": subject.prompts.thinking,
        "correction_template": subject.prompts.correction_template,
        "compute_dtype": compute_dtype,
    }
    path = output / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text())["settings"]
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise ValueError(
                f"{output} holds an evaluation with other settings, and going on would mix the "
                f"two: {'; '.join(changed)}. Give another --output, or the same settings."
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    made_with = {
        "cipo_jax": __version__,
        "jax": jax.__version__,
        "device": f"{device.platform}: {device.device_kind}",
    }
    atomic.write_json(path, {"settings": now, "made_with": made_with})
