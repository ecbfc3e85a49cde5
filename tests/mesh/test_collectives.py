"""A scattered sum, made of exchanges between pairs of devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cipo_jax.mesh.collectives import reduce_scatter

pytestmark = pytest.mark.slow

SHAPE = (24, 48)
MESHES = [(1, 2), (2, 4), (1, 8), (1, 6), (2, 3), (1, 1)]


def scattered(scatter, mesh, dimension):
    """`scatter` over `b` of what every device has: its own numbers."""
    mesh = jax.make_mesh(
        mesh, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(mesh)]
    )
    spec = P("a", *[None] * dimension, "b")

    def piece(x):
        return scatter(x[0, 0], "b", dimension)[None]

    function = jax.shard_map(piece, mesh=mesh, in_specs=P("a", "b"), out_specs=spec)
    return jax.jit(function)


def built_in(x, axis, dimension):
    return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def by_halving(x, axis, dimension):
    return reduce_scatter(x, axis, dimension=dimension)


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_each_device_has_its_piece_of_the_sum(mesh, dimension):
    """Along axes of two, three, four, six and eight devices, also where each sums for itself along
    another axis."""
    # Whole numbers, so that the order of additions makes no difference.
    x = jax.random.randint(jax.random.key(3), (*mesh, *SHAPE), 0, 100).astype(jnp.float32)
    ours = scattered(by_halving, mesh, dimension)
    theirs = scattered(built_in, mesh, dimension)
    np.testing.assert_array_equal(ours(x), theirs(x))
    np.testing.assert_array_equal(ours(x), x.sum(axis=1))
    # Control: each device's numbers count, and each at its place.
    assert mesh[1] == 1 or np.abs(ours(x) - mesh[1] * x[:, 0]).max() > 0
    assert np.abs(ours(x)[0] - np.roll(x.sum(axis=1)[0], 1, axis=dimension)).max() > 0


@pytest.mark.parametrize(("num_devices", "exchanges"), [(2, 1), (4, 2), (8, 3), (6, 1)])
def test_bytes_that_are_sent(num_devices, exchanges):
    """(n - 1) / n of all in log2 n exchanges, and nothing summed whole."""
    function = scattered(by_halving, (1, num_devices), 1)
    x = jax.ShapeDtypeStruct((1, num_devices, *SHAPE), jnp.float32)
    text = function.lower(x).compile().as_text()
    sent = re.findall(r"= f32\[(\d+),(\d+)\]\S* collective-permute\(", text)
    assert len(sent) == exchanges
    odd = num_devices >> exchanges
    assert sum(int(m) * int(n) for m, n in sent) == np.prod(SHAPE) * (1 - odd / num_devices)
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 0
    assert (" reduce-scatter(" in text) == (odd > 1)


def test_what_does_not_divide_is_refused():
    function = scattered(by_halving, (1, 7), 0)
    with pytest.raises(ValueError, match=r"dimension 0 of \(24, 48\).*multiple of 7"):
        function.lower(jax.ShapeDtypeStruct((1, 7, *SHAPE), jnp.float32))
