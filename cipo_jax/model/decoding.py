"""Parameters as decoding takes them: layer by layer, and in the types that it reads them in."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from cipo_jax.model.linear import Adapted, Weight, merged
from cipo_jax.model.transformer import Params

Stacked = TypeVar("Stacked")


@partial(jax.jit, static_argnames="dtype")
def layer_of(stacked: Stacked, layer: Int32[jax.Array, ""], *, dtype: np.dtype) -> Stacked:
    """One layer of a record whose arrays are stacked over layers.

    Matrices come in `dtype`, vectors (the scales of norms) in float32; low-rank terms are merged
    into their matrices, so that they cost nothing per token. Decoding reads every weight once per
    token: from a stacked array inside a loop, XLA's CPU backend copies each slice before use (2.4
    to 3 times slower). This one small program serves all layers; a trace that took a model apart
    would hold a slice per layer and array, and compile for seconds.
    """

    def at_layer(x: jax.Array) -> jax.Array:
        own: jax.Array = jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return own

    def take(x: Weight) -> jax.Array:
        array = merged(jax.tree.map(at_layer, x)) if isinstance(x, Adapted) else at_layer(x)
        return array.astype(_dtype_read(array.ndim, dtype))

    taken: Stacked = jax.tree.map(take, stacked, is_leaf=lambda x: isinstance(x, Adapted))
    return taken


@flax.struct.dataclass
class Ends:
    """The parameters before and after the layers.

    Decoding takes these and single layers, so it is the same program for a model that is trained,
    in float32, and for a model that is frozen in bfloat16 under an adapter.
    """

    embed: Float[jax.Array, "V D"]
    final_norm: Float[jax.Array, " D"]
    head: Float[jax.Array, "D V"] | None


def ends_of(params: Params) -> Ends:
    """The ends as they are; `cast` gives some of their arrays another type."""
    return Ends(embed=params.embed, final_norm=params.final_norm, head=params.head)


def to_cast(ends: Ends, dtype: DTypeLike) -> dict[str, Any]:
    """Name -> array (or `jax.ShapeDtypeStruct`) of the ends that decoding in `dtype` reads in
    another type than it has.

    The others must stay out of `cast`: a compiled program would copy them.
    """
    return {
        name: x
        for name, x in vars(ends).items()
        if x is not None and x.dtype != _dtype_read(x.ndim, dtype)
    }


@partial(jax.jit, static_argnames="dtype")
def cast(arrays: dict[str, jax.Array], *, dtype: np.dtype) -> dict[str, jax.Array]:
    """Each array in the type that decoding in `dtype` reads it in."""
    return {name: x.astype(_dtype_read(x.ndim, dtype)) for name, x in arrays.items()}


def _dtype_read(num_axes: int, dtype: DTypeLike) -> np.dtype:
    """The type that decoding in `dtype` reads an array of one layer in."""
    return jnp.dtype(dtype if num_axes > 1 else jnp.float32)
