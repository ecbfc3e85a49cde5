"""A layer's MLP in several experts: a router chooses some for each token, none is ever dropped.

The tokens are sorted by expert, and each expert's weights meet its own tokens in one grouped matrix
product (`grouped.py`). Over a mesh, every device computes the experts that it holds for the rows of
its `expert` group: rows are gathered along that axis, and their sums scattered back.

There is no auxiliary loss for an even load: it would add a gradient that no reward asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Float32, Int32

from cipo_jax.mesh.sharding import ROW_AXES
from cipo_jax.model.grouped import grouped_product
from cipo_jax.model.presets import Architecture, Experts

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
"""The functions that `Architecture.activation` names."""


def mix_experts(
    x_BTD: Float[Array, "B T D"],
    router_DE: Float[Array, "D E"],
    gate_EDF: Float[Array, "E D F"],
    up_EDF: Float[Array, "E D F"],
    down_EFD: Float[Array, "E F D"],
    *,
    arch: Architecture,
) -> Float[Array, "B T D"]:
    """Sum over each token's chosen experts of routing weight * MLP, in x's dtype.

    Under the mesh of `jax.set_mesh` the work is split as the module says; rows that the mesh does
    not divide are computed on every device.

    Source: Yang et al. 2025, arXiv 2505.09388 (Qwen3); grouped products as in Gale et al. 2022,
    arXiv 2211.15841.
    """
    mesh = jax.sharding.get_abstract_mesh()
    weights = (router_DE, gate_EDF, up_EDF, down_EFD)
    if mesh.empty:
        return _local_sum(x_BTD, *weights, first=0, arch=arch)
    num_shards = 1
    for axis in ROW_AXES:
        num_shards *= mesh.shape[axis]
    are_rows_split = x_BTD.shape[0] % num_shards == 0
    rows = P(ROW_AXES) if are_rows_split else P()

    def on_device(x_BTD: Array, *weights: Array) -> Array:
        if are_rows_split:
            x_BTD = jax.lax.all_gather(x_BTD, "expert", axis=0, tiled=True)
        first = jax.lax.axis_index("expert") * weights[1].shape[0]
        sum_BTD = _local_sum(x_BTD, *weights, first=first, arch=arch)
        sum_BTD = jax.lax.psum(sum_BTD, "tensor")
        if are_rows_split:
            return jax.lax.psum_scatter(sum_BTD, "expert", scatter_dimension=0, tiled=True)
        return jax.lax.psum(sum_BTD, "expert")

    return jax.shard_map(
        on_device,
        in_specs=(
            rows,
            P(),
            P("expert", None, "tensor"),
            P("expert", None, "tensor"),
            P("expert", "tensor"),
        ),
        out_specs=rows,
        check_vma=False,
    )(x_BTD, *weights)


def route(
    x_XD: Float[Array, "X D"], router_DE: Float[Array, "D E"], experts: Experts
) -> tuple[Float32[Array, "X M"], Int32[Array, "X M"]]:
    """Weights and indices of the M experts of each token, the likeliest first.

        p = softmax(x @ router);   weight = p of the M largest, divided by their sum if normalised

    The product is in x's dtype, as all products are, and accumulated in float32: scorer and sampler
    then agree on which experts a token has, up to ties within rounding.
    """
    score_XE = jnp.dot(x_XD, router_DE.astype(x_XD.dtype), preferred_element_type=jnp.float32)
    weight_XM, index_XM = jax.lax.top_k(jax.nn.softmax(score_XE, axis=-1), experts.num_per_token)
    if experts.is_normalised:
        weight_XM = weight_XM / jnp.sum(weight_XM, axis=-1, keepdims=True)
    return weight_XM, index_XM


def _local_sum(
    x_BTD: Array,
    router_DE: Array,
    gate_EDF: Array,
    up_EDF: Array,
    down_EFD: Array,
    *,
    first: Array | int,
    arch: Architecture,
) -> Array:
    """The sum over those chosen experts that are here: `gate_EDF.shape[0]` of them from `first`."""
    assert arch.experts is not None
    x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
    weight_XM, index_XM = route(x_XD, router_DE, arch.experts)
    num_here, num_chosen = gate_EDF.shape[0], index_XM.shape[1]
    # Pairs of token and expert, sorted by expert; those of experts elsewhere come last.
    expert_Y = index_XM.reshape(-1) - first
    expert_Y = jnp.where((expert_Y >= 0) & (expert_Y < num_here), expert_Y, num_here)
    order_Y = jnp.argsort(expert_Y)
    size_G = jnp.bincount(expert_Y, length=num_here + 1)
    x_YD = jnp.where((expert_Y[order_Y] < num_here)[:, None], x_XD[order_Y // num_chosen], 0)
    gate_YF = ACTIVATIONS[arch.activation](grouped_product(x_YD, gate_EDF, size_G))
    y_YD = grouped_product(gate_YF * grouped_product(x_YD, up_EDF, size_G), down_EFD, size_G)
    y_XMD = y_YD[jnp.argsort(order_Y)].reshape(*index_XM.shape, -1)
    sum_XD = jnp.einsum("XM,XMD->XD", weight_XM, y_XMD, preferred_element_type=jnp.float32)
    return sum_XD.astype(x_BTD.dtype).reshape(x_BTD.shape)
