"""The policy as two trees: what an update changes, and what stays as it is.

                      trainable   frozen                     weights       reference policy
    full training     Params      None, or with KL a copy    trainable     frozen
    LoRA              Adapter     the model                  both          frozen

So the reference policy of a LoRA run is its own base, and takes no memory. The train step, the
sampler and whoever reads a checkpoint come through here; nothing else knows which case it is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cipo_jax.config import Config, Lora
from cipo_jax.model import adapter, transformer
from cipo_jax.model.adapter import Adapter
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.sharding import PARAM_RULES, shardings_of

Trainable = Params | Adapter

_ADAPTER_KEY = 2**31 - 1
"""Folded into the run's key for the adapter's first weights; far above any step."""


def split(params: Params, cfg: Config, arch: Architecture) -> tuple[Trainable, Params | None]:
    """What is trained and what is frozen at the start of a run from `params`.

    Full training takes `params` over, and copies them where a KL penalty needs a reference.
    """
    if isinstance(cfg.adapter, Lora):
        key = jax.random.fold_in(jax.random.key(cfg.seed), _ADAPTER_KEY)
        init = jax.jit(partial(adapter.init, arch=arch, cfg=cfg.adapter))
        return init(key), params
    return params, jax.tree.map(jnp.copy, params) if cfg.kl.weight > 0 else None


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
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, base_dtype(cfg), sharding=sharding),
        params,
        shardings_of(params, mesh, PARAM_RULES),
    )
