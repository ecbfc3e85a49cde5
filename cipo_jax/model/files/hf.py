"""Checkpoints in the layout of Hugging Face transformers: config.json and safetensors, in and out.

One table says which tensor is which field; loading and saving both read it. `hf_config.py` reads
and writes the constants in config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from cipo_jax.model.files import hf_config, layout
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params

LAYOUT: layout.Layout = {
    "embed": ("model.embed_tokens.weight", "V D"),
    "blocks.attn_norm": ("model.layers.{}.input_layernorm.weight", "D"),
    "blocks.q": ("model.layers.{}.self_attn.q_proj.weight", "NH D"),
    "blocks.k": ("model.layers.{}.self_attn.k_proj.weight", "KH D"),
    "blocks.v": ("model.layers.{}.self_attn.v_proj.weight", "KH D"),
    "blocks.o": ("model.layers.{}.self_attn.o_proj.weight", "D NH"),
    "blocks.q_bias": ("model.layers.{}.self_attn.q_proj.bias", "NH"),
    "blocks.k_bias": ("model.layers.{}.self_attn.k_proj.bias", "KH"),
    "blocks.v_bias": ("model.layers.{}.self_attn.v_proj.bias", "KH"),
    "blocks.q_norm": ("model.layers.{}.self_attn.q_norm.weight", "H"),
    "blocks.k_norm": ("model.layers.{}.self_attn.k_norm.weight", "H"),
    "blocks.mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", "D"),
    "blocks.router": ("model.layers.{}.mlp.gate.weight", "E D"),
    "blocks.expert_gate": ("model.layers.{}.mlp.experts.{}.gate_proj.weight", "F D"),
    "blocks.expert_up": ("model.layers.{}.mlp.experts.{}.up_proj.weight", "F D"),
    "blocks.expert_down": ("model.layers.{}.mlp.experts.{}.down_proj.weight", "D F"),
    "blocks.gate": ("model.layers.{}.mlp.gate_proj.weight", "F D"),
    "blocks.up": ("model.layers.{}.mlp.up_proj.weight", "F D"),
    "blocks.down": ("model.layers.{}.mlp.down_proj.weight", "D F"),
    "final_norm": ("model.norm.weight", "D"),
    "head": ("lm_head.weight", "V D"),
}

_POST_NORM_LAYOUT: layout.Layout = {
    "blocks.attn_post_norm": ("model.layers.{}.post_attention_layernorm.weight", "D"),
    "blocks.mlp_norm": ("model.layers.{}.pre_feedforward_layernorm.weight", "D"),
    "blocks.mlp_post_norm": ("model.layers.{}.post_feedforward_layernorm.weight", "D"),
}
"""The names that have another meaning where attention and MLP are normed once more."""

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}

MAX_FILE_BYTES = 5 * 10**9
"""A larger model is saved as several files and an index."""


def layout_of(arch: Architecture) -> layout.Layout:
    """The table for this architecture."""
    return {**LAYOUT, **_POST_NORM_LAYOUT} if arch.has_post_norms else LAYOUT


def architecture(folder: Path) -> Architecture:
    """The constants that the folder's config.json states.

    Raises: ValueError if the file or a constant is missing, or if it asks for something that the
      decoder does not do (another activation, a sliding window outside of Gemma, biases on the
      output projection or the MLP, rotary scaling other than llama3 and linear, dense layers among
      those of experts, capped logits, quantised weights).
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json, which states the constants of a model.")
    return hf_config.architecture_of(json.loads(file.read_text()), str(file))


