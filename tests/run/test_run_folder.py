"""Where a run may live."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cipo_jax.config import AdamW, Config, configfile
from cipo_jax.run import run_folder
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.verify.verdict import NumberReference
from tests import ROOT


def start(folder: Path, cfg: Config) -> None:
    """A run that got as far as its first evaluation."""
    run_folder.open_folder(folder, cfg)
    (folder / "evaluations.json").write_text("[]")


SMOKE = configfile.load(ROOT / "configs" / "smoke.yaml")


def with_steps(cfg: Config, steps: int) -> Config:
    return replace(cfg, train=replace(cfg.train, steps=steps))


def test_a_new_run_takes_the_name_and_an_unfinished_one_is_gone_on_with(tmp_path: Path) -> None:
    folder = run_folder.find(SMOKE, tmp_path)
    assert folder == tmp_path / "smoke"
    start(folder, SMOKE)
    assert configfile.load(folder / "config.yaml") == SMOKE
    assert run_folder.find(SMOKE, tmp_path) == folder


def test_a_finished_run_and_another_config_get_a_folder_of_their_own(tmp_path: Path) -> None:
    start(tmp_path / "smoke", SMOKE)
    other = replace(SMOKE, seed=1)
    assert run_folder.find(other, tmp_path) == tmp_path / "smoke-2"
    run_folder.finish(tmp_path / "smoke", steps=4)
    assert run_folder.find(SMOKE, tmp_path) == tmp_path / "smoke-2"


def test_a_change_that_breaks_exactness_is_refused_by_name(tmp_path: Path) -> None:
    start(tmp_path, SMOKE)
    changed = replace(SMOKE, sampling=replace(SMOKE.sampling, temperature=0.5))
    with pytest.raises(
        run_folder.ChangedConfigError, match=r"sampling.temperature was 1.0, is 0.5"
    ):
        run_folder.open_folder(tmp_path, changed)
    assert configfile.load(tmp_path / "config.yaml") == SMOKE


def test_a_variant_that_changes_is_named_too(tmp_path: Path) -> None:
    start(tmp_path, SMOKE)
    fixed = configfile.load(tmp_path / "config.yaml", ["--correction.controller.kind", "fixed"])
    with pytest.raises(run_folder.ChangedConfigError, match=r"correction.controller.kind"):
        run_folder.open_folder(tmp_path, fixed)


def test_more_steps_are_harmless_only_under_a_constant_rate(tmp_path: Path) -> None:
    start(tmp_path / "constant", SMOKE)
    run_folder.open_folder(tmp_path / "constant", with_steps(SMOKE, 9))
    falling = replace(SMOKE, optimizer=AdamW(schedule="linear"))
    start(tmp_path / "linear", falling)
    with pytest.raises(run_folder.ChangedConfigError, match=r"train.steps was 4, is 9"):
        run_folder.open_folder(tmp_path / "linear", with_steps(falling, 9))


def test_a_start_that_failed_does_not_claim_the_folder(tmp_path: Path) -> None:
    run_folder.open_folder(tmp_path, SMOKE)
    mended = replace(SMOKE, prompts=replace(SMOKE.prompts, max_prompt_tokens=128))
    run_folder.open_folder(tmp_path, mended)
    assert configfile.load(tmp_path / "config.yaml") == mended


def problems(*answers: int) -> tuple[Problem, ...]:
    return tuple(
        Problem(
            id=f"p{i}", question=f"Question {i}?", answer_format="A number.",
            reference=NumberReference(answer=str(answer)),
        )
        for i, answer in enumerate(answers)
    )  # fmt: skip


@pytest.mark.parametrize(
    "train", [(1, 2, 4), (1, 2), (1, 2, 3, 4), (2, 1, 3)],
    ids=["an answer", "one less", "one more", "order"],
)  # fmt: skip
def test_other_problems_under_the_same_name_are_refused(tmp_path: Path, train: tuple) -> None:
    same = Tasks(train=problems(1, 2, 3), held_out=problems(9))
    run_folder.open_folder(tmp_path, SMOKE)
    run_folder.check_problems(tmp_path, same)
    (tmp_path / "evaluations.json").write_text("[]")
    run_folder.check_problems(tmp_path, same)
    changed = Tasks(train=problems(*train), held_out=problems(9))
    with pytest.raises(run_folder.ChangedConfigError, match=r"problems \(train\) was .*sha256"):
        run_folder.check_problems(tmp_path, changed)
    held_out = Tasks(train=same.train, held_out=problems(8))
    with pytest.raises(run_folder.ChangedConfigError, match=r"problems \(held_out\) was"):
        run_folder.check_problems(tmp_path, held_out)


def test_changes_that_are_allowed_are_kept(tmp_path: Path) -> None:
    start(tmp_path, SMOKE)
    run_folder.check_problems(tmp_path, Tasks(train=problems(1), held_out=()))
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    changed = replace(SMOKE, sampling=replace(SMOKE.sampling, temperature=0.5))
    run_folder.open_folder(tmp_path, changed, allow_changes=True)
    tasks = Tasks(train=problems(2), held_out=())
    run_folder.check_problems(tmp_path, tasks, allow_changes=True)
    lines = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert [line["field"] for line in lines] == ["sampling.temperature", "problems (train)"]
    assert [line["after_step"] for line in lines] == [6, 6]
    assert (lines[0]["was"], lines[0]["is"]) == (1.0, 0.5)
    # They are the run's own from then on.
    run_folder.open_folder(tmp_path, changed)
    run_folder.check_problems(tmp_path, tasks)
    with pytest.raises(run_folder.ChangedConfigError, match=r"temperature was 0.5, is 1.0"):
        run_folder.open_folder(tmp_path, SMOKE)
