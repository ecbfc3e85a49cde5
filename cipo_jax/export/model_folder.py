"""A folder with a whole model, as transformers loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cipo_jax.config import ModelSource
from cipo_jax.model.files import hf
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.text.tokenizer import eos_ids, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write(
    params: Params,
    arch: Architecture,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    """Weights in the dtype of `params`, constants, tokenizer and the tokens that end an answer.

    Args:
      source: where the model came from; its generation_config.json is kept.
    """
    hf.save(params, arch, folder)
    ends = eos_ids(source, tokenizer)
    save_tokenizer(tokenizer, ends, folder, source)
    # Some servers read them in generation_config.json, some here, some in both.
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {
        "eos_token_id": list(ends) if len(ends) > 1 else ends[0],
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    file.write_text(json.dumps(config, indent=2) + "\n")


def loader(folder: Path) -> Callable[[], Any]:
    """A function that loads the folder as a user of transformers does, in float32."""

    def load() -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    return load
