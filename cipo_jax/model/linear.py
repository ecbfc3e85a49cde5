"""Activations times a weight, plain or with a low-rank term beside it."""

from __future__ import annotations

from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float


@flax.struct.dataclass
class Adapted:
    """A frozen weight with a low-rank term: weight + scale * a @ b.

    It takes the place of the weight in a record of parameters, and is sliced over layers as that
    would be. With weight [in, out], a is [in, R] and b [R, out]; `in` and `out` may each be several
    axes.
    """

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float = flax.struct.field(pytree_node=False)


Weight: TypeAlias = jax.Array | Adapted
"""A matrix of the decoder as a product takes it."""


def product(
    x_BTX: Float[jax.Array, "B T X"], weight: Weight, *, in_axes: int = 1
) -> Float[jax.Array, "B T ..."]:
    """Tokens [B, T, X] times a weight in their dtype: [B, T, *out].

    A low-rank term is applied as (x @ a) @ b, so neither the merged weight nor its gradient ever
    exists: the backward pass only has products with R columns.

    Args:
      weight: its first `in_axes` axes together are X, the others are `out`.
    """
    if isinstance(weight, Adapted):
        low_rank = product(product(x_BTX, weight.a, in_axes=in_axes), weight.b)
        return product(x_BTX, weight.weight, in_axes=in_axes) + weight.scale * low_rank
    # One matrix product with the tokens of all rows as its rows: given more axes, XLA's CPU
    # backend transposes activations in the backward pass, which costs a fifth of a step.
    num_rows, row_length, num_in = x_BTX.shape
    y = x_BTX.reshape(-1, num_in) @ weight.astype(x_BTX.dtype).reshape(num_in, -1)
    return y.reshape(num_rows, row_length, *weight.shape[in_axes:])


def merged(adapted: Adapted) -> jax.Array:
    """The plain weight that gives the same products, in float32."""
    low_rank = jnp.tensordot(adapted.a, adapted.b, axes=1, preferred_element_type=jnp.float32)
    return adapted.weight.astype(jnp.float32) + adapted.scale * low_rank
