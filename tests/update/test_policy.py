"""What is trained and what stays as it is: the reference policy of full training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax import config
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.update import policy
from cipo_jax.update.scorer import make_scorer
from cipo_jax.update.train_step import init_state
from tests.batches import random_batch
from tests.weights import drawn

ROWS, TOKENS = 4, 48
ARCHITECTURES = [name for name in PRESETS if name.startswith("tiny-")]


def make_config(compute_dtype, kl=0.1):
    return config.Config(
        name="test",
        model=config.RandomModel(preset="tiny-llama"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16),
        train=config.Train(
            row_tokens=TOKENS, rows_per_microbatch=4, compute_dtype=compute_dtype, remat="none"
        ),
        kl=config.Kl(weight=kl),
    )


def num_bytes(params):
    return sum(x.nbytes for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow
def test_the_reference_gives_the_same_bits_in_half_the_memory(name):
    arch, cfg = PRESETS[name], make_config("bfloat16")
    params = drawn(arch)
    before = jax.tree.map(np.asarray, params)
    trainable, frozen = policy.split(params, cfg, arch)
    assert trainable is params
    assert num_bytes(frozen) < 0.51 * num_bytes(params)

    mesh = make_mesh(config.MeshShape(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    abstract = policy.abstract_frozen(cfg, arch, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), frozen) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )

    batch = random_batch(ROWS, TOKENS, vocab_size=arch.vocab_size)
    score = make_scorer(cfg, arch, mesh)
    scored = np.asarray(score(params, batch))
    np.testing.assert_array_equal(scored, score(frozen, batch))
    # Control: scales of norms that are rounded too are another policy.
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert np.abs(scored - score(rounded, batch)).max() > 0

    # The state takes the trained parameters over, and an update donates them.
    state = init_state(trainable, cfg, mesh)
    jax.tree.map(lambda x: x.delete(), state.params)
    jax.tree.map(
        lambda x, kept: np.testing.assert_array_equal(x, kept.astype(x.dtype)), frozen, before
    )


def test_in_float32_it_is_a_copy():
    arch, cfg = PRESETS["tiny-llama"], make_config("float32")
    params = drawn(arch)
    before = jax.tree.map(np.asarray, params)
    _, frozen = policy.split(params, cfg, arch)
    jax.tree.map(lambda x: x.delete(), params)
    jax.tree.map(np.testing.assert_array_equal, frozen, before)


def test_without_a_penalty_there_is_none():
    arch = PRESETS["tiny-llama"]
    cfg = make_config("bfloat16", kl=0.0)
    assert policy.split(drawn(arch), cfg, arch)[1] is None
