"""The Colab notebooks: valid, and executed from their first cell to their last on a CPU, small.

Only the settings differ from Colab: a tiny random model, two steps, one made-up problem. Nothing
is installed, since cipo_jax is there.
"""

import json
import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

NOTEBOOKS = {kind: ROOT / "launch" / f"colab_{kind}.ipynb" for kind in ("tpu", "gpu")}
ARGS = (
    "--train.steps 2 --prompts.max-attempt-tokens 16 --prompts.max-correction-prompt-tokens 208 "
    "--sampling.samples-per-prompt 4 --sampling.max-new-tokens 8 --train.prompts-per-step 4 "
    "--train.row-tokens 256 --train.rows-per-microbatch 4 --train.remat none "
    "--evaluation.problems 2 --evaluation.samples-per-problem 4 "
    "--evaluation.corrections-per-attempt 4 --evaluation.max-new-tokens 8"
)
BENCHMARKS = (
    f"--benchmarks amc23 --data {ROOT}/tests/data/made_up_benchmarks --limit 1 --samples 0 "
    "--max-new-tokens 8 --no-corrections --sequences-per-call 4"
)


def sources(kind: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS[kind], as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_a_notebook_is_valid_and_holds_no_outputs(kind) -> None:
    notebook = nbformat.read(NOTEBOOKS[kind], as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_notebooks_differ_in_two_settings_alone() -> None:
    """So that executing one of them tests both."""
    tpu, gpu = sources("tpu"), sources("gpu")
    assert "dtype bfloat16" in tpu[0]
    assert ".[tpu]" in tpu[1]
    tpu[0] = tpu[0].replace("dtype bfloat16", "dtype float32")
    tpu[1] = tpu[1].replace(".[tpu]", ".[cuda12]")
    assert tpu == gpu


def execute(folder: Path, monkeypatch, **variables: str) -> nbformat.NotebookNode:
    environment = {
        "CIPO_CONFIG": str(ROOT / "configs" / "smoke.yaml"),
        "CIPO_ARGS": ARGS,
        "CIPO_RUN": str(folder / "run"),
        "CIPO_BENCHMARKS": BENCHMARKS,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOKS["tpu"], as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def test_a_notebook_trains_evaluates_and_exports(tmp_path, monkeypatch) -> None:
    done = execute(tmp_path, monkeypatch)
    run = tmp_path / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert [e["step"] for e in json.loads((run / "evaluations.json").read_text())] == [0, 2]
    assert (run / "benchmarks" / "summary.md").exists()
    assert (run / "export" / "model.safetensors").exists()
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert "nothing fails" in text
    assert "step 2/2" in text


def test_a_notebook_stops_at_a_command_that_fails(tmp_path, monkeypatch) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="the command above failed"):
        execute(tmp_path, monkeypatch, CIPO_ARGS="--train.steps none")
    assert not (tmp_path / "run").exists()
