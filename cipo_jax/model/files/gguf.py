"""Checkpoints in one .gguf file, as llama.cpp writes them: constants and weights.

Quantised weights are expanded to floats by the `gguf` package. llama.cpp turns neighbouring
channels in its rotary positions for the llama family, so its converter interleaves the rows of the
query and key projections, and it stores the scale of a Gemma norm instead of scale - 1; loading
undoes both. The tokenizer in the file is read by `gguf_tokenizer.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cipo_jax.model.files import layout
from cipo_jax.model.presets import (
    Architecture,
    Experts,
    FamilyName,
    LinearRopeScaling,
    SlidingLayers,
    every_nth_sees_all,
    of_family,
)
from cipo_jax.model.transformer import Params

LAYOUT: layout.Layout = {
    "embed": ("token_embd.weight", "V D"),
    "blocks.attn_norm": ("blk.{}.attn_norm.weight", "D"),
    "blocks.q": ("blk.{}.attn_q.weight", "NH D"),
    "blocks.k": ("blk.{}.attn_k.weight", "KH D"),
    "blocks.v": ("blk.{}.attn_v.weight", "KH D"),
    "blocks.o": ("blk.{}.attn_output.weight", "D NH"),
    "blocks.q_bias": ("blk.{}.attn_q.bias", "NH"),
    "blocks.k_bias": ("blk.{}.attn_k.bias", "KH"),
    "blocks.v_bias": ("blk.{}.attn_v.bias", "KH"),
    "blocks.q_norm": ("blk.{}.attn_q_norm.weight", "H"),
    "blocks.k_norm": ("blk.{}.attn_k_norm.weight", "H"),
    "blocks.attn_post_norm": ("blk.{}.post_attention_norm.weight", "D"),
    "blocks.mlp_norm": ("blk.{}.ffn_norm.weight", "D"),
    "blocks.mlp_post_norm": ("blk.{}.post_ffw_norm.weight", "D"),
    "blocks.router": ("blk.{}.ffn_gate_inp.weight", "E D"),
    "blocks.expert_gate": ("blk.{}.ffn_gate_exps.weight", "E F D"),
    "blocks.expert_up": ("blk.{}.ffn_up_exps.weight", "E F D"),
    "blocks.expert_down": ("blk.{}.ffn_down_exps.weight", "E D F"),
    "blocks.gate": ("blk.{}.ffn_gate.weight", "F D"),
    "blocks.up": ("blk.{}.ffn_up.weight", "F D"),
    "blocks.down": ("blk.{}.ffn_down.weight", "D F"),
    "final_norm": ("output_norm.weight", "D"),
    "head": ("output.weight", "V D"),
}

_FAMILIES: dict[str, FamilyName] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
}
"""`general.architecture` -> family."""


def architecture(file: Path) -> Architecture:
    """The constants that the file's metadata states.

    The head is tied to the embedding if the file has no tensor for it.

    Raises: ValueError if a constant is missing, or if the file asks for something that the decoder
      does not do.
    """
    reader = open_file(file)
    kind = stated_in(reader, "general.architecture", file)
    if kind not in _FAMILIES:
        raise ValueError(
            f"{file} is of architecture {kind!r}; this decoder covers {', '.join(_FAMILIES)}."
        )
    family = _FAMILIES[kind]

    def value(key: str) -> Any:
        return value_of(reader, f"{kind}.{key}")

    def stated(key: str) -> Any:
        return stated_in(reader, f"{kind}.{key}", file)

    num_layers, width = stated("block_count"), stated("embedding_length")
    num_heads = stated("attention.head_count")
    # Without a key_length the heads share the width evenly, by definition of the format.
    head_dim = value("attention.key_length") or width // num_heads
    turned = value("rope.dimension_count")
    if turned not in (None, head_dim):
        raise ValueError(
            f"{file} turns {turned} of {head_dim} channels of a head; this decoder turns all."
        )
    special: dict[str, Any] = {}
    if family == "gemma3_text":
        # Where the file is silent, the format's own reader fixes these for this architecture.
        nth = value("attention.sliding_window_pattern") or 6
        special["sliding"] = SlidingLayers(
            is_sliding=every_nth_sees_all(num_layers, nth),
            window=stated("attention.sliding_window"),
            rope_theta=_decimal(value("rope.freq_base_swa") or 10_000.0),
        )
        if num_layers == 62:  # the 27B model, whose scores have another scale
            special["query_pre_attn_scalar"] = width // num_heads
    if family == "qwen3_moe":
        special["experts"] = Experts(
            num_experts=stated("expert_count"),
            num_per_token=stated("expert_used_count"),
            is_normalised=True,  # fixed by the format's own reader for this architecture
        )
    mlp_dim = "expert_feed_forward_length" if family == "qwen3_moe" else "feed_forward_length"
    return of_family(
        family,
        vocab_size=len(stated_in(reader, "tokenizer.ggml.tokens", file)),
        model_dim=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=stated("attention.head_count_kv"),
        head_dim=head_dim,
        mlp_dim=stated(mlp_dim),
        rope_theta=_decimal(stated("rope.freq_base")),
        rope_scaling=_rope_scaling(reader, kind, file),
        norm_eps=_decimal(stated("attention.layer_norm_rms_epsilon")),
        is_tied=LAYOUT["head"][0] not in _shapes(reader),
        max_position=stated("context_length"),
        **special,
    )


def _rope_scaling(reader: gguf.GGUFReader, kind: str, file: Path) -> LinearRopeScaling | None:
    scaling = value_of(reader, f"{kind}.rope.scaling.type")
    has_factors = "rope_freqs.weight" in _shapes(reader)
    if scaling == "linear" and not has_factors:
        factor = stated_in(reader, f"{kind}.rope.scaling.factor", file)
        return LinearRopeScaling(factor=_decimal(factor))
    if scaling not in (None, "none") or has_factors:
        raise ValueError(
            f"{file} scales its rotary frequencies ({scaling or 'rope_freqs.weight'}), in a form "
            "that does not tell the constants. Load the same model from safetensors."
        )
    return None


def load(
    file: Path,
    arch: Architecture,
    shardings: Params | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters from the file, expanded to floats one tensor at a time.

    Arguments and errors are those of `hf.load`.
    """
    reader = open_file(file)
    tensor_of = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensor_of[name]
        floats: np.ndarray = gguf.dequantize(tensor.data, tensor.tensor_type)
        if arch.family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            return half_split(floats, arch.head_dim)
        return floats - arch.norm_offset if name.endswith("norm.weight") else floats

    return layout.assemble(
        LAYOUT, arch, file_shapes=_shapes(reader), read=read, shardings=shardings, dtype=dtype
    )


