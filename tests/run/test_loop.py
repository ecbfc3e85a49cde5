"""Whole runs, in processes of their own as a user starts them, on a random tiny model.

The runs see one CPU device (a user's machine); tests that compare meshes are in test_train_step.py.
"""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests import ROOT

SMOKE = ROOT / "configs" / "smoke.yaml"
# Runs after the first find their programs compiled.
CACHE = tempfile.TemporaryDirectory(prefix="cipo-test-compiled-")
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}

LOGGED = {
    "step",
    "reward/base",
    "reward/correction",
    "correction/fix_rate",
    "correction/retention",
    "correction/break_rate",
    "correction/copy_rate",
    "correction/retokenized_share",
    "anchors/ratio_target",
    "anchors/ratio_realised",
    "anchors/count",
    "groups/zero_signal_share",
    "verdict/is_sandboxed",
    "verdict/unknown_share",
    "loss/base",
    "loss/correction",
    "loss/kl",
    "grad/norm",
    "policy/entropy",
    "policy/clip_share",
    "parity/logprob_abs_max",
    "length/base_mean",
    "length/correction_mean",
    "time/rollout_s",
    "time/verify_s",
    "time/correction_s",
    "time/train_s",
    "throughput/sampled_tokens_per_s",
    "throughput/trained_tokens_per_s",
}


def command(run_dir: Path, *overrides: str, config: Path = SMOKE) -> list[str]:
    return [
        sys.executable, "-m", "cipo_jax.cli", "train", str(config),
        "--run-dir", str(run_dir), *overrides,
    ]  # fmt: skip


def train(run_dir: Path, *overrides: str, config: Path = SMOKE) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(run_dir, *overrides, config=config),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def figures(run_dir: Path) -> list[dict]:
    """The metrics that a repeated run must repeat: all but the clock's."""
    return [
        {name: x for name, x in line.items() if not name.startswith(("time/", "throughput/"))}
        for line in metrics(run_dir)
    ]


def token_ids(run_dir: Path) -> list[list[list[int]]]:
    files = sorted((run_dir / "rollouts").glob("*.parquet"))
    return [pyarrow.parquet.read_table(f)["token_ids"].to_pylist() for f in files]


