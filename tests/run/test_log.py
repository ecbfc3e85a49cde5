"""What a run writes down, read back with the tools its readers use."""

import importlib.util
import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cipo_jax.config import Log
from cipo_jax.run.log import RolloutRow, RunLog, environment

QUIET = Log(tensorboard=False)


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_log(run_dir: Path, settings: Log = QUIET, **fields) -> RunLog:
    return RunLog(run_dir, settings, **{"first_step": 0, "num_steps": 4, **fields})


def row(step: int, **fields) -> RolloutRow:
    values = {
        "step": step,
        "stream": "correction",
        "problem_id": "addition:3,4",
        "group": 1,
        "sample": 2,
        "prompt": "3 + 4?",
        "completion": "7\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "prompt_ids": [1, 2, 3],
        "token_ids": [7, 0],
        "logprobs": [-0.25, -1.5],
        "is_finished": True,
        "anchor": "8",
        "is_anchor_right": False,
        "reference": "{}",
        "status": "unknown",
        "reason": "infra",
        "answer": None,
        "reward": math.nan,
        "advantage": -0.5,
    }
    return RolloutRow(**{**values, **fields})


def test_a_step_is_one_line_with_nulls_and_whole_numbers(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        log.step(
            1,
            {
                "reward/base": np.float32(0.25),
                "correction/retention": None,
                "loss/kl": math.nan,
                "grad/norm": np.float64("inf"),
                "batch/rows": np.int32(3),
                "anchors/count": 2,
                "grad/is_finite": np.bool_(True),
                "scalar": np.array(1.5),
            },
        )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 1
    assert '"batch/rows": 3,' in text
    assert lines(tmp_path) == [
        {
            "step": 1,
            "reward/base": 0.25,
            "correction/retention": None,
            "loss/kl": None,
            "grad/norm": None,
            "batch/rows": 3,
            "anchors/count": 2,
            "grad/is_finite": True,
            "scalar": 1.5,
        }
    ]


def test_a_line_is_there_before_the_run_ends(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    log.step(1, {"a": 1})
    assert lines(tmp_path) == [{"step": 1, "a": 1}]
    log.close()


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.step(step, {"run": 1})
            log.rollouts(step, [row(step)])
    # The crash: half a line, half a file. The last checkpoint was of step 2.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ru')
    (tmp_path / "rollouts" / "step_000004.tmp").write_bytes(b"PAR1")
    with run_log(tmp_path, first_step=2) as log:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2]
        assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [
            "step_000001.parquet",
            "step_000002.parquet",
        ]
        log.step(3, {"run": 2})
    assert [(line["step"], line["run"]) for line in lines(tmp_path)] == [(1, 1), (2, 1), (3, 2)]


def test_a_run_from_the_start_begins_with_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        with run_log(tmp_path) as log:
            log.step(1, {"a": 1})
    assert len(lines(tmp_path)) == 1


def test_rollouts_come_back_as_they_went(tmp_path: Path) -> None:
    rows = [
        row(12),
        row(
            12, stream="base", anchor=None, is_anchor_right=None, status="right", reason="ok",
            answer="7", reward=1.0,
        ),
    ]  # fmt: skip
    with run_log(tmp_path) as log:
        log.rollouts(12, rows)
        log.rollouts(13, [])
    assert [p.name for p in sorted((tmp_path / "rollouts").iterdir())] == [
        "step_000012.parquet",
        "step_000013.parquet",
    ]
    table = pq.read_table(tmp_path / "rollouts")
    back = [RolloutRow(**record) for record in table.to_pylist()]
    assert math.isnan(back[0].reward)
    assert [vars(r) | {"reward": 0} for r in back] == [vars(r) | {"reward": 0} for r in rows]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    settings = Log(tensorboard=True)
    with run_log(tmp_path, settings) as log:
        for step in (1, 2, 3):
            log.step(step, {"reward/base": float(step), "loss/kl": None})
    with run_log(tmp_path, settings, first_step=2) as log:
        log.step(3, {"reward/base": 30.0})
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    content = b"".join(path.read_bytes() for path in files)
    assert b"reward/base" in content
    assert b"loss/kl" not in content


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install 'cipo-jax\[wandb\]'"):
        run_log(tmp_path, Log(tensorboard=False, wandb_project="p"))


def test_of_several_processes_one_writes(tmp_path: Path, capsys) -> None:
    with run_log(tmp_path / "first"), run_log(tmp_path / "other", is_writer=False) as log:
        log.step(1, {"a": 1})
        log.message("hello")
        log.environment({}, verifier="")
        log.rollouts(1, [row(1)])
    assert (tmp_path / "first" / "metrics.jsonl").exists()
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr().out == ""


def test_environment_is_read_from_the_machine(tmp_path: Path) -> None:
    os.environ["CIPO_TEST_SECRET"] = "hunter2"
    with run_log(tmp_path) as log:
        log.environment({"kind": "cpu", "count": 8}, verifier="none")
    text = (tmp_path / "environment.json").read_text()
    record = json.loads(text)
    assert record["devices"] == {"kind": "cpu", "count": 8}
    assert record["versions"]["numpy"] == np.__version__
    assert record["python"] == sys.version.split()[0]
    assert "hunter2" not in text


def test_the_commit_is_none_outside_a_checkout(tmp_path: Path) -> None:
    source = Path(environment.__code__.co_filename)
    copy = tmp_path / "somewhere" / "environment.py"
    copy.parent.mkdir()
    copy.write_text(source.read_text())
    (copy.parent / "__init__.py").touch()
    code = "from somewhere.environment import environment; print(environment()['commit'])"

    def commit() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    assert commit() == "None"
    git("init", "-q")
    assert commit() == "None"  # a checkout around it that isn't its own
    git("add", "somewhere")
    git("commit", "-q", "-m", "all")
    assert len(commit()) == 40
    copy.write_text(source.read_text() + "\n")
    assert commit().endswith("+changes")


def test_lines_without_a_terminal(tmp_path: Path, capsys) -> None:
    with run_log(tmp_path) as log:
        log.message("verifier sandbox: [strict]")
        log.step(
            1,
            {
                "reward/base": 0.53125,
                "correction/fix_rate": 0.25,
                "correction/retention": None,
                "throughput/sampled_tokens_per_s": 1234.5,
            },
        )
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.splitlines() == [
        "verifier sandbox: [strict]",
        "step 1/4  reward 0.531  fix 0.250  keep –  tok/s 1,234  eta 0:00:00",
    ]


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from cipo_jax.config import Log\n"
        "from cipo_jax.run.log import RunLog\n"
        "folder, settings = pathlib.Path(sys.argv[1]), Log(tensorboard=False)\n"
        "log = RunLog(folder, settings, first_step=0, num_steps=2)\n"
        "log.step(1, {'reward/base': 0.5}); log.message('stopped'); log.close()\n"
    )
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[" in shown
    for text in (b"step 1/2", b"reward 0.500", b"stopped"):
        assert text in shown


def test_jax_is_not_loaded() -> None:
    code = "import sys, cipo_jax.run.log; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