def stored_dtype(file: Path) -> str:
    """The embedding's: bfloat16, float16, or float32, which quantised weights expand to."""
    (kind,) = (t.tensor_type for t in open_file(file).tensors if t.name == LAYOUT["embed"][0])
    return {"BF16": "bfloat16", "F16": "float16"}.get(kind.name, "float32")


def licence(file: Path) -> str | None:
    """The identifier of the model's licence, if the file states one."""
    identifier: str | None = value_of(open_file(file), "general.license")
    return identifier


def half_split(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a query or key projection from neighbouring pairs (2i, 2i+1) to pairs (i, i + H/2).

    Args:
      weight: [heads * H, D], as llama.cpp stores the llama family.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def open_file(file: Path) -> gguf.GGUFReader:
    """The parsed file; the one that was opened last is kept."""
    return _parsed(Path(file), Path(file).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parsed(file: Path, changed_ns: int) -> gguf.GGUFReader:
    # Constants, weights and tokenizer are asked for one after another, and parsing the metadata of
    # a real vocabulary takes seconds.
    return gguf.GGUFReader(file)


def value_of(reader: gguf.GGUFReader, key: str) -> Any:
    """The value of a key in the metadata; None if it is not there."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def stated_in(reader: gguf.GGUFReader, key: str, file: Path) -> Any:
    """`value_of` a key that must be there.

    Raises: ValueError if it is not.
    """
    value = value_of(reader, key)
    if value is None:
        raise ValueError(
            f"{file} does not state {key}, and no constant of a model is assumed here. Convert the "
            "model again with a recent llama.cpp, or load it from safetensors."
        )
    return value


def _shapes(reader: gguf.GGUFReader) -> dict[str, tuple[int, ...]]:
    # The format lists dimensions from the fastest one.
    return {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}


def _decimal(value: float) -> float:
    """The decimal number that was rounded to float32 for the file: 1e-5, not 9.9999997e-06."""
    return float(str(np.float32(value)))
