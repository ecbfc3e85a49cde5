"""Products of rows with the matrix of their group, and the only place that chooses how.

On TPUs by the grouped kernels of jax (megablox). Elsewhere by `jax.lax.ragged_dot`, which is the
reference. On TPUs its forward pass is grouped too, but the gradient of its matrices is computed for
every group over all rows: 32 groups cost 32 times what is needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jaxtyping import Float, Int32

from cipo_jax.mesh.sharding import target_platform

_ROWS, _CHANNELS = (512, 256, 128), (512, 256, 128)
"""Tile sizes of the kernel, the largest first. Not tuned on a device."""


def grouped_product(
    x_YA: Float[Array, "Y A"], weight_EAB: Float[Array, "E A B"], size_G: Int32[Array, " G"]
) -> Float[Array, "Y B"]:
    """Rows times the matrix of their group, in their dtype; zero for rows of the last group.

    Args:
      x_YA: sorted by group.
      size_G: rows of each of the E groups, and of a last one that has no matrix; their sum is Y.
    """
    weight_EAB = weight_EAB.astype(x_YA.dtype)
    has_tiles = all(size % _CHANNELS[-1] == 0 for size in weight_EAB.shape[1:])
    if target_platform() == "tpu" and has_tiles:
        return kernel_product(x_YA, weight_EAB, size_G)
    y_YB = jax.lax.ragged_dot(x_YA, weight_EAB, size_G[:-1])
    # What the product leaves in rows of no group is not defined.
    has_matrix_Y = jnp.arange(len(x_YA)) < len(x_YA) - size_G[-1]
    return jnp.where(has_matrix_Y[:, None], y_YB, 0)


def kernel_product(
    x_YA: Array, weight_EAB: Array, size_G: Array, *, interpret: bool = False
) -> Array:
    """`grouped_product` by the kernel, for channels in whole tiles.

    Args:
      interpret: run the kernel as plain operations, on any machine; far too slow but for tests.
    """
    num_rows, num_in = x_YA.shape
    num_out = weight_EAB.shape[2]
    # Forward and backward share the tile sizes, and `in` and `out` change places between them.
    channels = next(t for t in _CHANNELS if num_in % t == num_out % t == 0)
    rows = next((t for t in _ROWS if num_rows >= t), _ROWS[-1])
    missing = -num_rows % rows
    size_G = size_G.at[-1].add(missing).astype(jnp.int32)
    y_YB = gmm(
        jnp.pad(x_YA, [(0, missing), (0, 0)]),
        weight_EAB,
        size_G,
        x_YA.dtype,
        (rows, channels, channels),
        None,
        None,
        False,
        interpret,
    )
    return y_YB[:num_rows]
