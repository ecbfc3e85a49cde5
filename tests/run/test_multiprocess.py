"""Runs of several processes on this machine, started and killed as they are on several hosts.

The reference is the same run in one process. Most of the time is compilation, in each process
anew: machine code is not optimised, and problems, corrections and evaluations share their shapes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

SMALL = (
    "--prompts.max-prompt-tokens", "208", "--prompts.max-attempt-tokens", "16",
    "--prompts.max-correction-prompt-tokens", "208", "--sampling.samples-per-prompt", "4",
    "--sampling.max-new-tokens", "8", "--train.prompts-per-step", "4", "--train.row-tokens", "256",
    "--train.rows-per-microbatch", "4", "--train.remat", "none", "--log.tensorboard", "false",
    "--evaluation.problems", "4",
    "--evaluation.samples-per-problem", "4", "--evaluation.corrections-per-attempt", "4",
    "--evaluation.max-new-tokens", "8",
)  # fmt: skip
PEER_TIMEOUT_S = 30


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def start(run_dir: Path, cache: Path, *arguments: str, devices: int = 1) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Threads of XLA's pool. With one for each device, a busy machine now and then leaves a
        # device waiting in a collective for another: presumably that finds no thread.
        "NPROC": "16",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = [
        sys.executable, "-m", "cipo_jax.cli", "train", str(ROOT / "configs" / "smoke.yaml"),
        "--run-dir", str(run_dir), *SMALL, *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    _started.append(process)
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_all(run_dir: Path, cache: Path, count: int, *arguments: str) -> list[subprocess.Popen]:
    others = (
        "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count),
        "--peer-timeout-s", str(PEER_TIMEOUT_S),
    )  # fmt: skip
    return [
        start(run_dir, cache, *others, "--process-id", str(i), *arguments) for i in range(count)
    ]


def finish(*running: subprocess.Popen) -> list[str]:
    outputs = [process.communicate(timeout=500)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def figures(run_dir: Path) -> list[dict]:
    """The metrics of each step but the clock's."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "throughput/"))}
        for line in lines
    ]


