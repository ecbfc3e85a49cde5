"""`cipo`: the command line.

cipo train CONFIG [--run-dir DIR [--allow-changes]] [--any.field value ...]
cipo export RUN OUT [--step N] [--adapter]
cipo evaluate MODEL_OR_RUN --benchmarks NAMES [--data DIR]
cipo plan CONFIG --topology v5litepod-16 [--json] [--picture FILE] [--any.field value ...]
cipo doctor [CONFIG] [--run-dir DIR] [--json] [--any.field value ...]
cipo study STUDY.yaml [--output DIR]
cipo regrade RUN
cipo verify-serve [--host HOST] [--port PORT] [--workers N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from cipo_jax import __version__
from cipo_jax.config import Benchmarking, Verify, configfile, meanings
from cipo_jax.run import run_folder


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    An error that says what to do is printed without a traceback; CIPO_DEBUG=1 shows it.
    """
    parser = argparse.ArgumentParser(
        prog="cipo",
        description="Reinforcement learning of language models on their own corrections.",
    )
    parser.add_argument("--version", action="version", version=f"cipo_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_plan(commands)
    _add_doctor(commands)
    _add_study(commands)
    _add_regrade(commands)
    _add_verify_serve(commands)
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.command not in ("train", "plan", "doctor"):
        parser.error(f"cipo {parsed.command} has no such argument: {' '.join(rest)}")
    # Only its tokenizers are used; it would remark on every start that there is no PyTorch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return parsed.run(parsed, rest)
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        told = _without_devices(error)
        if os.environ.get("CIPO_DEBUG") or (isinstance(error, AssertionError) and not told):
            raise
        print(f"cipo {parsed.command}: {told or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _without_devices(error: Exception) -> str:
    """What to do where jax opens no device, of which its own error says little or nothing; empty
    for any other error."""
    if not isinstance(error, (RuntimeError, AssertionError)) or "jax" not in sys.modules:
        return ""
    from cipo_jax.doctor import devices

    return "" if devices.are_open() else ". ".join(devices.unopened(error))


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model as a config says",
        description="Train a model as CONFIG says. Any field of it can be set on the command line: "
        "--train.steps 20, --model.path Qwen/Qwen3-0.6B. `cipo train CONFIG --help` lists all "
        "fields with their values.",
        add_help=False,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, as in configs/")
    parser.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with the run in --run-dir although its configuration or its problems were "
        "others; the changes are kept in its changes.jsonl",
    )
    _add_several(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this, and the config's fields")
    parser.set_defaults(run=_train, parser=parser)


def _add_several(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group("several processes, one on each host of a TPU pod, say")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="find the others by jax's detection: TPU pods, GKE, Slurm, Open MPI",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="or say where process 0 is,")
    several.add_argument("--num-processes", type=int, help="how many there are,")
    several.add_argument("--process-id", type=int, help="and which this is, from 0")
    several.add_argument(
        "--peer-timeout-s",
        type=int,
        default=100,
        help="a process that is silent for so long ends the job (%(default)s)",
    )


def _connect(parsed: argparse.Namespace) -> None:
    from cipo_jax.mesh import processes

    others = (parsed.coordinator, parsed.num_processes, parsed.process_id)
    if parsed.distributed or any(x is not None for x in others):
        processes.connect(*others, peer_timeout_s=parsed.peer_timeout_s)


def _train(parsed: argparse.Namespace, rest: list[str]) -> int:
    if parsed.help or parsed.config is None:
        parsed.parser.print_help()
        if parsed.config is not None:
            meanings.print_fields(configfile.load(parsed.config, rest))
        return 0 if parsed.help else 2
    cfg = configfile.load(parsed.config, rest)
    if parsed.allow_changes and parsed.run_dir is None:
        raise ValueError(
            "--allow-changes goes on with a certain run: name its folder by --run-dir."
        )
    # Imported late: --help and a config's errors need no accelerator.
    from cipo_jax.mesh import processes
    from cipo_jax.run.loop import train

    _connect(parsed)
    with processes.ending_together():
        folder = Path(processes.from_first(lambda: str(parsed.run_dir or run_folder.find(cfg))))
        if processes.is_first():
            print(f"run folder: {folder}", flush=True)
        train(cfg, folder, allow_changes=parsed.allow_changes)
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a run's model as a folder that transformers loads",
        description="Write the policy of a run to the new folder OUT, for transformers or peft, "
        "with a model card. Runs on the CPU, so a training process keeps its accelerator. See "
        "docs/export.md.",
    )
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
    parser.set_defaults(run=_export)


def _export(parsed: argparse.Namespace, rest: list[str]) -> int:
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


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from cipo_jax.tasks.benchmarks import ELEVEN

    names = "\n".join(
        f"  {b.name:<14} {b.title}, {b.num_rows} rows, {b.samples} samples each" for b in ELEVEN
    )
    parser = commands.add_parser(
        "evaluate",
        help="measure a model or a run on benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a model, or a checkpoint of a run, on benchmarks: accuracy, pass@k\n"
        "and majority votes, what it does to its own attempts, and critiques. What is finished\n"
        "in the output folder is not done again. See docs/evaluation.md.",
        epilog=f"benchmarks, and their usual numbers of samples:\n{names}\n"
        "  humaneval+, mbpp+    EvalPlus's versions of two, with more tests\n"
        "  all, maths, code, critique    several of the eleven",
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
    parser.set_defaults(run=_evaluate)


def _evaluate(parsed: argparse.Namespace, rest: list[str]) -> int:
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
    # Imported late: --help and a wrong name need no accelerator.
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


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="say whether a run fits a TPU slice or GPUs, without having them",
        description="Compile every program of the run that CONFIG describes for a TPU slice or for "
        "GPUs, neither of which is needed, and add up the memory of the whole cycle. Fields of "
        "the config can be set as for `cipo train`. Exit status: 0 fits, 1 does not fit, 2 error.",
    )
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
    parser.set_defaults(run=_plan)


def _plan(parsed: argparse.Namespace, rest: list[str]) -> int:
    cfg = configfile.load(parsed.config, rest)
    # Imported late: it loads jax.
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


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what would stop a run on this machine, by trying it",
        description="Check devices, versions, memory, the sandbox, the run's folder, the other "
        "processes, and with CONFIG its model, problems and sizes. Fields of the config can be set "
        "as for `cipo train`. Exit status: 0 nothing fails, 1 something does, 2 error.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, as in configs/")
    parser.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    _add_several(parser)
    parser.set_defaults(run=_doctor)


