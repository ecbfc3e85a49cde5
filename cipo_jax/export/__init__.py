"""From a run, or a model, to a folder that transformers or peft loads.

    weights     safetensors and config.json, or for peft adapter_model.safetensors and its config
    tokenizer   with the chat template and generation_config.json: every token that ends an answer
    README.md   the run, its results, and how far transformers is from these weights

The folder is complete or not there: it is written beside its place, and renamed at the end.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from cipo_jax.config import Config, Lora, MeshShape, ModelSource, PretrainedModel, configfile
from cipo_jax.export import adapter_folder, licence, model_folder
from cipo_jax.export.card import model_card
from cipo_jax.export.check import Comparison, NotChecked, compare
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model import adapter
from cipo_jax.model.adapter import Adapter
from cipo_jax.model.files.load import load_architecture, load_model, stored_dtype
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.text.tokenizer import load_tokenizer
from cipo_jax.update import policy

__all__ = ["Exported", "export"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported folder."""

    folder: Path
    step: int | None
    """None for a model that no run trained."""
    dtype: str
    check: Comparison


def export(
    source: str,
    out: Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    as_adapter: bool = False,
    has_check: bool = True,
) -> Exported:
    """Writes the policy of a run, or a model as it is, to the new folder `out`.

    A LoRA run's adapter is merged into its base, unless `as_adapter` asks for a folder for peft.

    Args:
      source: a run's folder, or a model as `model.path` of a configuration names it.
      step: which checkpoint of the run; None for the newest.
      dtype: type of the weights; None for that of the model's own files (float32 for quantised
        files and for random weights). An adapter is float32.
      has_check: compare with transformers, if it is installed with PyTorch.
    Raises: ValueError if `out` exists and is not empty, the run has no such checkpoint or no
      adapter to be exported alone, or the model is not found.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not empty: choose a new folder.")
    config_file = Path(source) / "config.yaml"
    if not config_file.is_file():
        if step is not None or as_adapter:
            raise ValueError(
                f"{source} is no run (it has no config.yaml): only a run has steps and an adapter."
            )
        return _export_model(PretrainedModel(path=source), out, dtype, has_check)
    cfg = configfile.load(config_file)
    if as_adapter:
        return _export_adapter(Path(source), cfg, out, step, dtype, has_check)
    return _export_policy(Path(source), cfg, out, step, dtype, has_check)


def _export_model(
    source: PretrainedModel, out: Path, dtype: str | None, has_check: bool
) -> Exported:
    dtype = dtype or stored_dtype(source)
    params, arch = load_model(source, dtype=dtype)
    with _renamed_at_the_end(out) as folder:
        check = _write_model(params, arch, source, folder, has_check)
        card = model_card(
            source, licence.of(source), dtype=dtype, check=check, run=None, is_adapter=False
        )
        (folder / "README.md").write_text(card)
    return Exported(folder=out, step=None, dtype=dtype, check=check)


def _export_policy(
    run: Path, cfg: Config, out: Path, step: int | None, dtype: str | None, has_check: bool
) -> Exported:
    dtype = dtype or stored_dtype(cfg.model)
    arch = load_architecture(cfg.model)
    trainable, step = policy.restore_trainable(cfg, _mesh(), run / "checkpoints", step=step)
    frozen = None
    if isinstance(cfg.adapter, Lora):
        # In float32, to be merged in it and rounded once.
        frozen, _ = load_model(cfg.model, seed=cfg.seed)
    params = adapter.merge(policy.params(trainable, frozen, cfg), jnp.dtype(dtype))
    del trainable, frozen  # as large as the model
    with _renamed_at_the_end(out) as folder:
        check = _write_model(params, arch, cfg.model, folder, has_check)
        _write_run_files(run, cfg, step, folder, dtype=dtype, check=check, is_adapter=False)
    return Exported(folder=out, step=step, dtype=dtype, check=check)


def _export_adapter(
    run: Path, cfg: Config, out: Path, step: int | None, dtype: str | None, has_check: bool
) -> Exported:
    if not isinstance(cfg.adapter, Lora):
        raise ValueError(
            f"{run} trained all parameters (adapter.kind is none), so it has no adapter to be "
            "exported alone."
        )
    if not isinstance(cfg.model, PretrainedModel):
        raise ValueError(
            f"The base of {run} is random weights (model.kind is random), which nobody else has: "
            "export the adapter merged into them."
        )
    if dtype not in (None, "float32"):
        raise ValueError(f"dtype is {dtype}, but an adapter is always written in float32.")
    trained, step = policy.restore_trainable(cfg, _mesh(), run / "checkpoints", step=step)
    assert isinstance(trained, Adapter)
    with _renamed_at_the_end(out) as folder:
        adapter_folder.write(trained, cfg.adapter, cfg.model, folder)
        tokenizer = load_tokenizer(cfg.model)
        tokenizer.save_pretrained(folder)
        check: Comparison = NotChecked("it was not asked for")
        if has_check:
            base, arch = load_model(cfg.model)
            params = adapter.adapt(base, trained, cfg.adapter)
            load = adapter_folder.loader(cfg.model, folder)
            check = compare(load, folder, params, arch, tokenizer, is_adapter=True)
        _write_run_files(run, cfg, step, folder, dtype="float32", check=check, is_adapter=True)
    return Exported(folder=out, step=step, dtype="float32", check=check)


def _write_model(
    params: Params, arch: Architecture, source: ModelSource, folder: Path, has_check: bool
) -> Comparison:
    tokenizer = load_tokenizer(source)
    model_folder.write(params, arch, source, tokenizer, folder)
    licence.copy_files(source, folder)
    if not has_check:
        return NotChecked("it was not asked for")
    load = model_folder.loader(folder)
    return compare(load, folder, params, arch, tokenizer, is_adapter=False)


def _write_run_files(
    run: Path,
    cfg: Config,
    step: int,
    folder: Path,
    *,
    dtype: str,
    check: Comparison,
    is_adapter: bool,
) -> None:
    shutil.copy(run / "config.yaml", folder / "cipo_config.yaml")
    card = model_card(
        cfg.model,
        licence.of(cfg.model),
        dtype=dtype,
        check=check,
        run=(run, cfg, step),
        is_adapter=is_adapter,
    )
    (folder / "README.md").write_text(card)


def _mesh() -> jax.sharding.Mesh:
    """One device: an export computes next to nothing."""
    return make_mesh(MeshShape(fsdp=1), jax.devices()[:1])


@contextlib.contextmanager
def _renamed_at_the_end(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` if nothing goes wrong, and is removed otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield folder
        # Temporary folders are closed to others, and so is what safetensors writes.
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
