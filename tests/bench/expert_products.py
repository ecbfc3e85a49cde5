"""What a TPU's compiler makes of one layer of experts, without a TPU.

    python tests/bench/expert_products.py            # needs libtpu: pip install -e '.[tpu]'

Compiles `mix_experts` with the dimensions of Qwen3-30B-A3B for eight v5e chips (fsdp 2, expert 4),
8 rows of 4096 tokens in bfloat16, and prints the compiler's own counts per chip. A grouped product
is counted as if all of its rows were in groups here: on average one in four is. Nothing is run.
"""

from __future__ import annotations

import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from cipo_jax import config
from cipo_jax.mesh.sharding import PARAM_RULES, ROW_AXES, make_mesh, shardings_of
from cipo_jax.model import grouped
from cipo_jax.model.experts import mix_experts
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import abstract

ARCH = PRESETS["Qwen/Qwen3-30B-A3B"]
FIELDS = ("router", "expert_gate", "expert_up", "expert_down")


def forward(x_BTD, *weights):
    return mix_experts(x_BTD, *weights, experts=ARCH.experts, activation=ARCH.activation)


def loss(x_BTD, *weights):
    return jnp.sum(forward(x_BTD, *weights).astype(jnp.float32) ** 2)


if __name__ == "__main__":
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = make_mesh(config.MeshShape(fsdp=2, expert=4), list(chips))
    blocks = abstract(ARCH).blocks
    shardings = shardings_of(blocks, mesh, PARAM_RULES)

    def described(shape, spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    x_BTD = described((8, 4096, ARCH.model_dim), (ROW_AXES,))
    weights = [
        described(getattr(blocks, name).shape[1:], getattr(shardings, name).spec[1:])
        for name in FIELDS
    ]
    kernel = grouped.target_platform
    for products in ("kernel", "ragged_dot"):
        grouped.target_platform = kernel if products == "kernel" else lambda: "not asked"
        for name, function in (("forward", forward), ("gradients", jax.grad(loss, range(5)))):
            start = time.process_time()
            with jax.set_mesh(mesh):
                program = (
                    jax.jit(lambda *args, f=function: f(*args)).lower(x_BTD, *weights).compile()
                )
            print(
                f"{products:10} {name:9} {program.cost_analysis()['flops'] / 1e12:6.2f} TFLOP, "
                f"{program.memory_analysis().temp_size_in_bytes / 2**20:6.0f} MiB temporary, "
                f"compiled in {time.process_time() - start:.0f} CPU-s",
                flush=True,
            )
