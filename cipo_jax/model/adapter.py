"""Low-rank adaptation: a second small tree of parameters beside a frozen decoder.

    W x  ->  W x + scale * (x A) B,    A [in, R],  B [R, out]

An `Adapter` is a record like `Block`, so sharding, the optimizer and checkpoints read it without
knowing what it is. `adapt` puts it into the decoder's parameters, where the forward pass finds it.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import typing
from dataclasses import replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from cipo_jax.config import Lora
from cipo_jax.mesh.sharding import letters_of
from cipo_jax.model import transformer
from cipo_jax.model.linear import Adapted, merged
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params


@flax.struct.dataclass
class Adapter:
    """A and B of each adapted projection, stacked over layers; None for the others."""

    q_a: Float[Array, "L D R"] | None
    q_b: Float[Array, "L R N H"] | None
    k_a: Float[Array, "L D R"] | None
    k_b: Float[Array, "L R K H"] | None
    v_a: Float[Array, "L D R"] | None
    v_b: Float[Array, "L R K H"] | None
    o_a: Float[Array, "L N H R"] | None
    o_b: Float[Array, "L R D"] | None
    gate_a: Float[Array, "L D R"] | None
    gate_b: Float[Array, "L R F"] | None
    up_a: Float[Array, "L D R"] | None
    up_b: Float[Array, "L R F"] | None
    down_a: Float[Array, "L F R"] | None
    down_b: Float[Array, "L R D"] | None


def init(key: PRNGKeyArray, arch: Architecture, cfg: Lora) -> Adapter:
    """An adapter that changes nothing yet, in float32.

        A ~ U(-1/sqrt(in), 1/sqrt(in)),    B = 0

    as in the peft library. The A of a projection does not depend on which others are adapted.

    Raises: ValueError for a projection that the architecture does not have.
    """
    sizes = {
        "L": arch.num_layers,
        "D": arch.model_dim,
        "N": arch.num_heads,
        "K": arch.num_kv_heads,
        "H": arch.head_dim,
        "F": arch.mlp_dim,
        "R": cfg.rank,
    }

    blocks = transformer.abstract(arch).blocks
    absent = [name for name in cfg.projections if getattr(blocks, name) is None]
    if absent:
        raise ValueError(
            f"adapter.projections names {', '.join(absent)}, which layers of the {arch.family} "
            "family don't have: leave them out."
        )

    def draw(index: int, name: str, hint: object) -> Array | None:
        projection, side = name.split("_")
        if projection not in cfg.projections:
            return None
        shape = tuple(sizes[letter] for letter in str(letters_of(hint)).split())
        if side == "b":
            return jnp.zeros(shape, jnp.float32)
        bound = math.prod(shape[1:-1]) ** -0.5
        return jax.random.uniform(
            jax.random.fold_in(key, index), shape, jnp.float32, minval=-bound, maxval=bound
        )

    hints = typing.get_type_hints(Adapter).items()
    return Adapter(**{name: draw(index, name, hint) for index, (name, hint) in enumerate(hints)})


def abstract(arch: Architecture, cfg: Lora) -> Adapter:
    """`Adapter` of `jax.ShapeDtypeStruct`, with no memory."""
    return jax.eval_shape(partial(init, arch=arch, cfg=cfg), jax.random.key(0))


def merge(params: Params, dtype: np.dtype) -> Params:
    """The decoder in `dtype`, with each adapted matrix merged in float32 and rounded once."""

    @jax.jit
    def one(weight: Array | Adapted) -> Array:
        if isinstance(weight, Adapted):
            weight = jax.lax.map(merged, weight)  # a layer at a time
        return weight.astype(dtype)

    return jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Adapted))


def adapt(params: Params, adapter: Adapter, cfg: Lora) -> Params:
    """The decoder with the adapter in it: what the forward pass and the sampler take.

    Nothing is computed and nothing copied: each adapted matrix becomes an `Adapted` that holds it.
    """
    adapted = {
        name: Adapted(
            weight=getattr(params.blocks, name),
            a=getattr(adapter, f"{name}_a"),
            b=getattr(adapter, f"{name}_b"),
            scale=cfg.scale,
        )
        for name in cfg.projections
    }
    return replace(params, blocks=replace(params.blocks, **adapted))
