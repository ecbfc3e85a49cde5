"""The policy as two trees: what an update changes, and what stays as it is.

                      trainable   frozen                     weights       reference policy
    full training     Params      None, or with KL a copy    trainable     frozen
    LoRA              Adapter     the model                  both          frozen

So the reference policy of a LoRA run is its own base, and takes no memory. The train step, the
sampler and whoever reads a checkpoint come through here; nothing else knows which case it is.
"""

from __future__ import annotations

import os
from functools import partial

import jax
from jax.sharding import Mesh

from cipo_jax.config import Config, Lora
from cipo_jax.mesh.sharding import PARAM_RULES, abstract_on
from cipo_jax.model import adapter, transformer
from cipo_jax.model.adapter import Adapter
from cipo_jax.model.files.load import load_architecture, load_model
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.update.checkpoint import restore_params

Trainable = Params | Adapter

_ADAPTER_KEY = 2**31 - 1
"""Folded into the run's key for the adapter's first weights; far above any step."""


def split(params: Params, cfg: Config, arch: Architecture) -> tuple[Trainable, Params | None]:
    """What is trained and what is frozen at the start of a run from `params`.

    Full training takes `params` over, and copies them where a KL penalty needs a reference, in the
    types that a forward pass reads them in.
    """
    if isinstance(cfg.adapter, Lora):
        key = jax.random.fold_in(jax.random.key(cfg.seed), _ADAPTER_KEY)
        init = jax.jit(partial(adapter.init, arch=arch, cfg=cfg.adapter))
        return init(key), params
    if cfg.kl.weight > 0:
        return params, transformer.read_only(params, cfg.train.compute_dtype)
    return params, None


def base_dtype(cfg: Config) -> str:
    """What the model is loaded in: masters of trained weights are float32, frozen weights are only
    read by products in the compute dtype.
    """
    return cfg.train.compute_dtype if isinstance(cfg.adapter, Lora) else "float32"


def weights(trainable: Trainable, frozen: Params | None, cfg: Config) -> Params:
    """The policy's parameters, for the forward pass and the sampler; nothing is computed."""
    if isinstance(cfg.adapter, Lora):
        assert isinstance(trainable, Adapter)
        assert frozen is not None
        return adapter.adapt(frozen, trainable, cfg.adapter)
    assert isinstance(trainable, Params)
    return trainable


def reference(frozen: Params | None, cfg: Config) -> Params | None:
    """The parameters that a KL penalty pulls towards; None without one."""
    return frozen if cfg.kl.weight > 0 else None


def has_frozen(cfg: Config) -> bool:
    """Whether a run of this configuration has frozen parameters."""
    return isinstance(cfg.adapter, Lora) or cfg.kl.weight > 0


def abstract_trainable(cfg: Config, arch: Architecture) -> Trainable:
    """The trainable tree of `jax.ShapeDtypeStruct`, without shardings."""
    if isinstance(cfg.adapter, Lora):
        return adapter.abstract(arch, cfg.adapter)
    return transformer.abstract(arch)


def abstract_frozen(cfg: Config, arch: Architecture, mesh: Mesh) -> Params | None:
    """The frozen tree as `jax.ShapeDtypeStruct`s with shardings: what to compile for."""
    if not has_frozen(cfg):
        return None
    params = transformer.abstract(arch)
    if isinstance(cfg.adapter, Lora):
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, base_dtype(cfg)), params)
    else:
        params = jax.eval_shape(
            partial(transformer.read_only, compute_dtype=cfg.train.compute_dtype), params
        )
    return abstract_on(params, mesh, PARAM_RULES)


def restore_weights(
    cfg: Config, mesh: Mesh, checkpoints: str | os.PathLike[str], *, step: int | None = None
) -> tuple[Params, Architecture, int]:
    """The policy's parameters as a run of this configuration saved them, and the step.

    A LoRA run's checkpoints hold the adapter, so its base is loaded anew from `cfg.model`.

    Args:
      checkpoints: the folder; it may belong to a running process.
      step: which one; None for the newest.
    Raises: ValueError as `restore_params` and `load_model` do.
    """
    trainable, step = restore_trainable(cfg, mesh, checkpoints, step=step)
    if isinstance(cfg.adapter, Lora):
        frozen, arch = load_model(cfg.model, mesh, seed=cfg.seed, dtype=base_dtype(cfg))
        return weights(trainable, frozen, cfg), arch, step
    return weights(trainable, None, cfg), load_architecture(cfg.model), step


def restore_trainable(
    cfg: Config, mesh: Mesh, checkpoints: str | os.PathLike[str], *, step: int | None = None
) -> tuple[Trainable, int]:
    """What a run trained, without what it kept frozen; else as `restore_weights`."""
    trainable = abstract_trainable(cfg, load_architecture(cfg.model))
    return restore_params(checkpoints, abstract_on(trainable, mesh, PARAM_RULES), step=step)
