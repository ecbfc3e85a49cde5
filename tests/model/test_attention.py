"""The kernels against the reference, run as plain operations where their machine is not there."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.model.attention import fused_attention, packed_attention
from cipo_jax.model.blockwise import blockwise_attention
from cipo_jax.model.splash import splash_attention
from tests.batches import random_batch

ROWS, TOKENS = 2, 200  # not a multiple of the kernel's blocks
SHAPES = {"grouped": (2, 1, 64), "wide": (1, 1, 128)}


def inputs(shape, seed=0):
    """Packed rows with shared prompts, and scores that spread: no token's weight is uniform."""
    num_heads, num_kv_heads, width = shape
    batch = random_batch(ROWS, TOKENS, vocab_size=10, samples=3, seed=seed)
    rng = np.random.default_rng(seed)

    def normal(heads):
        return jnp.asarray(rng.normal(size=(ROWS, TOKENS, heads, width)).astype(np.float32))

    qkv = (normal(num_heads), normal(num_kv_heads), normal(num_kv_heads))
    return qkv, jnp.asarray(batch.segment_BT), jnp.asarray(batch.prefix_BT)


def value_and_grads(attend, qkv, segment_BT, prefix_BT):
    """The output where it is read, and the gradients of a sum over it."""
    weight_BT11 = jnp.where(segment_BT > 0, jnp.cos(jnp.arange(TOKENS)), 0.0)[..., None, None]

    def loss(qkv):
        out_BTNH = attend(*qkv, segment_BT, prefix_BT)
        return jnp.sum(out_BTNH * weight_BT11), jnp.where(weight_BT11 != 0, out_BTNH, 0.0)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
    return jax.tree.map(np.asarray, (out, *grads))


def largest_gap(ours, theirs):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


KERNELS = {
    "splash": lambda *arrays: splash_attention(*arrays, interpret=True),
    "fused": lambda *arrays: fused_attention(*arrays, implementation="xla"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_is_the_reference(kernel, shape) -> None:
    qkv, segment_BT, prefix_BT = inputs(shape)
    assert (np.asarray(segment_BT) != np.asarray(prefix_BT)).any()  # there are shared prompts
    reference = value_and_grads(blockwise_attention, qkv, segment_BT, prefix_BT)
    ours = value_and_grads(kernel, qkv, segment_BT, prefix_BT)
    assert largest_gap(ours, reference) < 1e-5
    # Controls: completions that see each other, and completions that don't see their prompt.
    together = value_and_grads(blockwise_attention, qkv, prefix_BT, prefix_BT)
    apart = value_and_grads(blockwise_attention, qkv, segment_BT, segment_BT)
    assert largest_gap(ours, together) > 1e-2
    assert largest_gap(ours, apart) > 1e-2


def test_on_a_cpu_the_reference_is_chosen() -> None:
    qkv, segment_BT, prefix_BT = inputs(SHAPES["grouped"])
    text = jax.jit(packed_attention).lower(*qkv, segment_BT, prefix_BT).as_text()
    assert "custom_call" not in text.replace("@Sharding", "")


FOR_TPU = """
import os
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from cipo_jax import config
from cipo_jax.model.attention import packed_attention
from cipo_jax.model.blockwise import Window
from cipo_jax.mesh.sharding import ACTIVATION_RULES, make_mesh, spec_of

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = make_mesh(config.MeshShape(fsdp=2, tensor=2), list(chips))

def on_mesh(letters, *shape, dtype=jnp.bfloat16):
    spec = spec_of(letters, shape, mesh, ACTIVATION_RULES)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

def kernels(num_kv_heads, window):
    q = on_mesh("B T N H", 4, 384, 4, 64)
    kv = on_mesh("B T K H", 4, 384, num_kv_heads, 64)
    ids = on_mesh("B T", 4, 384, dtype=jnp.int32)

    def loss(q, k, v, ids):
        windowed = Window(ids, jnp.int32(8)) if window else None
        return jnp.sum(packed_attention(q, k, v, ids, ids, windowed).astype(jnp.float32))

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, ids).compile()
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')

print(kernels(2, False), kernels(1, False), kernels(2, True))
"""


@pytest.mark.slow
def test_on_a_tpu_the_kernel_is_in_the_program() -> None:
    """Compiled for chips that are not there: forward, and backward for queries and for keys; also
    where tensor does not divide the key/value heads. With a window it is plain XLA."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.skip("libtpu is made for Linux x86-64 only")
    printed = subprocess.run(
        [sys.executable, "-c", FOR_TPU], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    assert printed.split() == ["3", "3", "0"]
