"""A run that is killed over and over ends as if nothing had happened, bit for bit.

Every life of the run is a process of its own, forked from a server that has imported the package
and nothing more (no device, no threads): a start then takes what tracing takes.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest

from cipo_jax.config import configfile
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.update.checkpoint import Checkpoints
from cipo_jax.update.train_step import abstract_state
from tests import ROOT

pytestmark = pytest.mark.slow

SMOKE = ROOT / "configs" / "smoke.yaml"
STEPS, KILLS = 40, 20
SETTINGS = [
    "--train.steps", str(STEPS), "--checkpoint.every", "1", "--log.tensorboard", "false",
    "--train.prompts-per-step", "4", "--train.rows-per-microbatch", "1", "--train.remat", "none",
    "--sampling.prompts-per-call", "4", "--correction.anchor-source", "buffer",
    "--correction.drop-truncated-anchors", "false",
    "--evaluation.every", "20", "--evaluation.problems", "4", "--evaluation.prompts-per-call", "4",
]  # fmt: skip


def live(folder: str, *more: str, slow_sampling: bool = False) -> None:
    """One life of the run, in this process: what `cipo train` does."""
    output = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from cipo_jax.cli import main
    from cipo_jax.run import iteration

    if slow_sampling:  # says when it has begun, and takes its time
        roll_out = iteration.roll_out

        def slowly(*args, **kwargs):
            Path(f"{folder}.sampling").touch()
            time.sleep(0.5)
            return roll_out(*args, **kwargs)

        iteration.roll_out = slowly
    sys.exit(main(["train", str(SMOKE), "--run-dir", folder, *SETTINGS, *more]))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a life of the run in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        # One device, as on a user's machine, and every program compiled once for all lives.
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["cipo_jax.run.loop"])

        def start(folder, *more, **kwargs):
            process = context.Process(target=live, args=(str(folder), *more), kwargs=kwargs)
            process.start()
            return process

        yield start


def finish(process, folder):
    process.join(900)
    assert process.exitcode == 0, Path(f"{folder}.out").read_text()[-3000:]


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    finish(start(folder), folder)
    # There is something to lose: most steps change the parameters, and the buffer holds attempts.
    assert sum(line["grad/norm"] > 0 for line in results(folder)["metrics"]) > STEPS / 2
    assert state(folder)[1]["method"]["buffer"]
    return folder


def num_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def is_saving(folder: Path) -> bool:
    return any("tmp" in p.name for p in (folder / "checkpoints").glob("*"))


def results(folder: Path) -> dict:
    """All that a run leaves but the clock's readings."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = json.loads((folder / "evaluations.json").read_text())
    tables = sorted((folder / "rollouts").iterdir())
    return {
        "metrics": [
            {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))}
            for line in metrics
        ],
        "evaluations": [{k: v for k, v in e.items() if k != "seconds"} for e in evaluations],
        "rollouts": {p.name: pyarrow.parquet.read_table(p).to_pylist() for p in tables},
    }


def state(folder: Path):
    """The newest checkpoint, on the host."""
    cfg = configfile.load(folder / "config.yaml")
    abstract = abstract_state(cfg, PRESETS["tiny-llama"], make_mesh(cfg.mesh, jax.devices()[:1]))
    checkpoints = Checkpoints(folder / "checkpoints", cfg.checkpoint.keep)
    restored = checkpoints.restore_latest(abstract)
    checkpoints.close()
    return jax.tree.map(np.asarray, restored)


def assert_same_run(folder: Path, other: Path) -> None:
    mine, theirs = results(folder), results(other)
    for part in mine:
        # As text, where NaN is NaN; and not by a plain `assert`, which takes minutes to work out
        # how two texts of this length differ.
        if repr(mine[part]) != repr(theirs[part]):
            raise AssertionError(f"{folder} and {other} differ in their {part}")
    jax.tree.map(np.testing.assert_array_equal, state(folder), state(other))


def test_killed_twenty_times_it_is_the_unbroken_run(start, unbroken, tmp_path):
    """The kills fall in turn while a checkpoint is written, at any time after a step, and at any
    time of the start, where checkpoints are restored and what is left over is cleaned up."""
    rng = random.Random(0)
    folder, kills, mid_save, start_s = tmp_path / "killed", 0, 0, 1.0
    while kills < KILLS:
        before, began = num_lines(folder), time.monotonic()
        process = start(folder)
        moment = ("save", "step", "start")[kills % 3]
        if moment == "start" and kills > 3:
            process.join(rng.uniform(0, start_s))
        else:
            # A life first drops the lines of steps that were not saved, and then adds its own.
            seen = before
            while process.is_alive() and num_lines(folder) <= min(seen, before):
                seen = min(seen, num_lines(folder))
                time.sleep(0.002)
            start_s = time.monotonic() - began
            if moment == "step":
                process.join(rng.uniform(0, 0.2))
            while moment == "save" and process.is_alive() and not is_saving(folder):
                time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, Path(f"{folder}.out").read_text()[-3000:]
        kills += 1
        mid_save += is_saving(folder)
    assert mid_save >= 5
    finish(start(folder), folder)

    assert [line["step"] for line in results(folder)["metrics"]] == [*range(1, STEPS + 1)]
    assert len(results(folder)["rollouts"]) == STEPS
    assert [e["step"] for e in results(folder)["evaluations"]] == [0, 20, 40]
    assert not is_saving(folder)
    assert_same_run(folder, unbroken)


def test_another_state_is_another_run(start, unbroken, tmp_path):
    """The control: one parameter is off by one bit in the checkpoint that the run goes on from."""
    folder = tmp_path / "changed"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    train_state, host = state(folder)
    host = jax.tree.map(lambda x: x.item(), host)
    embed = np.array(train_state.params.embed)
    embed.view(np.uint32)[:] ^= 1 << 12
    checkpoints = Checkpoints(tmp_path / "other", keep=1)
    changed = train_state.replace(params=train_state.params.replace(embed=embed))
    checkpoints.save(STEPS - 1, jax.tree.map(jax.numpy.asarray, changed), host)
    checkpoints.close()
    shutil.rmtree(folder / "checkpoints")
    (tmp_path / "other").rename(folder / "checkpoints")
    finish(start(folder), folder)
    with pytest.raises(AssertionError):
        assert_same_run(folder, unbroken)


def test_sigterm_in_the_middle_of_sampling_saves_and_exits(start, unbroken, tmp_path):
    """Within one step, however far the run is; the next life ends as the unbroken run."""
    folder = tmp_path / "terminated"
    marker = Path(f"{folder}.sampling")
    for _ in range(2):
        process = start(folder, slow_sampling=True)
        while num_lines(folder) < 1:
            assert process.is_alive(), Path(f"{folder}.out").read_text()[-3000:]
            time.sleep(0.01)
        marker.unlink(missing_ok=True)
        while not marker.exists():
            time.sleep(0.002)
        before = num_lines(folder)
        process.terminate()
        process.join(60)
        assert process.exitcode == 0
        done = num_lines(folder)
        assert before <= done <= before + 1
        saved = [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
        assert max(saved) == done < STEPS
        assert f"stopped after step {done}" in Path(f"{folder}.out").read_text()
    finish(start(folder), folder)
    assert_same_run(folder, unbroken)
