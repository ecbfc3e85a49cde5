"""A layer of several experts against a loop over all of them, on one device and over meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cipo_jax import config
from cipo_jax.mesh.sharding import (
    ACTIVATION_RULES,
    PARAM_RULES,
    ROW_AXES,
    distributed,
    make_mesh,
    shardings_of,
)
from cipo_jax.model.experts import mix_experts, route
from cipo_jax.model.presets import PRESETS, Experts
from cipo_jax.model.transformer import abstract
from cipo_jax.records import PromptBatch, Rollouts
from cipo_jax.rollout.sample import sample
from cipo_jax.update.train_step import abstract_state, init_state, make_train_step
from tests.batches import random_batch
from tests.weights import drawn

pytestmark = pytest.mark.slow

ARCH = PRESETS["tiny-qwen3-moe"]
FIELDS = ("router", "expert_gate", "expert_up", "expert_down")
OPTIONS = {"xla_backend_optimization_level": 0}

mixed = jax.jit(mix_experts, static_argnames=("experts", "activation"))


@pytest.fixture(scope="module")
def weights():
    """Of one layer, as `FIELDS`."""
    layer = jax.tree.map(lambda x: np.asarray(x)[1], drawn(ARCH).blocks)
    return tuple(getattr(layer, name) for name in FIELDS)


@pytest.fixture(scope="module")
def x_BTD():
    return np.random.default_rng(0).normal(size=(8, 5, ARCH.model_dim)).astype(np.float32)


def one_by_one(x_BTD, router, gate, up, down, experts: Experts):
    """Every expert on every token, and the weights of those that were not chosen set to zero."""
    probability = scipy.special.softmax(x_BTD @ router, axis=-1)
    lowest = np.sort(probability, axis=-1)[..., -experts.num_per_token, None]
    chosen = np.where(probability >= lowest, probability, 0)
    if experts.is_normalised:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    each = [
        (x_BTD @ g) * scipy.special.expit(x_BTD @ g) * (x_BTD @ u) @ d
        for g, u, d in zip(gate, up, down, strict=True)
    ]
    return sum(chosen[..., e, None] * y for e, y in enumerate(each))


@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize("num_per_token", [1, 2, 6])
def test_chosen_experts_are_weighed_and_summed(weights, x_BTD, num_per_token, is_normalised):
    experts = Experts(num_experts=6, num_per_token=num_per_token, is_normalised=is_normalised)
    found = mixed(x_BTD, *weights, experts=experts, activation="silu")
    np.testing.assert_allclose(found, one_by_one(x_BTD, *weights, experts), atol=1e-4)


def test_no_token_is_dropped_where_all_choose_the_same_expert(weights, x_BTD):
    """What a layer with room for a fixed number of tokens per expert would do."""
    router, *others = weights
    x_BTD = np.abs(x_BTD)
    router = np.asarray(router).copy()
    router[:, 4] = 1.0
    experts = Experts(num_experts=6, num_per_token=1, is_normalised=True)
    x_ID = jnp.asarray(x_BTD.reshape(-1, ARCH.model_dim))
    assert np.all(route(x_ID, jnp.asarray(router), experts)[1] == 4)
    found = mixed(x_BTD, router, *others, experts=experts, activation="silu")
    np.testing.assert_allclose(found, one_by_one(x_BTD, router, *others, experts), atol=1e-4)


def value_and_gradients(weights, x_BTD):
    def loss(weights, x_BTD):
        y_BTD = mix_experts(x_BTD, *weights, experts=ARCH.experts, activation=ARCH.activation)
        return jnp.sum(y_BTD * jnp.cos(jnp.arange(y_BTD.size)).reshape(y_BTD.shape)), y_BTD

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=OPTIONS)
    return jax.tree.map(np.asarray, gradients(weights, x_BTD))


@pytest.mark.parametrize(
    ("sizes", "num_rows"),
    [
        (config.MeshShape(fsdp=2, expert=2, tensor=2), 8),
        (config.MeshShape(data=2, fsdp=2, expert=2), 8),
        (config.MeshShape(fsdp=2, expert=2, tensor=2), 6),  # rows that do not divide
    ],
    ids=["tensor", "data", "uneven"],
)
def test_a_mesh_changes_nothing(weights, x_BTD, sizes, num_rows):
    x_BTD = x_BTD[:num_rows]
    expected = value_and_gradients(weights, x_BTD)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        found = value_and_gradients(weights, x_BTD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    # Control: experts in another order.
    router, *others = weights
    wrong = value_and_gradients((router, *(np.roll(w, 1, axis=0) for w in others)), x_BTD)
    assert np.abs(wrong[0][1] - expected[0][1]).max() > 0.1


def test_no_device_holds_all_experts():
    mesh = make_mesh(config.MeshShape(fsdp=4, expert=2))
    blocks = abstract(ARCH).blocks
    shardings = shardings_of(blocks, mesh, PARAM_RULES)

    def described(name):
        shape, spec = getattr(blocks, name).shape[1:], getattr(shardings, name).spec[1:]
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    rows = NamedSharding(mesh, P(ROW_AXES))
    x_BTD = jax.ShapeDtypeStruct((16, 5, ARCH.model_dim), jnp.float32, sharding=rows)
    with jax.set_mesh(mesh):
        weights = map(described, FIELDS)
        program = mixed.lower(x_BTD, *weights, experts=ARCH.experts, activation=ARCH.activation)
        text = program.compile(OPTIONS).as_text()
    assert "f32[3,32,24]" in text  # three of six, gathered along fsdp
    assert "f32[6,32,24]" not in text


# --- the whole model over a mesh with all four axes ----------------------------------------------

ONE = config.MeshShape(data=1, fsdp=1, expert=1, tensor=1)
SPLIT = config.MeshShape(data=1, fsdp=2, expert=2, tensor=2)


def mesh_of(sizes: config.MeshShape):
    return make_mesh(sizes, jax.devices()[: sizes.fsdp * sizes.expert * sizes.tensor])


def sampled(sizes: config.MeshShape, seed: int = 0) -> Rollouts:
    arch = dataclasses.replace(ARCH, num_layers=1)  # decoding unrolls layers: one compiles sooner
    mesh, rng = mesh_of(sizes), np.random.default_rng(0)
    prompts = PromptBatch(
        token_QP=rng.integers(0, 320, (4, 6)).astype(np.int32),
        length_Q=np.array([6, 3, 5, 4], np.int32),
        key_id_Q=np.arange(4, dtype=np.int32),
    )
    params = drawn(arch, seed)
    with jax.set_mesh(mesh):
        rollouts = sample(
            jax.device_put(params, shardings_of(params, mesh, PARAM_RULES)),
            distributed(prompts, mesh, ACTIVATION_RULES),
            jax.random.key(1),
            0.7,
            arch=arch,
            samples_per_prompt=2,
            max_new_tokens=6,
            eos_ids=(0,),
            compute_dtype="float32",
        )
    return jax.tree.map(np.asarray, rollouts)


def test_the_sampler_over_experts():
    expected, found = sampled(ONE), sampled(SPLIT)
    np.testing.assert_array_equal(found.token_QGC, expected.token_QGC)
    np.testing.assert_allclose(found.logprob_QGC, expected.logprob_QGC, rtol=1e-5, atol=1e-5)
    assert np.any(sampled(SPLIT, seed=1).token_QGC != expected.token_QGC)  # the control


def updated(sizes: config.MeshShape, params):
    """The gradient as the first moment of a first update without memory, and the metrics."""
    mesh, batch = mesh_of(sizes), random_batch(8, 32, vocab_size=ARCH.vocab_size)
    cfg = config.Config(
        name="test",
        model=config.RandomModel(preset="tiny-qwen3-moe"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16, temperature=0.7),
        optimizer=config.AdamW(beta1=0.0, max_grad_norm=1e9),
        train=config.Train(
            row_tokens=32, rows_per_microbatch=4, logprob_chunk=40, compute_dtype="float32"
        ),
        parity=config.ParityOff(),
    )
    step = make_train_step(cfg, ARCH, mesh).lower(abstract_state(cfg, ARCH, mesh), None, batch)
    state, metrics = step.compile(OPTIONS)(init_state(params, cfg, mesh), None, batch)
    return jax.tree.map(np.asarray, (optax.tree.get(state.opt_state, "mu"), metrics))


def test_the_train_step_over_experts():
    # Small enough weights for gradients near one.
    params = jax.tree.map(lambda x: np.asarray(x) / 2, drawn(ARCH))
    (expected, one), (found, split) = updated(ONE, params), updated(SPLIT, params)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found, expected
    )
    assert split.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for name in FIELDS:
        assert np.abs(getattr(expected.blocks, name)).max() > 1e-3 * largest  # all are trained
