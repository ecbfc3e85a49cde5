"""Studies: what a file may say, figures of fabricated runs by hand, and a real one in two arms."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cipo_jax import cli
from cipo_jax.report import study as page
from cipo_jax.run import study
from tests import ROOT

SMOKE = ROOT / "configs" / "smoke.yaml"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_arms_of_the_quickstart_study() -> None:
    read = study.read(ROOT / "configs" / "studies" / "quickstart.yaml")
    assert list(read.arms) == [
        "cipo", "grpo", "grpo-equal-rollouts", "grpo-equal-tokens", "failures-only",
        "label-revealed", "wrong-context", "fixed-ratio", "no-risk-penalty", "no-preference",
    ]  # fmt: skip
    assert read.seeds == (0, 1, 2)
    assert all(arm.overrides["evaluation.samples_per_problem"] == 16 for arm in read.arms.values())
    assert list(study.read(ROOT / "configs/studies/quickstart.yaml", arms=["grpo"]).arms) == [
        "grpo"
    ]
    with pytest.raises(ValueError, match="no arm gpro; it has cipo, grpo"):
        study.read(ROOT / "configs/studies/quickstart.yaml", arms=["gpro"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nconfig: smoke.yaml\nseeds: []\narms: {a: }", "seeds"),
        ("name: a\nconfig: smoke.yaml\nseeds: [0, 0]\narms: {a: }", "a seed is listed twice"),
        ("name: a\nconfig: smoke.yaml\nseeds: [0]\narms: {}", "arms"),
        ("name: a\nconfig: smoke.yaml\nseeds: [0]\narms: {a/b: }", "can't be the name"),
        ("name: a\nconfig: none.yaml\nseeds: [0]\narms: {a: }", "no configuration file"),
        ("name: a\nconfig: smoke.yaml\nseeds: [0]\nrams: {a: }", "rams"),
        (
            "name: a\nconfig: smoke.yaml\nseeds: [0]\narms: {a: {set: {train.stebs: 1}}}",
            r"arm 'a':.*Did you mean train.steps",
        ),
        (
            "name: a\nconfig: smoke.yaml\nseeds: [0]\n"
            "arms: {a: {equal_tokens: {arm: b, paced_by: c}}}",
            "needs the tokens of 'b', which must come before it",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    shutil.copy(SMOKE, tmp_path)
    with pytest.raises(ValueError, match=message):
        study.read(write(tmp_path / "study.yaml", text))


def evaluation(step: int, right: list[int]) -> dict:
    """Four samples a problem."""
    estimate = {"mean": sum(right) / (4 * len(right)), "low": 0.0, "high": 1.0}
    return {
        "step": step,
        "streams": {s: {"accuracy": estimate} for s in ("greedy", "sampled")},
        "correction": {"fix_rate": estimate, "retention": {**estimate, "mean": None}},
        "pass_at_k": {"1": estimate, "2": estimate},
        "per_problem": [
            {"problem_id": str(q), "sampled_right": c, "sampled_known": 4}
            for q, c in enumerate(right)
        ],
    }


def fabricate(run: Path, right: list[int], tokens: list[int]) -> None:
    run.mkdir(parents=True)
    (run / "evaluations.json").write_text(
        json.dumps([evaluation(0, [0] * len(right)), evaluation(len(tokens), right)])
    )
    lines = [json.dumps({"tokens/sampled": t, "time/step_s": 2.0}) + "\n" for t in tokens]
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "finished.json").write_text("{}")


def test_figures_by_hand(tmp_path: Path) -> None:
    fabricate(tmp_path / "cipo" / "seed-0", [4, 2], [100, 120])
    fabricate(tmp_path / "cipo" / "seed-1", [4, 4], [90, 90])
    fabricate(tmp_path / "grpo" / "seed-0", [2, 2], [50, 60])
    fabricate(tmp_path / "grpo" / "seed-1", [2, 0], [40, 40])
    shutil.copytree(tmp_path / "grpo" / "seed-1", tmp_path / "grpo" / "seed-2")
    (tmp_path / "grpo" / "seed-2" / "finished.json").unlink()
    text = page.write(tmp_path, name="by hand", arms=["cipo", "grpo", "not-run"]).read_text()
    found = json.loads((tmp_path / "study.json").read_text())
    assert list(found) == ["cipo", "grpo"]
    # By problem, over seeds: cipo 1 and 3/4, grpo 1/2 and 1/4.
    assert found["cipo"]["accuracy"]["mean"] == pytest.approx(7 / 8)
    assert found["grpo"]["accuracy"]["mean"] == pytest.approx(3 / 8)
    # Both problems differ by the same, so the paired interval has no width.
    assert found["grpo"]["difference"] == pytest.approx({"mean": -0.5, "low": -0.5, "high": -0.5})
    assert found["cipo"]["difference"] is None
    assert found["grpo"]["seeds"] == [0, 1]
    assert found["cipo"]["by_seed"]["accuracy"] == [6 / 8, 8 / 8]
    assert found["cipo"]["by_seed"]["tokens"] == [220, 180]
    assert found["cipo"]["by_seed"]["seconds"] == [4.0, 4.0]
    assert "| cipo | 2 |" in text
    assert "(0.750 to 1.000)" in text
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no finished run"):
        page.write(tmp_path / "cipo", name="", arms=["cipo"])
    # 220 tokens at (50 + 60) / 2 a step, and 180 at 40.
    equal = study.EqualTokens(arm="cipo", paced_by="grpo")
    assert [study.equal_steps(tmp_path, equal, seed) for seed in (0, 1)] == [4, 4]


@pytest.mark.slow
def test_a_real_study_in_two_arms(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(os.environ, "JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setitem(os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    file = write(
        tmp_path / "tiny.yaml",
        f"name: tiny\nconfig: {SMOKE}\nseeds: [3]\n"
        "set: {train.steps: 1, log.tensorboard: false}\n"
        "arms:\n  cipo:\n  grpo: {set: {correction.prompts_per_base_prompt: 0}}\n",
    )
    output = tmp_path / "out"
    assert cli.main(["study", str(file), "--output", str(output)]) == 0
    found = json.loads((output / "study.json").read_text())
    assert [found[arm]["seeds"] for arm in ("cipo", "grpo")] == [[3], [3]]
    # Before training both are the same model on the same problems; the correction stream costs.
    by_seed = [found[arm]["by_seed"] for arm in ("cipo", "grpo")]
    assert by_seed[0]["accuracy_before"] == by_seed[1]["accuracy_before"]
    assert by_seed[0]["tokens"][0] > by_seed[1]["tokens"][0] > 0
    # Again: nothing is run.
    before = (output / "cipo" / "seed-3" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert cli.main(["study", str(file), "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert (output / "cipo" / "seed-3" / "metrics.jsonl").stat().st_mtime_ns == before
    # A run that fails ends the study with its last lines.
    broken = file.read_text().replace(
        "arms:", "arms:\n  long: {set: {prompts.max_prompt_tokens: 9}}"
    )
    file.write_text(broken)
    assert cli.main(["study", str(file), "--output", str(output)]) == 2
    assert "max_prompt_tokens" in capsys.readouterr().err
