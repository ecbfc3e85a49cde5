"""The policy as two trees: the one that an update changes, and the one that stays as it is.

                      trainable   frozen                     params        reference policy
    full training     Params      None, or with KL a copy    trainable     frozen
    LoRA              Adapter     the model                  both          frozen

So the reference policy of a LoRA run is its own base, and takes no memory. The train step, the
sampler and every reader of a checkpoint come through here; nothing else knows which case it is.
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
from cipo_jax.update import checkpoint

Trainable = Params | Adapter

_ADAPTER_KEY = 2**31 - 1
"""Folded into the run's key for the adapter's first weights; far above any step."""


def split(params: Params, cfg: Config, arch: Architecture) -> tuple[Trainable, Params | None]:
    """The trainable and the frozen tree at the start of a run from `params`.

    Full training takes `params` over, and copies them where a KL penalty needs a reference, in the
    dtypes that a forward pass reads them in.
    """
    if isinstance(cfg.adapter, Lora):
        key = jax.random.fold_in(jax.random.key(cfg.seed), _ADAPTER_KEY)
        init = jax.jit(partial(adapter.init, arch=arch, cfg=cfg.adapter))
        return init(key), params
    if cfg.kl.weight > 0:
        return params, transformer.read_only(params, cfg.train.compute_dtype)
    return params, None


def base_dtype(cfg: Config) -> str:
    """The dtype that the model is loaded in: float32 for weights that are trained, and the compute
    dtype for frozen ones, which only products in that dtype read.
    """
    return cfg.train.compute_dtype if isinstance(cfg.adapter, Lora) else "float32"


def params(trainable: Trainable, frozen: Params | None, cfg: Config) -> Params:
    """The policy's parameters, for the forward pass and the sampler.

    Nothing is computed: an adapter's low-rank terms are put beside the weights that they belong to.
    """
    if isinstance(cfg.adapter, Lora):
        assert isinstance(trainable, Adapter)
        assert frozen is not None
        return adapter.adapt(frozen, trainable, cfg.adapter)
    assert isinstance(trainable, Params)
    return trainable


def reference(frozen: Params | None, cfg: Config) -> Params | None:
    """The parameters of the policy that a KL penalty pulls towards; None without a penalty."""
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
    """The frozen tree as `jax.ShapeDtypeStruct`s with shardings, to compile for; None if nothing is
    frozen.
    """
    if not has_frozen(cfg):
        return None
    model = transformer.abstract(arch)
    if isinstance(cfg.adapter, Lora):
        dtype = base_dtype(cfg)
        frozen: Params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), model)
    else:
        read_only = partial(transformer.read_only, compute_dtype=cfg.train.compute_dtype)
        frozen = jax.eval_shape(read_only, model)
    return abstract_on(frozen, mesh, PARAM_RULES)


def restore_params(
    cfg: Config, mesh: Mesh, checkpoints: str | os.PathLike[str], *, step: int | None = None
) -> tuple[Params, Architecture, int]:
    """The policy's parameters as a run of this configuration saved them, its architecture, and the
    step that saved them.

    A LoRA run's checkpoints hold the adapter, so its base is loaded anew from `cfg.model`.

    Args:
      checkpoints: the folder; it may belong to a running process.
      step: of the checkpoint; None for the newest.
    Raises: as `checkpoint.restore_params` and `load_model` do.
    """
    trainable, step = restore_trainable(cfg, mesh, checkpoints, step=step)
    if isinstance(cfg.adapter, Lora):
        frozen, arch = load_model(cfg.model, mesh, seed=cfg.seed, dtype=base_dtype(cfg))
        return params(trainable, frozen, cfg), arch, step
    return params(trainable, None, cfg), load_architecture(cfg.model), step


def restore_trainable(
    cfg: Config, mesh: Mesh, checkpoints: str | os.PathLike[str], *, step: int | None = None
) -> tuple[Trainable, int]:
    """The trainable tree alone, as a run saved it, and the step; otherwise as `restore_params`."""
    trainable = abstract_trainable(cfg, load_architecture(cfg.model))
    wanted = abstract_on(trainable, mesh, PARAM_RULES)
    return checkpoint.restore_params(checkpoints, wanted, step=step)
