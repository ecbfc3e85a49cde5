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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import pyarrow as pa
import pyarrow.parquet
import rich.console
from jax.sharding import Mesh
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cipo_jax import __version__
from cipo_jax.config import Benchmarking, MeshShape, PretrainedModel, Prompts, Verify, configfile
from cipo_jax.config.model import ModelSource
from cipo_jax.evaluate import passes, samples
from cipo_jax.evaluate.summary import per_problem, summarise
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.files.load import load_model
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.rollout.judged import Engine
from cipo_jax.tasks import benchmarks
from cipo_jax.tasks.benchmarks import Benchmark, Loaded
from cipo_jax.text.prompts import Renderer
from cipo_jax.text.tokenizer import check_fits, eos_ids, load_tokenizer
from cipo_jax.update import policy
from cipo_jax.verify.judge import open_judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is measured."""

    name: str
    """As it was asked for; with the step of a run."""
    step: int | None
    """Of a run's checkpoint."""
    params: Params
    arch: Architecture
    mesh: Mesh
    tokenizer: PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    prompts: Prompts
    """How the run renders its prompts, or the defaults."""


def open_subject(
    target: str, *, step: int | None = None, prompts: Mapping[str, Any] | None = None
) -> Subject:
    """A run's folder (its newest checkpoint, or that of `step`; 0 is the model before training), or
    a model: a folder, a .gguf file, a hub id, `package:NAME`.

    Args:
      prompts: fields of `config.Prompts` that differ from the run's, or from the defaults.
    Raises: ValueError that says what is wrong with it.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"There are {jax.process_count()} processes, and an evaluation is one: start it on one "
            "host, with a model that fits its devices."
        )
    mesh = make_mesh(MeshShape())
    config = Path(target) / "config.yaml"
    if not config.is_file():
        if step is not None:
            raise ValueError(
                f"--step {step}: {target} is no run's folder (it has no config.yaml), and a model "
                "has no steps."
            )
        source = PretrainedModel(path=target)
        params, arch = load_model(source, mesh)
        return _subject(target, None, source, params, arch, mesh, Prompts(**prompts or {}))
    cfg = configfile.load(config)
    if step == 0:
        params, arch = load_model(cfg.model, mesh, seed=cfg.seed)
    else:
        params, arch, step = policy.restore_params(
            cfg, mesh, Path(target) / "checkpoints", step=step
        )
    rendered = dataclasses.replace(cfg.prompts, **prompts or {})
    return _subject(target, step, cfg.model, params, arch, mesh, rendered)


def _subject(
    target: str,
    step: int | None,
    source: ModelSource,
    params: Params,
    arch: Architecture,
    mesh: Mesh,
    prompts: Prompts,
) -> Subject:
    tokenizer = load_tokenizer(source)
    check_fits(tokenizer, arch)
    return Subject(
        name=target if step is None else f"{target} step {step}",
        step=step,
        params=params,
        arch=arch,
        mesh=mesh,
        tokenizer=tokenizer,
        eos_ids=eos_ids(source, tokenizer),
        prompts=prompts,
    )


def default_output(target: str, subject: Subject) -> Path:
    """`RUN/benchmarks/step-N` for a run, `evaluations/NAME` for a model."""
    if subject.step is not None:
        return Path(target) / "benchmarks" / f"step-{subject.step}"
    name = target.rstrip("/").replace("package:", "").rsplit("/", 1)[-1].removesuffix(".gguf")
    return Path("evaluations") / name


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
            renderer=_renderer(subject, settings),
            judge=judge,
            compute_dtype=compute_dtype,
        )
        for benchmark in missing:
            _evaluate_one(benchmark, loaded[benchmark.name], engine, subject, settings, output)


def _renderer(subject: Subject, settings: Benchmarking) -> Renderer:
    """Prompts as the run renders them, as long as the model has room for."""
    room = subject.arch.max_position - settings.max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens is {settings.max_new_tokens}, and {subject.name} has "
            f"{subject.arch.max_position} positions for prompt and completion: lower it."
        )
    return Renderer(
        subject.tokenizer,
        dataclasses.replace(
            subject.prompts,
            max_prompt_tokens=room,
            max_attempt_tokens=settings.max_new_tokens,
            max_correction_prompt_tokens=room,
        ),
    )


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
    bar = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("prompts"),
        TimeRemainingColumn(),
    )
    with bar:
        tasks: dict[str, Any] = {}

        def progress(stream: str, done: int, total: int) -> None:
            if stream not in tasks:
                name = stream.replace("_", " ")
                tasks[stream] = bar.add_task(f"{benchmark.title}, {name}", total=total)
            bar.update(tasks[stream], completed=done)

        try:
            rows = passes.run(benchmark, loaded.items, engine, subject.params, settings, progress)
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
    found = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "rows_published": benchmark.num_rows,
        "left_out": dict(loaded.left_out),
        "note": benchmark.note,
        "seconds": time.perf_counter() - start,
        **summarise(rows, seed=settings.seed),
    }
    _write_json(found, folder / "summary.json")


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
    _write_json({"settings": now, "made_with": made_with}, path)


def _write_json(record: dict[str, Any], path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    unfinished.replace(path)
