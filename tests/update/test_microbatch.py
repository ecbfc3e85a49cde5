"""The head on many devices: gathered over fsdp, split over tensor, its gradient scattered."""

import functools

import jax
import jax.numpy as jnp
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
from cipo_jax.update.microbatch import head_logprobs
from tests.batches import random_batch
from tests.weights import drawn

pytestmark = pytest.mark.slow

ROWS, TOKENS = 8, 40
MESHES = [
    config.MeshShape(data=1, fsdp=8, tensor=1),
    config.MeshShape(data=1, fsdp=4, tensor=2),
    config.MeshShape(data=2, fsdp=2, tensor=2),
    config.MeshShape(data=2, fsdp=1, tensor=4),
]


def make_config() -> config.Config:
    return config.Config(
        name="test",
        model=config.RandomModel(preset="tiny-llama"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16, temperature=0.7),
        train=config.Train(row_tokens=TOKENS, rows_per_microbatch=ROWS, logprob_chunk=12),
    )


@functools.cache
def found(name: str, sizes: config.MeshShape):
    """Log-probs, entropies, and the gradients of the head and of the hidden states, on the host."""
    arch, cfg = PRESETS[name], make_config()
    mesh = make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])
    params = drawn(arch)
    params = jax.device_put(params, shardings_of(params, mesh, PARAM_RULES))
    rows = random_batch(ROWS, TOKENS, vocab_size=arch.vocab_size)
    rows = distributed(rows, mesh, ACTIVATION_RULES)
    hidden = np.asarray(jax.random.normal(jax.random.key(1), (ROWS, TOKENS, arch.model_dim)))
    weights = np.asarray(jax.random.normal(jax.random.key(2), (2, ROWS, TOKENS)))
    field = "embed" if arch.is_tied else "head"

    def loss(head, hidden):
        logprob, entropy = head_logprobs(
            params.replace(**{field: head}), hidden, rows, cfg=cfg, arch=arch
        )
        return jnp.sum(weights[0] * logprob) + jnp.sum(weights[1] * entropy), (logprob, entropy)

    with jax.set_mesh(mesh):
        gradients, laws = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            getattr(params, field), hidden
        )
    return *jax.tree.map(np.asarray, (*laws, *gradients)), gradients[0].sharding.spec


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])
def test_many_devices_give_what_one_gives(name, sizes):
    """Of a head of its own, and of one that is the embedding."""
    *expected, _ = found(name, config.MeshShape(data=1, fsdp=1, tensor=1))
    *actual, spec = found(name, sizes)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(spec) == {"fsdp", "tensor"}  # the gradient lies as the head does
    # Control: each row counts once, and not for each device.
    *_, head_gradient, _ = expected
    assert np.abs(2 * head_gradient - actual[2]).max() > 0.1
