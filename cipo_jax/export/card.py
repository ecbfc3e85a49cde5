"""The model card: README.md of an exported folder, from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cipo_jax import __version__
from cipo_jax.config import Config, Lora, ModelSource, PretrainedModel, RandomModel
from cipo_jax.export.check import QUESTIONS, Comparison, NotChecked
from cipo_jax.model.files.load import is_hub_id
from cipo_jax.report.comparison import figures
from cipo_jax.report.run_files import read_evaluations
from cipo_jax.report.tables import table

_USE_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one, or its id on a hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
"""

_USE_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # this one, or its id on a hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder)
"""


def model_card(
    source: ModelSource,
    licence: str | None,
    *,
    dtype: str,
    check: Comparison,
    run: tuple[Path, Config, int] | None,
    is_adapter: bool,
) -> str:
    """Markdown with a YAML head, as model hubs read it.

    Args:
      source: the base model.
      licence: its identifier; None if nothing states it.
      run: folder, configuration and exported step; None for a model that no run trained.
    """
    base = source.path if isinstance(source, PretrainedModel) else f"random {source.preset}"
    title = run[1].name if run else base
    parts = [
        _head(source, licence, is_adapter=is_adapter, is_trained=run is not None),
        f"# {title}\n\n{_what(base, run, dtype, is_adapter)}",
        f"```python\n{_USE_ADAPTER if is_adapter else _USE_MODEL}```",
    ]
    if run is not None:
        folder, cfg, step = run
        parts += [_training(cfg, step), _evaluation(folder, step), _environment(folder)]
    parts += [_agreement(check), _licence(source, licence, is_trained=run is not None)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(source: ModelSource, licence: str | None, *, is_adapter: bool, is_trained: bool) -> str:
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    if is_trained:
        head["tags"] = ["cipo", "rlvr", *(["lora"] if is_adapter else [])]
    if licence:
        head["license"] = licence
    if isinstance(source, PretrainedModel) and is_hub_id(source.path):
        head["base_model"] = source.path
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _what(base: str, run: tuple[Path, Config, int] | None, dtype: str, is_adapter: bool) -> str:
    if run is None:
        return f"`{base}` as it is, written by cipo_jax {__version__} in {dtype}."
    _, cfg, step = run
    kind = "A LoRA adapter of" if is_adapter else "Weights trained from"
    method = "CIPO (reinforcement learning with verifiable rewards, and on corrections of the "
    method += "model's own attempts, arXiv 2605.14539)"
    if not cfg.has_correction:
        method = "reinforcement learning with verifiable rewards"
    merged = ""
    if isinstance(cfg.adapter, Lora) and not is_adapter:
        merged = " The LoRA adapter is merged into the weights."
    return (
        f"{kind} `{base}` by {method} with cipo_jax {__version__}: step {step} of "
        f"{cfg.train.steps}, in {dtype}.{merged} The whole configuration is in `cipo_config.yaml`."
    )


def _training(cfg: Config, step: int) -> str:
    rows = {
        "tasks": _described(cfg.tasks),
        "updates": f"{step * cfg.train.updates_per_step}",
        "prompts per step": f"{cfg.train.prompts_per_step} problems, {cfg.num_anchors} corrections",
        "samples per prompt": f"{cfg.sampling.samples_per_prompt}",
        "new tokens": f"at most {cfg.sampling.max_new_tokens}",
        "trained": _described(cfg.adapter) if isinstance(cfg.adapter, Lora) else "all parameters",
        "objective": _described(cfg.objective),
        "KL weight": f"{cfg.kl.weight:g}",
        "optimizer": _described(cfg.optimizer),
        "compute dtype": cfg.train.compute_dtype,
        "seed": f"{cfg.seed}",
    }
    return f"## Training\n\n{table(('', ''), rows.items())}"


def _evaluation(folder: Path, step: int) -> str:
    by_step = {e["step"]: e for e in read_evaluations(folder)}
    if 0 not in by_step or step not in by_step:
        found = ", ".join(map(str, by_step)) or "no step"
        return (
            f"## Evaluation\n\nNone was made of step {step}: the run evaluated {found} (held-out "
            "problems)."
        )
    before, after = by_step[0], by_step[step]
    rows = figures(before, after)
    return (
        f"## Evaluation\n\nOn {after['problems']} held-out problems, with 95 % bootstrap intervals "
        f"over problems.\n\n{table(('', 'before', f'after {step} steps'), rows)}"
    )


def _environment(folder: Path) -> str:
    file = folder / "environment.json"
    if not file.is_file():
        return ""
    record: Mapping[str, Any] = json.loads(file.read_text())
    devices = record.get("devices", {})
    rows = {
        "devices": f"{devices.get('count')} x {devices.get('kind')}",
        "verifier": record.get("verifier", "not recorded").removeprefix("verifier: "),
        "versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
        "commit": record.get("commit") or "none (an installed package)",
        "started": record.get("started"),
    }
    return f"## Environment\n\n{table(('', ''), rows.items())}"


def _agreement(check: Comparison) -> str:
    if isinstance(check, NotChecked):
        return f"## Check\n\nNot checked against transformers: {check.reason}."
    ids = "the same" if check.has_same_token_ids else "NOT the same"
    answers = "\n".join(
        f"- {prompt} → {' '.join(answer.split()) or '(nothing)'}"
        for prompt, answer in zip(QUESTIONS, check.answers, strict=True)
    )
    return (
        f"## Check\n\nOn export, this folder was loaded by {check.versions} in float32 and asked "
        f"{len(QUESTIONS)} questions. Against the trainer's own forward pass, the largest gap of a "
        f"logit is {check.largest_gap:.2g} (the largest logit is {check.largest_logit:.3g}), and "
        f"{check.greedy_agreement:.1%} of {check.num_tokens} greedily generated tokens are the "
        f"likeliest for both. The tokenizer gives {ids} ids. The answers, cut off after a few "
        f"tokens:\n\n{answers}"
    )


def _licence(source: ModelSource, licence: str | None, *, is_trained: bool) -> str:
    if isinstance(source, RandomModel):
        return "## Licence\n\nThe weights started from random numbers: no base model's licence."
    relation = "derive from" if is_trained else "are those of"
    changed = ", and are changed from it" if is_trained else ""
    stated = (
        f"its files state `{licence}`"
        if licence
        else "its files state none, so look it up before you share these weights"
    )
    return (
        f"## Licence\n\nThese weights {relation} `{source.path}`{changed}. The base model's "
        f"licence governs them: {stated}."
    )


def _described(part: Any) -> str:
    """A section of the configuration in one line."""
    settings = ", ".join(
        f"{name} {'+'.join(value) if isinstance(value, tuple) else value}"
        for name, value in vars(part).items()
        if name != "kind" and value != ""
    )
    return f"{part.kind}: {settings}"
