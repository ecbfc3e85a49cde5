"""A layer's MLP in several experts: a router chooses some for each token, none is ever dropped.

The tokens are sorted by expert, and each expert's weights meet its own tokens in one grouped matrix
product (`grouped.py`). Over a mesh, every device computes the experts that it holds for the rows of
its `expert` group: rows are gathered along that axis, and their sums scattered back.

There is no auxiliary loss for an even load: it would add a gradient that no reward asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Float32, Int32

from cipo_jax.mesh.sharding import ROW_AXES
from cipo_jax.model.grouped import grouped_product
from cipo_jax.model.presets import Activation, Experts

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
"""The functions that `Architecture.activation` names."""


def mix_experts(
    x_BTD: Float[jax.Array, "B T D"],
    router_DE: Float[jax.Array, "D E"],
    gate_EDF: Float[jax.Array, "E D F"],
    up_EDF: Float[jax.Array, "E D F"],
    down_EFD: Float[jax.Array, "E F D"],
    *,
    experts: Experts,
    activation: Activation,
) -> Float[jax.Array, "B T D"]:
    """Sum over each token's chosen experts of routing weight * MLP, in x's dtype.

    Under the mesh of `jax.set_mesh` the work is split as the module says; rows that the mesh does
    not divide are computed on every device.

    Source: Yang et al. 2025, arXiv 2505.09388 (Qwen3); grouped products as in Gale et al. 2022,
    arXiv 2211.15841.
    """
    mesh = jax.sharding.get_abstract_mesh()
    weights = (router_DE, gate_EDF, up_EDF, down_EFD)
    local_sum = partial(_local_sum, experts=experts, activation=activation)
    if mesh.empty:
        return local_sum(x_BTD, *weights, first=0)
    are_rows_split = x_BTD.shape[0] % math.prod(mesh.shape[axis] for axis in ROW_AXES) == 0
    rows = P(ROW_AXES) if are_rows_split else P()

    def on_device(x_BTD: jax.Array, *weights: jax.Array) -> jax.Array:
        if are_rows_split:
            x_BTD = jax.lax.all_gather(x_BTD, "expert", axis=0, tiled=True)
        first = jax.lax.axis_index("expert") * weights[1].shape[0]
        sum_BTD: jax.Array = jax.lax.psum(local_sum(x_BTD, *weights, first=first), "tensor")
        if are_rows_split:
            sum_BTD = jax.lax.psum_scatter(sum_BTD, "expert", scatter_dimension=0, tiled=True)
        else:
            sum_BTD = jax.lax.psum(sum_BTD, "expert")
        return sum_BTD

    y_BTD: jax.Array = jax.shard_map(
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
    return y_BTD


def route(
    x_ID: Float[jax.Array, "I D"], router_DE: Float[jax.Array, "D E"], experts: Experts
) -> tuple[Float32[jax.Array, "I A"], Int32[jax.Array, "I A"]]:
    """Weights and indices of the A experts of each token, the likeliest first.

        p = softmax(x @ router);   weight = p of the A largest, divided by their sum if normalised

    The product is in x's dtype, as all products are, and accumulated in float32: scorer and sampler
    then agree on which experts a token has, up to ties within rounding.
    """
    score_IE = jnp.dot(x_ID, router_DE.astype(x_ID.dtype), preferred_element_type=jnp.float32)
    weight_IA, index_IA = jax.lax.top_k(jax.nn.softmax(score_IE, axis=-1), experts.num_per_token)
    if experts.is_normalised:
        weight_IA = weight_IA / jnp.sum(weight_IA, axis=-1, keepdims=True)
    return weight_IA, index_IA


def _local_sum(
    x_BTD: jax.Array,
    router_DE: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    *,
    first: jax.Array | int,
    experts: Experts,
    activation: Activation,
) -> jax.Array:
    """The sum over those chosen experts that are here: `gate_EDF.shape[0]` of them from `first`."""
    x_ID = x_BTD.reshape(-1, x_BTD.shape[-1])
    weight_IA, index_IA = route(x_ID, router_DE, experts)
    num_here, num_chosen = gate_EDF.shape[0], index_IA.shape[1]
    # Pairs of token and expert, sorted by expert; those of experts elsewhere come last.
    expert_Y = index_IA.reshape(-1) - first
    expert_Y = jnp.where((expert_Y >= 0) & (expert_Y < num_here), expert_Y, num_here)
    order_Y = jnp.argsort(expert_Y)
    group_sizes = jnp.bincount(expert_Y, length=num_here + 1)
    x_YD = jnp.where((expert_Y[order_Y] < num_here)[:, None], x_ID[order_Y // num_chosen], 0)
    gate_YF = ACTIVATIONS[activation](grouped_product(x_YD, gate_EDF, group_sizes))
    hidden_YF = gate_YF * grouped_product(x_YD, up_EDF, group_sizes)
    y_YD = grouped_product(hidden_YF, down_EFD, group_sizes)
    y_IAD = y_YD[jnp.argsort(order_Y)].reshape(*index_IA.shape, -1)
    sum_ID = jnp.einsum("IA,IAD->ID", weight_IA, y_IAD, preferred_element_type=jnp.float32)
    return sum_ID.astype(x_BTD.dtype).reshape(x_BTD.shape)
