"""A folder with an adapter alone, in the layout of the peft library."""

from __future__ import annotations

import importlib.util
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cipo_jax.config import Lora, PretrainedModel
from cipo_jax.mesh.sharding import letters_of
from cipo_jax.model.adapter import Adapter
from cipo_jax.model.files import hf
from cipo_jax.model.files.load import resolve


def write(trained: Adapter, cfg: Lora, base: PretrainedModel, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors, float32.

    In a file, A is [R, in] and B is [out, R], each per layer and with heads merged.
    """
    modules = {name: hf.LAYOUT[f"blocks.{name}"][0] for name in cfg.projections}
    tensors = {}
    for name, hint in typing.get_type_hints(Adapter).items():
        projection, side = name.split("_")
        if projection not in modules:
            continue
        stacked = np.asarray(getattr(trained, name), np.float32)
        rank_axis = str(letters_of(hint)).split().index("R")
        for layer, field in enumerate(stacked):
            # [R, in] for both factors; B is stored transposed.
            matrix = np.moveaxis(field, rank_axis - 1, 0).reshape(cfg.rank, -1)
            module = modules[projection].format(layer).removesuffix(".weight")
            tensors[f"base_model.model.{module}.lora_{side.upper()}.weight"] = np.ascontiguousarray(
                matrix if side == "a" else matrix.T
            )
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.path,
        "r": cfg.rank,
        "lora_alpha": cfg.alpha,
        "use_rslora": cfg.scaling == "rank_stabilised",
        "target_modules": [name.split(".")[-2] for name in modules.values()],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def loader(base: PretrainedModel, folder: Path) -> Callable[[], Any] | str:
    """A function that loads base and adapter as a user of peft does, in float32; or the reason why
    that can't be done here.
    """
    if importlib.util.find_spec("peft") is None:
        return "peft is not installed"
    path = resolve(base.path)
    if path.suffix == ".gguf":
        return "the base is a .gguf file, which peft does not load; export it to a folder first"

    def load() -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return PeftModel.from_pretrained(model, folder)

    return load
