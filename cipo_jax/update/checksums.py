"""Checksums of a state: made before it is saved, and compared with those of what was restored.

In: a tree of arrays and a JSON-able dict of host state. Out: one record that holds the host state,
a checksum of every array, and one of the record itself. The arrays' checksums are computed on the
devices from the bits of the arrays, so they hold on any mesh and see what went wrong anywhere
between the devices that saved and those that restored.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt32


class DamagedError(RuntimeError):
    """The restored state is not the saved one."""


def sealed(host_state: dict[str, Any], tree: Any) -> dict[str, Any]:
    """The record that is stored beside the arrays of `tree`."""
    sums = of_arrays(tree)
    return {
        "state": host_state,
        "array_checksums": sums,
        "checksum": _of_text(host_state, sums),
    }


def opened(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """The host state of a sealed record, and the checksum of each array by its path in the state.

    Raises: DamagedError if the record is not as it was sealed.
    """
    host_state, sums = record["state"], record["array_checksums"]
    if record["checksum"] != _of_text(host_state, sums):
        raise DamagedError("the host state is not what was saved: its checksum differs")
    return host_state, sums


def check(tree: Any, saved: dict[str, int]) -> None:
    """Compare the arrays of a tree, the whole state or a part of it, with what was saved.

    Raises: DamagedError that names the first array that differs.
    """
    for name, found in of_arrays(tree).items():
        if saved.get(name) != found:
            raise DamagedError(f"{name} is not what was saved: its checksum differs")


def of_arrays(tree: Any) -> dict[str, int]:
    """Path of each array in a tree, like `params/blocks/q`, to the checksum of its bits."""
    # An array at a time: in one program, XLA's CPU backend would hold the hashes of all of them.
    sums = jax.device_get(jax.tree.map(_bit_sum, tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(x)
        for path, x in jax.tree_util.tree_flatten_with_path(sums)[0]
    }


@jax.jit
def _bit_sum(x: Shaped[jax.Array, "..."]) -> UInt32[jax.Array, ""]:
    """The sum, modulo 2^32, of a hash of each element's bits and place.

    The hash is a bijection of the bits, so a change of one element always changes the sum; several
    changes cancel with a chance of 2^-32. Sums of whole numbers don't depend on their order, and
    so not on the mesh.
    """
    if x.ndim < 3:
        return _sum_of_hashes(x, jnp.uint32(0))
    # Stacked over layers: one at a time, so that the hashes of a layer are all there is.
    starts = jnp.arange(x.shape[0], dtype=jnp.uint32)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _sum_of_hashes(*part), None

    total: jax.Array
    total, _ = jax.lax.scan(add, jnp.uint32(0), (x, starts))
    return total


def _sum_of_hashes(x: jax.Array, start: jax.Array) -> jax.Array:
    """Sum of the hashes of the elements of `x`, whose places are counted from `start` times the
    size of `x`."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * np.dtype(x.dtype).itemsize}")
    place = jnp.full(bits.shape, start, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * jnp.uint32(size) + index
    # The finaliser of MurmurHash3.
    h = bits.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def _of_text(*parts: Any) -> int:
    return zlib.crc32(json.dumps(parts, sort_keys=True).encode())
