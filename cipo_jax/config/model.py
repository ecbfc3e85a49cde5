"""Where the weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PretrainedModel:
    """A model that exists: its weights, its constants and its tokenizer."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Hub id (`Qwen/Qwen3-0.6B`), folder with safetensors, .gguf file, or `package:NAME` for the
    one .gguf file that an installed Python package carries."""


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """Random weights at the constants of a preset, with a byte-level tokenizer: for tests, timing
    and planning."""

    kind: Literal["random"] = "random"
    preset: str = "tiny-llama"
    """A name in `model/presets.py`."""


ModelSource = PretrainedModel | RandomModel