def load(
    folder: Path,
    arch: Architecture,
    shardings: Params | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Parameters from the folder's safetensors files, read one tensor at a time.

    Args:
      arch: its constants, as from `architecture`.
      shardings: a NamedSharding for each field, as from `sharding.shardings_of`; None: the default
        device.
      dtype: of the result, whatever the files hold.
    Raises: ValueError that names the tensor if one is missing, unknown, in two files, of a wrong
      shape or of a type that is not a float.
    """
    tensors: dict[str, np.ndarray] = {}
    path_of: dict[str, Path] = {}
    for path in _weight_files(Path(folder)):
        for name, tensor in _mapped(path).items():
            if name in tensors:
                raise ValueError(
                    f"{name} is in {path_of[name].name} and again in {path.name}. Remove the "
                    "file that is not part of this model."
                )
            tensors[name], path_of[name] = tensor, path
    return layout.assemble(
        layout_of(arch),
        arch,
        file_shapes={name: tensor.shape for name, tensor in tensors.items()},
        read=tensors.__getitem__,
        shardings=shardings,
        dtype=dtype,
    )


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as views of its mapped pages, which the system reads and drops by
    itself: the library's own slices are copied twice on the host."""
    tensors = {}
    with safetensors.safe_open(path, framework="numpy") as file:
        data = np.memmap(path, np.uint8, mode="r")
        # The format: the length of a header, the header, and the tensors without a gap.
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        for name in file.offset_keys():
            piece = file.get_slice(name)
            if piece.get_dtype() not in _DTYPES:
                raise ValueError(
                    f"{name} holds {piece.get_dtype()} values. Quantised weights can't be "
                    "trained: use the model's float weights."
                )
            shape, kind = piece.get_shape(), np.dtype(_DTYPES[piece.get_dtype()])
            end = start + kind.itemsize * math.prod(shape)
            tensors[name] = np.asarray(data[start:end]).view(kind).reshape(shape)
            start = end
    return tensors


def stored_dtype(folder: Path) -> str:
    """The embedding's in the folder's files: float32, bfloat16 or float16."""
    names = {"BF16": "bfloat16", "F16": "float16"}
    for path in _weight_files(Path(folder)):
        with safetensors.safe_open(path, framework="numpy") as file:
            if LAYOUT["embed"][0] in file.keys():  # noqa: SIM118 (an open file is no mapping)
                return names.get(file.get_slice(LAYOUT["embed"][0]).get_dtype(), "float32")
    raise ValueError(f"{folder} holds no {LAYOUT['embed'][0]}.")


def save(params: Params, arch: Architecture, folder: Path) -> None:
    """Writes config.json and safetensors that transformers loads, in the dtype of the parameters.

    The tokenizer is saved by `tokenizer.save_tokenizer`.

    Raises: ValueError if the folder already holds weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if present := sorted(folder.glob("*.safetensors*")):
        raise ValueError(f"{folder} already holds {present[0].name}. Choose an empty folder.")
    itemsize = params.embed.dtype.itemsize
    files = _split(layout.slots(layout_of(arch), arch), itemsize)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    names = names if len(files) > 1 else ["model.safetensors"]
    fields = layout.fields_of(params)
    weight_map: dict[str, str] = {}
    for name, slots in zip(names, files, strict=True):
        tensors = {}
        for slot in slots:
            field = fields[slot.path]
            tensors[slot.name] = slot.form.to_file(np.asarray(field[slot.index]))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        total = sum(field.nbytes for field in fields.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = hf_config.config_of(arch, str(params.embed.dtype))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _split(slots: Iterable[layout.Slot], itemsize: int) -> list[list[layout.Slot]]:
    """The tensors in order, cut into files of at most MAX_FILE_BYTES, or of one tensor."""
    files: list[list[layout.Slot]] = [[]]
    num_bytes = 0
    for slot in slots:
        size = itemsize * int(np.prod(slot.form.file_shape))
        if files[-1] and num_bytes + size > MAX_FILE_BYTES:
            files.append([])
            num_bytes = 0
        files[-1].append(slot)
        num_bytes += size
    return files


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise ValueError(
                f"{file} is missing; the folder holds {present}. Weights must be safetensors: "
                "model.safetensors, or several files and model.safetensors.index.json."
            )
    return files