def rollouts(run_dir: Path) -> list[list[dict]]:
    files = sorted((run_dir / "rollouts").glob("*.parquet"))
    exact = ["problem_id", "stream", "token_ids", "status", "answer", "anchor", "advantage"]
    return [pyarrow.parquet.read_table(f, columns=exact).to_pylist() for f in files]


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """The same rollouts id for id, the same verdicts and anchors, and figures up to rounding, as
    the first steps of the reference."""
    num_steps = len(figures(run_dir))
    expected = rollouts(reference)[:num_steps]
    assert rollouts(run_dir) == expected
    assert len(expected) == num_steps > 0
    for ours, theirs in zip(figures(run_dir), figures(reference)[:num_steps], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(
                np.float64(ours[name]), np.float64(theirs[name]), rtol=1e-4, atol=1e-6, err_msg=name
            )
    assert any(line["grad/norm"] > 0 for line in figures(run_dir)), "nothing was learned"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of one process on one device, long enough for every comparison."""
    run_dir = tmp_path_factory.mktemp("runs") / "alone"
    finish(start(run_dir, cache, "--train.steps", "16"))
    return run_dir


def wait_for(condition: Callable[[], bool], *running: subprocess.Popen) -> None:
    deadline = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < deadline
        for process in running:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def wait_for_steps(run_dir: Path, count: int, *running: subprocess.Popen) -> None:
    wait_for(lambda: len(figures(run_dir)) >= count, *running)


def last_checkpoint(run_dir: Path) -> int:
    return max(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_run_that_is_stopped_and_killed_goes_on_in_another_layout(tmp_path, cache, alone) -> None:
    """Two processes, of which one is asked to stop, before the first step and after it; four with
    tensor parallelism, of which one is killed; then one process with two devices; against a run on
    one device that nothing happened to.
    """
    run_dir = tmp_path / "several"
    saving = ("--checkpoint.every", "1")
    endless = (*saving, "--train.steps", "1000")
    first, second = start_all(run_dir, cache, 2, *endless)
    wait_for((run_dir / "environment.json").exists, first, second)
    first.send_signal(signal.SIGTERM)
    assert "stopped after step 0" in finish(first, second)[0]
    assert last_checkpoint(run_dir) == 0
    first, second = start_all(run_dir, cache, 2, *endless)
    wait_for_steps(run_dir, 1, first, second)
    second.send_signal(signal.SIGTERM)
    outputs = finish(first, second)
    stopped = last_checkpoint(run_dir)
    assert f"stopped after step {stopped}" in outputs[0]
    assert not any("WARNING" in output for output in outputs)
    assert "step 1/" in outputs[0]
    assert "step 1/" not in outputs[1]  # one of them speaks

    split = ("--mesh.tensor", "2")
    four = start_all(run_dir, cache, 4, *split, "--allow-changes", *endless)
    wait_for_steps(run_dir, stopped + 2, *four)
    four[2].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for process in four:
        output, _ = process.communicate(timeout=6 * PEER_TIMEOUT_S)
        assert process.returncode not in (0, None)
        if process is not four[2]:
            assert "another task died" in output or "This ends the job" in output
    assert time.monotonic() - killed < 3 * PEER_TIMEOUT_S
    assert json.loads((run_dir / "environment.json").read_text())["devices"]["processes"] == 4
    done = last_checkpoint(run_dir)
    assert done > stopped

    steps = ("--train.steps", str(done + 1))
    finish(start(run_dir, cache, *saving, *steps, *split, devices=2))
    assert [line["step"] for line in figures(run_dir)] == list(range(1, done + 2))
    assert_same_run(run_dir, alone)
    evaluations = [json.loads((r / "evaluations.json").read_text()) for r in (run_dir, alone)]
    assert evaluations[0][0]["per_problem"] == evaluations[1][0]["per_problem"]
    # Control: the comparison sees that one step is not another.
    (run_dir / "rollouts" / "step_000001.parquet").unlink()
    with pytest.raises(AssertionError):
        assert_same_run(run_dir, alone)


def test_adapters_train_the_same_in_two_processes(tmp_path, cache, alone) -> None:
    """Frozen parameters that are the reference as well lie over both."""
    adapted = (
        "--adapter.kind", "lora", "--kl.weight", "0.01", "--train.steps", "3",
        # The first step has nothing to learn from: Adam would make steps of its rounding errors.
        "--optimizer.eps", "1e-4",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(one, cache, *adapted))
    finish(*start_all(two, cache, 2, *adapted))
    assert_same_run(two, one)
    assert figures(two)[-1]["loss/kl"] > 0
    # Control: it is not the run of all parameters.
    norms = [[line["grad/norm"] for line in figures(run_dir)[1:3]] for run_dir in (two, alone)]
    assert not np.isclose(*norms, rtol=0.1).any()


LAYOUTS = {
    "1x8": (1, 8, {"fsdp": 8}),
    "4x1": (4, 1, {"fsdp": 2, "tensor": 2}),
    "1x2": (1, 2, {"fsdp": 2}),
}
"""Processes, devices of each, mesh."""


def start_job(action: str, folder: Path, layout: tuple[int, int, dict]) -> list[subprocess.Popen]:
    count, devices, mesh = layout
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    for index in range(count):
        job = {
            "coordinator": f"127.0.0.1:{port}", "num_processes": count, "process_id": index,
            "peer_timeout_s": PEER_TIMEOUT_S,
        } if count > 1 else {}  # fmt: skip
        command = [
            sys.executable, "-m", "tests.update.saver", action, str(folder),
            json.dumps(mesh), json.dumps(job),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        _started.append(process)
    return _started[-count:]


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    finish(*start_job("save", folder, (2, 4, {"fsdp": 4, "tensor": 2})))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_checkpoint_is_restored_on_another_layout(saved_by_two, layout) -> None:
    """Parameters, moments and host state, bit for bit, and laid out as the new mesh has it."""
    for output in finish(*start_job("restore", saved_by_two, layout)):
        (found,) = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
        # Three trees of eleven matrices and norms, the step, the optimizer's counters.
        assert found["same"] == found["arrays"] > 30
        # Control: what another seed draws is seen as different, in all but the counters.
        assert found["other"] < 3
        assert found["split"] > 25


def test_processes_that_were_started_differently_do_not_run(tmp_path, cache) -> None:
    port = free_port()
    running = [
        start(
            tmp_path, cache, "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2",
            "--process-id", str(i), "--seed", str(i),
        )
        for i in range(2)
    ]  # fmt: skip
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        assert "the processes don't agree on the configuration" in output
        assert "'seed': 1" in output
    assert not (tmp_path / "metrics.jsonl").exists()


def test_incomplete_arguments_are_named(tmp_path, cache) -> None:
    process = start(tmp_path, cache, "--num-processes", "2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--coordinator, --num-processes and --process-id go together" in output