def final_parameters(run_dir: Path) -> list[np.ndarray]:
    import jax

    from cipo_jax.model import presets, transformer
    from cipo_jax.update.checkpoint import restore_params

    params, _ = restore_params(
        run_dir / "checkpoints", transformer.abstract(presets.PRESETS["tiny-llama"])
    )
    return [np.asarray(x) for x in jax.tree.leaves(params)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("runs") / "unbroken"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    finished = train(run_dir, "--train.steps", "4")
    assert finished.returncode == 0, finished.stderr
    cpu_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert cpu_s < 120, "the smoke run must fit into a minute of two cores"
    return run_dir


def test_a_run_leaves_all_that_it_promises(unbroken: Path) -> None:
    lines = metrics(unbroken)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) >= LOGGED
    for name in (
        "config.yaml", "environment.json", "evaluations.json", "finished.json", "metrics.jsonl",
        "plot.png",
    ):  # fmt: skip
        assert (unbroken / name).stat().st_size > 0, name
    evaluations = json.loads((unbroken / "evaluations.json").read_text())
    assert [e["step"] for e in evaluations] == [0, 4]
    assert (unbroken / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len(token_ids(unbroken)) == 4
    assert any(p.name.startswith("events.out") for p in unbroken.rglob("*"))


def test_what_is_undefined_is_null_and_not_zero(unbroken: Path) -> None:
    lines = metrics(unbroken)
    assert all(line["loss/kl"] is None for line in lines)  # there is no reference policy
    for line in lines:
        defined = line["anchors/ratio_realised"]
        assert (line["correction/retention"] is None) == (defined in (None, 0.0))


@pytest.mark.slow
def test_the_resolved_config_runs_again_and_repeats_the_run(unbroken: Path, tmp_path: Path) -> None:
    finished = train(tmp_path, config=unbroken / "config.yaml")
    assert finished.returncode == 0, finished.stderr
    assert figures(tmp_path) == figures(unbroken)
    # The control: another seed does not.
    other = train(tmp_path / "other", "--seed", "1", config=unbroken / "config.yaml")
    assert other.returncode == 0, other.stderr
    assert figures(tmp_path / "other") != figures(unbroken)


@pytest.mark.slow
def test_two_steps_a_new_process_and_two_more_are_four(unbroken: Path, tmp_path: Path) -> None:
    assert train(tmp_path, "--train.steps", "2").returncode == 0
    assert len(metrics(tmp_path)) == 2
    resumed = train(tmp_path, "--train.steps", "4")
    assert resumed.returncode == 0, resumed.stderr
    assert figures(tmp_path) == figures(unbroken)
    assert token_ids(tmp_path) == token_ids(unbroken)
    for ours, theirs in zip(final_parameters(tmp_path), final_parameters(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(tmp_path: Path) -> None:
    """The run continues from the checkpoint before, and counts on from there."""
    options = ("--train.steps", "3", "--checkpoint.every", "1", "--checkpoint.keep", "3")
    first = train(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    whole, parameters = figures(tmp_path), final_parameters(tmp_path)
    newest = tmp_path / "checkpoints" / "3"
    files = [f for f in newest.rglob("*") if f.is_file() and f.stat().st_size > 10_000]
    assert files, "the arrays are in there"
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = train(tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "checkpoints" / "3.damaged").is_dir(), "the damage was noticed"
    assert "step 3/3" in again.stdout, "the step was done again"
    assert figures(tmp_path) == whole
    for one, other in zip(final_parameters(tmp_path), parameters, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_evaluations_are_those_of_the_unbroken_run(tmp_path: Path) -> None:
    """Stopped at a step that is due for an evaluation, before it; the resumed run makes it up."""
    every = ("--evaluation.every", "2")
    assert train(tmp_path / "whole", "--train.steps", "4", *every).returncode == 0
    assert train(tmp_path / "parts", "--train.steps", "2", *every).returncode == 0
    evaluations = tmp_path / "parts" / "evaluations.json"
    first = json.loads(evaluations.read_text())[:1]
    evaluations.write_text(json.dumps(first))
    assert train(tmp_path / "parts", "--train.steps", "4", *every).returncode == 0

    def found(name: str) -> list[dict]:
        record = json.loads((tmp_path / name / "evaluations.json").read_text())
        return [{k: v for k, v in e.items() if k != "seconds"} for e in record]

    assert [e["step"] for e in found("parts")] == [0, 2, 4]
    assert found("parts") == found("whole")


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_exits_well(unbroken: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "--train.steps", "1000"),
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    done = len(metrics(tmp_path))
    assert f"stopped after step {done}" in output
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert max(saved) == done
    compared = min(done, 4)
    assert figures(tmp_path)[:compared] == figures(unbroken)[:compared]


@pytest.mark.slow
def test_without_corrections_a_run_is_plain_grpo_bit_for_bit(tmp_path: Path) -> None:
    """phi = 0 samples no corrections; lambda_c = 0 samples them and trains on none. Both must give
    the parameters of the other, and the same base rollouts; the joint loss must not."""
    runs = {
        "phi": ("--correction.prompts-per-base-prompt", "0"),
        "lambda": ("--correction.weight", "0"),
        "joint": (),
    }
    for name, overrides in runs.items():
        finished = train(tmp_path / name, "--train.steps", "2", *overrides)
        assert finished.returncode == 0, finished.stderr
    phi, weight, joint = (final_parameters(tmp_path / name) for name in runs)
    for x, y in zip(phi, weight, strict=True):
        np.testing.assert_array_equal(x, y)
    assert any((x != y).any() for x, y in zip(phi, joint, strict=True))
    assert any(line["grad/norm"] > 0 for line in metrics(tmp_path / "phi")), "nothing was learned"
    rewards = [[line["reward/base"] for line in metrics(tmp_path / name)] for name in runs]
    assert rewards[0] == rewards[1]
    assert all(line["anchors/count"] == 0 for line in metrics(tmp_path / "phi"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_state(tmp_path: Path) -> None:
    finished = train(
        tmp_path, "--train.steps", "4", "--optimizer.learning-rate", "1e15",
        "--kl.weight", "0.1", "--checkpoint.every", "1",
    )  # fmt: skip
    assert finished.returncode != 0
    assert "step 2" in finished.stderr
    assert "The update was not applied" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert all(np.isfinite(x).all() for x in final_parameters(tmp_path))


FAULT = """
import sys
from cipo_jax import cli
from cipo_jax.run import iteration
roll_out = iteration.roll_out
def at_another_temperature(*args, temperature, **kwargs):
    return roll_out(*args, temperature=0.5 * temperature, **kwargs)
iteration.roll_out = at_another_temperature
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_sampler_at_another_temperature_trips_parity(unbroken: Path, tmp_path: Path) -> None:
    """With the fault put in, `stop` ends the run before the first update, with the evidence; `warn`
    says so, and trains as if nothing had been asked."""

    def run(kind: str) -> subprocess.CompletedProcess:
        arguments = command(
            tmp_path / kind,
            "--train.steps",
            "1",
            "--parity.kind",
            kind,
            "--evaluation.problems",
            "2",
        )[3:]
        return subprocess.run(
            [sys.executable, "-c", FAULT, *arguments],
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    stopped, warned, unwatched = run("stop"), run("warn"), run("off")
    assert stopped.returncode == 2
    assert "cause: everywhere" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    record = json.loads((tmp_path / "stop" / "parity" / "step_000001" / "record.json").read_text())
    assert record["gaps"]["sampled again"]["max"] == 0
    assert record["gaps"]["learning rate 0"]["mean"] > record["parity"]["mean_nats"]
    assert not list((tmp_path / "stop" / "checkpoints").glob("[0-9]*"))
    assert warned.returncode == unwatched.returncode == 0
    assert "cause: everywhere" in warned.stdout
    assert metrics(tmp_path / "warn")[0]["parity/tripped"] == 1
    assert (tmp_path / "warn" / "parity" / "step_000001").is_dir()
    assert not (tmp_path / "off" / "parity").exists()
    for x, y in zip(
        final_parameters(tmp_path / "warn"), final_parameters(tmp_path / "off"), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    # The control: a run without the fault does not trip, under the same limits.
    assert all(line["parity/tripped"] == 0 for line in metrics(unbroken))
    assert all(line["parity/max/last"] < 1e-4 for line in metrics(unbroken))
    assert not (unbroken / "parity").exists()


@pytest.mark.slow
def test_verdicts_that_are_all_unknown_stop_the_run(tmp_path: Path) -> None:
    """A deadline that no judgement can meet makes every verdict unknown."""
    data = tmp_path / "problems.jsonl"
    problems = [{"question": f"Solve {i}.", "answer": r"\frac{\sqrt{3}}{2}"} for i in range(40)]
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    config = tmp_path / "config.yaml"
    text = SMOKE.read_text()
    assert "kind: generated" in text
    import yaml

    record = yaml.safe_load(text)
    record["tasks"] = {
        "kind": "file", "path": str(data), "num_held_out": 2, "answer_format": "", "judge": "math",
    }  # fmt: skip
    config.write_text(yaml.safe_dump(record))
    finished = train(tmp_path / "run", "--verify.deadline-s", "1e-6", config=config)
    assert finished.returncode != 0
    assert "no verdict" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("--prompts.max-prompt-tokens", "8"), "prompts.max_prompt_tokens"),
        (("--mesh.data", "3"), "mesh"),
        (("--train.stepz", "3"), "train.steps"),
        (("--train.steps", "many"), "train.steps"),
        (("--model.preset", "no-such-model"), "tiny-llama"),
    ],
    ids=["long-prompt", "mesh", "unknown-field", "bad-value", "unknown-preset"],
)
@pytest.mark.slow
def test_bad_input_is_one_clear_line(overrides: tuple[str, ...], says: str, tmp_path: Path) -> None:
    finished = train(tmp_path, *overrides)
    assert finished.returncode == 2
    assert says in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_batch_that_does_not_divide_over_the_devices_is_refused() -> None:
    """Eight devices, as tests/conftest.py makes them; the smoke config suits them, a change does
    not."""
    from cipo_jax.config import configfile
    from cipo_jax.mesh.sharding import check_divisible, make_mesh

    cfg = configfile.load(SMOKE)
    check_divisible(cfg, make_mesh(cfg.mesh))
    changed = configfile.load(SMOKE, ["--train.rows-per-microbatch", "12"])
    with pytest.raises(ValueError, match=r"train.rows_per_microbatch is 12, .* 8 devices"):
        check_divisible(changed, make_mesh(changed.mesh))


@pytest.mark.slow
def test_a_folder_with_another_run_is_left_alone(unbroken: Path) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes()
    finished = train(unbroken, "--train.steps", "4", "--sampling.temperature", "0.5")
    assert finished.returncode == 2
    assert "sampling.temperature was 1.0, is 0.5" in finished.stderr
    assert (unbroken / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_programs_are_judged_in_the_sandbox_and_trained_on(tmp_path: Path) -> None:
    """The code config end to end, with a random model in the place of the pretrained one."""
    finished = train(
        tmp_path, "--model.kind", "random", "--train.steps", "1", "--evaluation.problems", "2",
        "--prompts.max-prompt-tokens", "448", "--prompts.max-correction-prompt-tokens", "768",
        config=ROOT / "configs" / "programs.yaml",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "verifier sandbox: " in finished.stdout
    rows = pyarrow.parquet.read_table(tmp_path / "rollouts" / "step_000001.parquet").to_pylist()
    assert {row["stream"] for row in rows} == {"base", "correction"}
    assert {row["status"] for row in rows} == {"wrong"}  # random bytes are no programs
    assert metrics(tmp_path)[0]["verdict/is_sandboxed"] is True
    assert not {row["reason"] for row in rows} & {"infra", "timeout"}

    regraded = subprocess.run(
        [sys.executable, "-m", "cipo_jax.cli", "regrade", str(tmp_path)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert regraded.returncode == 0, regraded.stderr
    assert "wrong" in regraded.stdout


@pytest.mark.slow
def test_a_profile_is_a_trace_of_the_second_step(tmp_path: Path) -> None:
    done = train(tmp_path, "--train.steps", "2", "--evaluation.problems", "2", "--profile")
    assert done.returncode == 0, done.stderr
    assert f"profile: {tmp_path / 'profile'}" in done.stdout
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert any("step" in name for name in names)
    assert any("score" in name or "complete" in name for name in names), "the sampler is in it"
