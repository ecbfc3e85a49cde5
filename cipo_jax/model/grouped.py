"""Products of rows with the matrix of their group, and the only place that chooses how.

On TPUs by the grouped kernels of jax (megablox). Elsewhere by `jax.lax.ragged_dot`, which is the
reference. On TPUs its forward pass is grouped too, but the gradient of its matrices is computed for
every group over all rows: 32 groups cost 32 times what is needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jaxtyping import Float, Int32

from cipo_jax.mesh.sharding import target_platform

_ROWS, _CHANNELS = (512, 256, 128), (512, 256, 128)
"""Tile sizes of the kernel, the largest first. Not tuned on a device."""


def grouped_product(
    x_YX: Float[jax.Array, "Y X"],
    weight_EXZ: Float[jax.Array, "E X Z"],
    group_sizes: Int32[jax.Array, " E+1"],
) -> Float[jax.Array, "Y Z"]:
    """Rows times the matrix of their group, in their dtype; zero for rows of the last group.

    Args:
      x_YX: sorted by group.
      group_sizes: rows of each of the E groups, and of a last one that has no matrix; their sum is
        Y.
    """
    weight_EXZ = weight_EXZ.astype(x_YX.dtype)
    has_tiles = all(size % _CHANNELS[-1] == 0 for size in weight_EXZ.shape[1:])
    if target_platform() == "tpu" and has_tiles:
        return kernel_product(x_YX, weight_EXZ, group_sizes)
    y_YZ = jax.lax.ragged_dot(x_YX, weight_EXZ, group_sizes[:-1])
    # The product leaves rows of no group undefined.
    has_matrix_Y = jnp.arange(len(x_YX)) < len(x_YX) - group_sizes[-1]
    return jnp.where(has_matrix_Y[:, None], y_YZ, 0)


def kernel_product(
    x_YX: jax.Array, weight_EXZ: jax.Array, group_sizes: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """`grouped_product` by the kernel, for channels in whole tiles.

    Args:
      interpret: run the kernel as plain operations, on any machine; far too slow but for tests.
    """
    num_rows, num_in = x_YX.shape
    num_out = weight_EXZ.shape[2]
    # Forward and backward share the tile sizes, and channels in and out swap between them.
    channels = next(t for t in _CHANNELS if num_in % t == num_out % t == 0)
    rows = next((t for t in _ROWS if num_rows >= t), _ROWS[-1])
    missing = -num_rows % rows
    y_YZ: jax.Array = gmm(
        jnp.pad(x_YX, [(0, missing), (0, 0)]),
        weight_EXZ,
        group_sizes.at[-1].add(missing).astype(jnp.int32),
        x_YX.dtype,
        (rows, channels, channels),
        None,
        None,
        False,
        interpret,
    )
    return y_YZ[:num_rows]
