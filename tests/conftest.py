"""Tests run on eight CPU devices, in exact float32, with keys that don't depend on sharding, and
with the shapes, dtypes and kinds of arrays checked at every call of a function that declares them.
"""

import os
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest
from beartype import beartype

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_threefry_partitionable", True)


def checked(function: Callable) -> Callable:
    """The type checker of functions. Constructors are left out: `jax.tree.map` builds records anew
    with shapes, shardings and other things in the place of their arrays."""
    return function if function.__name__ == "__init__" else beartype(function)


# Before anything imports them. By name, as the hook compiles it into the modules.
jaxtyping.install_import_hook(
    ["cipo_jax.method", "cipo_jax.update"],
    # ["cipo_jax.method", "cipo_jax.model", "cipo_jax.rollout", "cipo_jax.update"],
    f"{__name__}.checked",
)


@pytest.fixture
def unchecked():
    """Functions as a run calls them, without the type checker: for what they refuse themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
