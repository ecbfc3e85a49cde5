"""Low-rank adaptation: a second small tree of parameters beside a frozen decoder.

    W x  ->  W x + scale * (x A) B,    A [in, R],  B [R, out]

An `Adapter` is a record like `Block`, so sharding, the optimizer and checkpoints read it without
knowing what it is. `adapt` puts it into the decoder's parameters, where the forward pass finds it.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from cipo_jax.config import Lora
from cipo_jax.model import transformer
from cipo_jax.model.letters import filled, shape_of
from cipo_jax.model.linear import Adapted, Weight, merged
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params


@flax.struct.dataclass
class Adapter:
    """A and B of each adapted projection, stacked over layers; None for the others."""

    q_a: Float[jax.Array, "L D R"] | None
    q_b: Float[jax.Array, "L R N H"] | None
    k_a: Float[jax.Array, "L D R"] | None
    k_b: Float[jax.Array, "L R K H"] | None
    v_a: Float[jax.Array, "L D R"] | None
    v_b: Float[jax.Array, "L R K H"] | None
    o_a: Float[jax.Array, "L N H R"] | None
    o_b: Float[jax.Array, "L R D"] | None
    gate_a: Float[jax.Array, "L D R"] | None
    gate_b: Float[jax.Array, "L R F"] | None
    up_a: Float[jax.Array, "L D R"] | None
    up_b: Float[jax.Array, "L R F"] | None
    down_a: Float[jax.Array, "L F R"] | None
    down_b: Float[jax.Array, "L R D"] | None


def init(key: PRNGKeyArray, arch: Architecture, cfg: Lora) -> Adapter:
    """An adapter that changes nothing yet, in float32.

        A ~ U(-1/sqrt(in), 1/sqrt(in)),    B = 0

    as in the peft library. The A of a projection does not depend on which others are adapted.

    Raises: ValueError for a projection that the architecture does not have.
    """
    blocks = transformer.abstract(arch).blocks
    absent = [name for name in cfg.projections if getattr(blocks, name) is None]
    if absent:
        raise ValueError(
            f"adapter.projections names {', '.join(absent)}, which layers of the {arch.family} "
            "family don't have: leave them out."
        )
    order = [field.name for field in dataclasses.fields(Adapter)]

    def drawn(name: str, letters: str) -> jax.Array | None:
        projection, side = name.split("_")
        if projection not in cfg.projections:
            return None
        shape = shape_of(letters, arch.sizes | {"R": cfg.rank})
        if side == "b":
            return jnp.zeros(shape, jnp.float32)
        bound = math.prod(shape[1:-1]) ** -0.5
        own_key = jax.random.fold_in(key, order.index(name))
        return jax.random.uniform(own_key, shape, jnp.float32, minval=-bound, maxval=bound)

    return filled(Adapter, drawn)


def abstract(arch: Architecture, cfg: Lora) -> Adapter:
    """`Adapter` of `jax.ShapeDtypeStruct`, with no memory."""
    adapter: Adapter = jax.eval_shape(partial(init, arch=arch, cfg=cfg), jax.random.key(0))
    return adapter


def merge(params: Params, dtype: np.dtype) -> Params:
    """The decoder in `dtype`, with each adapted matrix merged in float32 and rounded once."""

    @jax.jit
    def one(weight: Weight) -> jax.Array:
        # A layer at a time.
        whole = jax.lax.map(merged, weight) if isinstance(weight, Adapted) else weight
        return whole.astype(dtype)

    result: Params = jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Adapted))
    return result


def adapt(params: Params, adapter: Adapter, cfg: Lora) -> Params:
    """The decoder with the adapter in it, as the forward pass and the sampler take it.

    Nothing is computed and nothing copied: each adapted matrix becomes an `Adapted` that holds it.
    """
    adapted: dict[str, Any] = {
        name: Adapted(
            weight=getattr(params.blocks, name),
            a=getattr(adapter, f"{name}_a"),
            b=getattr(adapter, f"{name}_b"),
            scale=cfg.scale,
        )
        for name in cfg.projections
    }
    return replace(params, blocks=replace(params.blocks, **adapted))
