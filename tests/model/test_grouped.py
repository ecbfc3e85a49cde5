"""Grouped products: the reference against a loop, and the kernel against the reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.model import grouped
from cipo_jax.model.grouped import grouped_product, kernel_product

SIZES = jnp.array([70, 0, 130, 41, 59], jnp.int32)
"""Rows of four groups, one of them empty, none of whole tiles; and rows of no group."""

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(int(SIZES.sum()), 256)), jnp.float32)
WEIGHT = jnp.asarray(RNG.normal(size=(4, 256, 128)), jnp.float32)


def test_rows_meet_the_matrix_of_their_group():
    matrices = np.concatenate([WEIGHT, np.zeros((1, 256, 128), np.float32)])
    expected = np.einsum("ya,yab->yb", X, matrices[np.repeat(np.arange(5), SIZES)])
    found = grouped_product(X, WEIGHT, SIZES)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(grouped_product(X, WEIGHT[::-1], SIZES) - expected).max() > 1  # the control


@pytest.mark.parametrize("num_rows", [300, 37])
def test_the_kernel_equals_the_reference(num_rows):
    """Values, and the gradients of rows and of matrices; also for fewer rows than a tile has."""
    sizes = SIZES if num_rows == 300 else jnp.array([5, 0, 20, 0, 12], jnp.int32)

    def value_and_gradients(product):
        def loss(x, weight):
            y = product(x, weight, sizes)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(X[:num_rows], WEIGHT)

    expected = value_and_gradients(grouped_product)
    found = value_and_gradients(partial(kernel_product, interpret=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected
    )
    gradient = np.asarray(expected[1][1])
    assert np.abs(gradient[2]).max() > 1
    assert np.all(gradient[1] == 0)  # of the empty group


def test_what_is_chosen(monkeypatch):
    """The kernel on TPUs, for channels in whole tiles; the reference for all else."""

    def is_by_the_kernel(x_YX, weight_EXZ):
        return bool(jnp.isnan(grouped_product(x_YX, weight_EXZ, SIZES)).all())

    monkeypatch.setattr(
        grouped, "kernel_product", lambda x, weight, _: jnp.full((len(x), weight.shape[2]), jnp.nan)
    )
    monkeypatch.setattr(grouped, "target_platform", lambda: "tpu")
    assert is_by_the_kernel(X, WEIGHT)
    assert not is_by_the_kernel(X[:, :32], WEIGHT[:, :32])
    monkeypatch.setattr(grouped, "target_platform", lambda: "gpu")
    assert not is_by_the_kernel(X, WEIGHT)
