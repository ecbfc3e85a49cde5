"""Checkpoints in the layout of Hugging Face transformers: config.json and safetensors, in and out.

One table says which tensor is which field; loading and saving both read it. Constants come from
config.json and none is assumed: a checkpoint that does not state its rotary base is an error, and
so is a feature that this decoder does not have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from cipo_jax.model import layout
from cipo_jax.model.presets import Architecture, Llama3RopeScaling
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
    "blocks.gate": ("model.layers.{}.mlp.gate_proj.weight", "F D"),
    "blocks.up": ("model.layers.{}.mlp.up_proj.weight", "F D"),
    "blocks.down": ("model.layers.{}.mlp.down_proj.weight", "D F"),
    "final_norm": ("model.norm.weight", "D"),
    "head": ("lm_head.weight", "V D"),
}

MAX_FILE_BYTES = 5 * 10**9
"""A larger model is saved as several files and an index."""

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def architecture(folder: Path) -> Architecture:
    """The constants that the folder's config.json states.

    Raises: ValueError if the file or a constant is missing, or if it asks for something that the
      decoder does not do (another activation, a sliding window, biases on the output projection or
      the MLP, a rotary scaling other than llama3, quantised weights).
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json, which states the constants of a model.")
    return _architecture(json.loads(file.read_text()), str(file))


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
    with contextlib.ExitStack() as stack:
        file_of: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        path_of: dict[str, Path] = {}
        for path in _weight_files(Path(folder)):
            file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            for name in file.keys():  # noqa: SIM118 (an open file is no mapping)
                if name in path_of:
                    raise ValueError(
                        f"{name} is in {path_of[name].name} and again in {path.name}. Remove the "
                        "file that is not part of this model."
                    )
                piece = file.get_slice(name)
                if piece.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise ValueError(
                        f"{name} holds {piece.get_dtype()} values. Quantised weights can't be "
                        "trained: use the model's float weights."
                    )
                file_of[name], path_of[name], shapes[name] = file, path, tuple(piece.get_shape())
        return layout.assemble(
            LAYOUT,
            arch,
            file_shapes=shapes,
            read=lambda name: file_of[name].get_tensor(name),
            shardings=shardings,
            dtype=dtype,
        )


def stored_dtype(folder: Path) -> str:
    """Of the embedding in the folder's files: float32, bfloat16 or float16."""
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
    files = _split(layout.slots(LAYOUT, arch), itemsize)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    names = names if len(files) > 1 else ["model.safetensors"]
    fields = layout.fields_of(params)
    weight_map: dict[str, str] = {}
    for name, slots in zip(names, files, strict=True):
        tensors = {}
        for slot in slots:
            field = fields[slot.path]
            tensors[slot.name] = slot.to_file(
                np.asarray(field if slot.layer is None else field[slot.layer])
            )
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        total = sum(field.nbytes for field in fields.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = _config(arch, str(params.embed.dtype))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _split(slots: Iterable[layout.Slot], itemsize: int) -> list[list[layout.Slot]]:
    """The tensors in order, cut into files of at most MAX_FILE_BYTES, or of one tensor."""
    files: list[list[layout.Slot]] = [[]]
    num_bytes = 0
    for slot in slots:
        size = itemsize * int(np.prod(slot.file_shape))
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


def _architecture(config: Mapping[str, Any], source: str) -> Architecture:
    def stated(key: str) -> Any:
        if config.get(key) is None:
            raise ValueError(
                f"{source} does not state {key}, and no constant of a model is assumed here. Add "
                "it with the value that the model was trained with."
            )
        return config[key]

    def refuse(key: str, rule: str) -> None:
        raise ValueError(f"{source}: {key} is {config.get(key)!r}; this decoder {rule}.")

    family = stated("model_type")
    if family not in _CLASSES:
        refuse("model_type", f"covers {', '.join(_CLASSES)}")
    if stated("hidden_act") != "silu":
        refuse("hidden_act", "has a SiLU-gated MLP only")
    # Of Qwen2, attention_bias would be a key without a meaning: its q, k and v always have biases.
    if config.get("attention_bias") and family != "qwen2":
        refuse("attention_bias", "has no bias on its output projection, which this flag adds too")
    if config.get("mlp_bias"):
        refuse("mlp_bias", "has no biases in its MLP")
    if config.get("quantization_config"):
        refuse("quantization_config", "trains float weights: use the model before quantisation")
    if config.get("sliding_window") and config.get("use_sliding_window") is not False:
        refuse("sliding_window", "attends to the whole sequence")
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        refuse("layer_types", "attends to the whole sequence in every layer")

    theta, scaling = _rope(config, source)
    num_heads = stated("num_attention_heads")
    if config.get("head_dim") is not None or family == "qwen3":
        head_dim = stated("head_dim")
    else:  # by definition in Llama and Qwen2, not by default
        head_dim, rest = divmod(stated("hidden_size"), num_heads)
        if rest:
            refuse("num_attention_heads", "needs head_dim where heads do not divide hidden_size")
    return Architecture(
        family=family,
        vocab_size=stated("vocab_size"),
        model_dim=stated("hidden_size"),
        num_layers=stated("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=stated("num_key_value_heads"),
        head_dim=head_dim,
        mlp_dim=stated("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(stated("rms_norm_eps")),
        is_tied=stated("tie_word_embeddings"),
        has_qkv_bias=family == "qwen2",
        has_qk_norm=family == "qwen3",
        max_position=stated("max_position_embeddings"),
    )


def _rope(config: Mapping[str, Any], source: str) -> tuple[float, Llama3RopeScaling | None]:
    """Rotary base and scaling. transformers 5 keeps both in `rope_parameters`; before it, the base
    stood at the top level and the scaling in `rope_scaling`.
    """
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    thetas = {
        float(value)
        for value in (config.get("rope_theta"), parameters.get("rope_theta"))
        if value is not None
    }
    if len(thetas) != 1:
        found = f"states the bases {sorted(thetas)}" if thetas else "does not state rope_theta"
        raise ValueError(
            f"{source} {found}; rotary positions need one base, at the top level or in "
            "rope_parameters. Set it to the value that the model was trained with."
        )
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind not in ("default", "llama3") or partial not in (None, 1.0):
        raise ValueError(
            f"{source}: rotary positions of type {kind!r} with partial_rotary_factor {partial}; "
            "this decoder turns all channels, with no scaling ('default') or that of 'llama3'."
        )
    if kind == "default":
        return thetas.pop(), None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        if parameters.get(name) is None:
            raise ValueError(f"{source}: rotary scaling of type llama3 without {name}.")
    factor, low, high, original = (parameters[name] for name in names)
    return thetas.pop(), Llama3RopeScaling(
        factor=float(factor),
        low_freq_factor=float(low),
        high_freq_factor=float(high),
        original_max_position=int(original),
    )


def _config(arch: Architecture, dtype: str) -> dict[str, Any]:
    """The config.json of an architecture, in the older form that all readers know."""
    scaling = arch.rope_scaling
    return {
        "architectures": [_CLASSES[arch.family]],
        "model_type": arch.family,
        "torch_dtype": dtype,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.model_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.mlp_dim,
        "hidden_act": "silu",
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
        "max_position_embeddings": arch.max_position,
        "tie_word_embeddings": arch.is_tied,
        "attention_bias": False,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