def _doctor(parsed: argparse.Namespace, rest: list[str]) -> int:
    if rest and parsed.config is None:
        raise ValueError(f"{rest[0]} sets a field of a config: name its file, too.")
    cfg = None if parsed.config is None else configfile.load(parsed.config, rest)
    # Imported late: it loads jax.
    from cipo_jax import doctor
    from cipo_jax.mesh import processes

    folder = parsed.run_dir or Path("runs") / ("doctor" if cfg is None else cfg.name)
    with _output_to_errors() if parsed.json else contextlib.nullcontext():
        _connect(parsed)
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


def _add_study(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "study",
        help="one configuration in several arms over several seeds",
        description="Run the arms of STUDY over its seeds and write the page that compares them. "
        "Finished runs are not done again. See docs/evaluation.md.",
    )
    parser.add_argument(
        "study", metavar="STUDY", type=Path, help="a YAML file, as in configs/studies/"
    )
    parser.add_argument("--output", type=Path, help="the study's folder (default: runs/FILE-NAME)")
    parser.add_argument("--arms", metavar="NAMES", help="only these, as in cipo,grpo")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.set_defaults(run=_study)


def _study(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.report import study as page
    from cipo_jax.run import study

    read = study.read(parsed.study, arms=parsed.arms.split(",") if parsed.arms else None)
    folder = parsed.output or Path("runs") / parsed.study.stem
    if not parsed.report:
        study.run(read, folder)
    path = page.write(folder, name=read.name, arms=tuple(read.arms))
    print(f"\n{path.read_text()}\n{path}")
    return 0


def _add_regrade(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "regrade",
        help="judge a run's stored rollouts again",
        description="Judge the stored rollouts of a run with the verifier as it is now, and say "
        "which verdicts would have been others. Nothing is written.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")
    parser.set_defaults(run=_regrade, parser=parser)


def _regrade(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.report.regrade import regrade, stored_references
    from cipo_jax.verify.judge import open_judge

    cfg = configfile.load(parsed.folder / "config.yaml")
    judge = open_judge(cfg.verify, stored_references(parsed.folder))
    with contextlib.closing(judge):
        print(regrade(parsed.folder, judge).table())
    return 0


def _add_verify_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify-serve",
        help="judge for trainers on other machines",
        description="Serve this machine's verifier pool over HTTP. Every request must carry the "
        "token of the environment variable CIPO_VERIFY_TOKEN; trainers are pointed here by "
        "--verify.service-url. See docs/service.md.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8790, help="port (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="programs at once (%(default)s)")
    parser.add_argument(
        "--deadline-s", type=float, default=6.0, help="limit of one judgement (%(default)s)"
    )
    parser.set_defaults(run=_verify_serve, parser=parser)


def _verify_serve(parsed: argparse.Namespace, rest: list[str]) -> int:
    from cipo_jax.verify.remote import TOKEN_VARIABLE
    from cipo_jax.verify.service import serve

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ValueError(
            f"the environment variable {TOKEN_VARIABLE} must hold the secret that every request "
            f"has to carry: export {TOKEN_VARIABLE}=$(python -c 'import secrets; "
            "print(secrets.token_urlsafe())'), and the same on the trainers."
        )
    serve(
        Verify(workers=parsed.workers, deadline_s=parsed.deadline_s),
        token=token,
        host=parsed.host,
        port=parsed.port,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
