"""The sampler over meshes of devices: the tokens of one device, and memory split as it is said."""

import re

import jax
import numpy as np
import pytest

from cipo_jax import config
from cipo_jax.mesh.sharding import (
    ACTIVATION_RULES,
    PARAM_RULES,
    distributed,
    make_mesh,
    shardings_of,
)
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import Params
from cipo_jax.records import PromptBatch, Rollouts
from cipo_jax.rollout.sample import sample
from tests.rollout.stages import decode_stage
from tests.weights import drawn

pytestmark = pytest.mark.slow

ARCH = PRESETS["tiny-qwen3"]
Q, P, G, C = 8, 12, 4, 12
EOS = tuple(range(0, 320, 20))
"""One token in twenty ends a completion, so that rows end at all kinds of places."""

MESHES = {
    "8x1": config.MeshShape(data=1, fsdp=8, tensor=1),
    "4x2": config.MeshShape(data=1, fsdp=4, tensor=2),
    "2x2x2": config.MeshShape(data=2, fsdp=2, tensor=2),
}
OPTIONS = {
    "arch": ARCH,
    "samples_per_prompt": G,
    "max_new_tokens": C,
    "eos_ids": EOS,
    "compute_dtype": "float32",
}


def mesh_of(sizes: config.MeshShape) -> jax.sharding.Mesh:
    return make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])


def placed(mesh: jax.sharding.Mesh, seed: int = 0) -> tuple[Params, PromptBatch]:
    rng = np.random.default_rng(0)
    prompts = PromptBatch(
        token_QP=rng.integers(0, 320, (Q, P)).astype(np.int32),
        # One is empty, as rows are that fill up a batch.
        length_Q=np.array([12, 5, 7, 0, 9, 12, 3, 8], np.int32),
        key_id_Q=np.arange(Q, dtype=np.int32),
    )
    params = drawn(ARCH, seed)
    params = jax.device_put(params, shardings_of(params, mesh, PARAM_RULES))
    return params, distributed(prompts, mesh, ACTIVATION_RULES)


def run(mesh: jax.sharding.Mesh, seed: int = 0, key: int = 1) -> Rollouts:
    with jax.set_mesh(mesh):
        return sample(*placed(mesh, seed), jax.random.key(key), 0.7, **OPTIONS)


@pytest.fixture(scope="module")
def on_one_device() -> Rollouts:
    return jax.tree.map(np.asarray, run(mesh_of(config.MeshShape(data=1, fsdp=1, tensor=1))))


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_the_tokens_are_those_of_one_device(sizes, on_one_device) -> None:
    rollouts = run(mesh_of(sizes))
    shards = sizes.data * sizes.fsdp
    assert rollouts.token_QGC.sharding.shard_shape((Q, G, C)) == (Q // shards, G, C)
    assert len(np.unique(on_one_device.is_sampled_QGC.sum(axis=-1))) > 3  # ends at many places
    for name in ("token_QGC", "is_sampled_QGC", "is_finished_QG"):
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(on_one_device, name))
    np.testing.assert_allclose(
        rollouts.logprob_QGC, on_one_device.logprob_QGC, rtol=1e-5, atol=1e-5
    )


def test_other_weights_or_another_key_give_other_tokens(on_one_device) -> None:
    """The control of the test above."""
    mesh = mesh_of(MESHES["8x1"])
    for changed in ({"seed": 1}, {"key": 2}):
        assert (np.asarray(run(mesh, **changed).token_QGC) != on_one_device.token_QGC).any()


def test_weights_are_gathered_before_the_loop_and_not_in_it() -> None:
    """In the loop over tokens a gathered weight would cross the mesh once per token."""
    mesh = mesh_of(MESHES["4x2"])
    with jax.set_mesh(mesh):
        stage = decode_stage(*placed(mesh), **OPTIONS)
        program = stage.function.lower(*stage.args, **stage.static)
    text = program.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    by_computation = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", text)
    entry = next(c for c in by_computation if c.startswith("ENTRY"))
    others = "".join(c for c in by_computation if not c.startswith("ENTRY"))

    def gathered(hlo: str) -> set[tuple[int, ...]]:
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", hlo)
        return {tuple(map(int, shape.split(","))) for shape in shapes}

    local_mlp = (ARCH.model_dim, ARCH.mlp_dim // 2)  # tensor keeps its half
    assert local_mlp in gathered(entry)
    largest_row = ARCH.vocab_size * Q * G // 4
    assert all(np.prod(shape) <= largest_row for shape in gathered(others))
    assert local_mlp not in gathered(others)
