"""Checkpoints in one .gguf file, as llama.cpp writes them: constants, weights and tokenizer.

Quantised weights are expanded to floats by the `gguf` package. llama.cpp turns neighbouring
channels in its rotary positions for the llama family, so its converter interleaves the rows of the
query and key projections; loading undoes that.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cipo_jax.model import layout
from cipo_jax.model.presets import Architecture, of_family
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
    "blocks.mlp_norm": ("blk.{}.ffn_norm.weight", "D"),
    "blocks.gate": ("blk.{}.ffn_gate.weight", "F D"),
    "blocks.up": ("blk.{}.ffn_up.weight", "F D"),
    "blocks.down": ("blk.{}.ffn_down.weight", "D F"),
    "final_norm": ("output_norm.weight", "D"),
    "head": ("output.weight", "V D"),
}

_CONTROL, _USER_DEFINED = 3, 4
"""Token types of the format: markers of the chat format, and other strings that are one token."""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def architecture(file: Path) -> Architecture:
    """The constants that the file's metadata states.

    The head is tied to the embedding if the file has no tensor for it.

    Raises: ValueError if a constant is missing, or if the file asks for something that the decoder
      does not do.
    """
    reader = _open(file)
    family = _stated(reader, "general.architecture", file)
    if family not in ("llama", "qwen2", "qwen3"):
        raise ValueError(
            f"{file} is of architecture {family!r}; this decoder covers llama, qwen2 and qwen3."
        )

    def stated(key: str) -> Any:
        return _stated(reader, f"{family}.{key}", file)

    shapes = _shapes(reader)
    scaling = _value(reader, f"{family}.rope.scaling.type")
    if scaling not in (None, "none") or "rope_freqs.weight" in shapes:
        raise ValueError(
            f"{file} scales its rotary frequencies ({scaling or 'rope_freqs.weight'}), in a form "
            "that does not tell the constants. Load the same model from safetensors."
        )
    num_heads, width = stated("attention.head_count"), stated("embedding_length")
    # Without a key_length the heads share the width evenly, by definition of the format.
    head_dim = _value(reader, f"{family}.attention.key_length") or width // num_heads
    turned = _value(reader, f"{family}.rope.dimension_count")
    if turned not in (None, head_dim):
        raise ValueError(
            f"{file} turns {turned} of {head_dim} channels of a head; this decoder turns all."
        )
    return of_family(
        family,
        vocab_size=len(_stated(reader, "tokenizer.ggml.tokens", file)),
        model_dim=width,
        num_layers=stated("block_count"),
        num_heads=num_heads,
        num_kv_heads=stated("attention.head_count_kv"),
        head_dim=head_dim,
        mlp_dim=stated("feed_forward_length"),
        rope_theta=_decimal(stated("rope.freq_base")),
        rope_scaling=None,
        norm_eps=_decimal(stated("attention.layer_norm_rms_epsilon")),
        is_tied=LAYOUT["head"][0] not in shapes,
        max_position=stated("context_length"),
    )


def load(
    file: Path,
    arch: Architecture,
    shardings: Params | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters from the file, expanded to floats one tensor at a time.

    Args and errors as `hf.load`.
    """
    reader = _open(file)
    tensor_of = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensor_of[name]
        floats = gguf.dequantize(tensor.data, tensor.tensor_type)
        if arch.family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            return half_split(floats, arch.head_dim)
        return floats

    return layout.assemble(
        LAYOUT, arch, file_shapes=_shapes(reader), read=read, shardings=shardings, dtype=dtype
    )


def stored_dtype(file: Path) -> str:
    """Of the embedding: bfloat16 or float16, or float32, which quantised weights expand to."""
    (kind,) = (t.tensor_type for t in _open(file).tensors if t.name == LAYOUT["embed"][0])
    return {"BF16": "bfloat16", "F16": "float16"}.get(kind.name, "float32")


def licence(file: Path) -> str | None:
    """The identifier of the model's licence, if the file states one."""
    return _value(_open(file), "general.license")


def half_split(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a query or key projection from neighbouring pairs (2i, 2i+1) to pairs (i, i + H/2).

    Args:
      weight: [heads * H, D], as llama.cpp stores the llama family.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in the file's metadata, with its chat template if it has one.

    Raises: ValueError if the tokenizer is of another kind, or splits words in an unknown way.
    """
    reader = _open(file)

    def stated(key: str) -> Any:
        return _stated(reader, f"tokenizer.ggml.{key}", file)

    kind, words = stated("model"), stated("pre")
    if kind != "gpt2" or words not in ("smollm", "qwen2"):
        raise ValueError(
            f"{file} has a tokenizer of kind {kind!r} that splits words as {words!r}; kind 'gpt2' "
            "with 'smollm' or 'qwen2' is known here. Load the same model from a folder with "
            "tokenizer.json."
        )
    tokens, types = stated("tokens"), stated("token_type")
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in stated("merges")],
        )
    )
    if words == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        backend.normalizer = normalizers.NFC()
        steps = [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            marker = AddedToken(token, normalized=False, special=kind == _CONTROL)
            backend.add_tokens([marker])

    def marker_at(key: str) -> str | None:
        index = _value(reader, f"tokenizer.ggml.{key}_token_id")
        return None if index is None else tokens[index]

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=marker_at("bos"),
        eos_token=marker_at("eos"),
        unk_token=marker_at("unknown"),
        pad_token=marker_at("padding"),
        chat_template=_value(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def _open(file: Path) -> gguf.GGUFReader:
    return _parsed(Path(file), Path(file).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parsed(file: Path, changed_ns: int) -> gguf.GGUFReader:
    # Constants, weights and tokenizer are asked for one after another, and parsing the metadata of
    # a real vocabulary takes about 4 s.
    return gguf.GGUFReader(file)


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _stated(reader: gguf.GGUFReader, key: str, file: Path) -> Any:
    value = _value(reader, key)
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
