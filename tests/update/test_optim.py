"""The optimizer against hand-worked numbers."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cipo_jax.config import Adafactor, AdamW, MeshShape
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import abstract
from cipo_jax.update.optim import has_decay, learning_rate, make_optimizer, opt_state_shardings

# Updates 0..7 of a run of 8 with 2 warm-up updates, peak rate 1, final factor 0.1 (1 for constant).
# Warm-up: 1/2, 2/2. Then p = 0, 1/6, ..., 5/6:
#   linear  0.1 + 0.9 (1 - p) = 1, .85, .7, .55, .4, .25
#   cosine  0.1 + 0.45 (1 + cos(pi p)); cos = 1, .8660254, .5, 0, -.5, -.8660254
SCHEDULES = {
    "constant": [0.5, 1, 1, 1, 1, 1, 1, 1],
    "linear": [0.5, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.25],
    "cosine": [0.5, 1, 1, 0.9397114, 0.775, 0.55, 0.325, 0.1602886],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_golden(schedule):
    cfg = AdamW(learning_rate=1.0, schedule=schedule, warmup_steps=2, final_factor=0.1)
    rate = learning_rate(cfg, 8)
    np.testing.assert_allclose([rate(k) for k in range(8)], SCHEDULES[schedule], rtol=1e-6)


def test_schedule_ends():
    cosine = AdamW(learning_rate=2.0, schedule="cosine")
    assert learning_rate(cosine, 10)(0) == 2.0  # no warm-up: the full rate at once
    assert learning_rate(cosine, 10)(25) == 0.0  # stays at the end's value
    only_warmup = AdamW(learning_rate=2.0, schedule="linear", warmup_steps=4)
    np.testing.assert_allclose(
        [learning_rate(only_warmup, 4)(k) for k in range(4)], [0.5, 1, 1.5, 2]
    )


@flax.struct.dataclass
class Layers:
    attn_norm: jax.Array
    q_bias: jax.Array
    q: jax.Array


@flax.struct.dataclass
class Tree:
    embed: jax.Array
    blocks: Layers
    final_norm: jax.Array
    head: jax.Array | None


def make_tree(value: float) -> Tree:
    def full(*shape: int) -> jax.Array:
        return jnp.full(shape, value, jnp.float32)

    return Tree(full(5, 3), Layers(full(2, 3), full(2, 4, 2), full(2, 3, 4, 2)), full(3), None)


def test_decay_leaves_norms_and_biases_alone():
    mask = has_decay(make_tree(0.0))
    assert mask == Tree(True, Layers(False, False, True), False, None)


def test_one_update_by_hand():
    # One number w = 2 with gradient 3 in a tree of global norm 5 (3 and 4), clipped to norm 1:
    # g = 0.6 and 0.8. First Adam update: m^ = g, v^ = g^2, so m^ / (sqrt(v^) + eps) = 1 (to 1e-8).
    # w <- 2 - 0.1 * (1 + 0.5 * 2) = 1.8; without decay (a norm) 2 - 0.1 = 1.9.
    cfg = AdamW(learning_rate=0.1, weight_decay=0.5, max_grad_norm=1.0)
    params = {"q": jnp.float32(2.0), "q_norm": jnp.float32(2.0)}
    grads = {"q": jnp.float32(3.0), "q_norm": jnp.float32(4.0)}
    optimizer = make_optimizer(cfg, 1)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose([moved["q"], moved["q_norm"]], [1.8, 1.9], rtol=1e-6)
    # Clipping is invisible in a first Adam update, so it is read from the moments: (1 - 0.9) * 0.6.
    mu = optax.tree.get(state, "mu")
    np.testing.assert_allclose([mu["q"], mu["q_norm"]], [0.06, 0.08], rtol=1e-6)
    # Control: a looser bound leaves the gradient as it is.
    loose = make_optimizer(AdamW(max_grad_norm=10.0), 1)
    _, state = loose.update(grads, loose.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["q"], 0.3, rtol=1e-6)


def test_a_first_moment_in_bfloat16():
    """Stored in half the bytes; an update uses it before it is rounded, so the first one is that of
    float32. Each rounding is off by at most 2^-8, of which b1 = 0.9 is left at the next update: in
    all 0.9 / (1 - 0.9) * 2^-8 for gradients of one sign."""
    grads = [{"q": jnp.array([0.3, -1.7, 1e-3]) * (k + 1)} for k in range(20)]

    def run(dtype):
        optimizer = make_optimizer(AdamW(learning_rate=1.0, first_moment_dtype=dtype), 20)
        params = {"q": jnp.ones(3)}
        state, moved = optimizer.init(params), []
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, params)
            moved.append(updates["q"])
        return np.stack(moved), state

    full, _ = run("float32")
    half, state = run("bfloat16")
    assert optax.tree.get(state, "mu")["q"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu")["q"].dtype == jnp.float32
    np.testing.assert_array_equal(half[0], full[0])
    np.testing.assert_allclose(half, full, rtol=9 * 2**-8)
    assert (half != full).any()  # control: the dtype did something


def test_one_adafactor_update_by_hand():
    # g = [[1, 2], [3, 4]], at the first update b = 0 and v = g^2 = [[1, 4], [9, 16]].
    # R = [2.5, 12.5], C = [5, 10], mean(R) = 7.5; R C / mean(R) = [[5, 10], [25, 50]] / 3.
    # u = g / sqrt of that = [[.774597, 1.095445], [1.039230, .979796]], of rms sqrt(.96) = .979796.
    # w = 2 - 0.1 (u + 0.5 * 2); with update_clip at half the rms, u is halved.
    step = np.array([[0.774597, 1.095445], [1.039230, 0.979796]])
    for clip, factor in ((1.0, 1.0), (0.489898, 0.5)):
        cfg = Adafactor(
            learning_rate=0.1, weight_decay=0.5, max_grad_norm=1e9,
            update_clip=clip, min_factored_dim=2,
        )  # fmt: skip
        params = {"q": jnp.full((2, 2), 2.0)}
        optimizer = make_optimizer(cfg, 1)
        state = optimizer.init(params)
        updates, state = optimizer.update({"q": jnp.array([[1.0, 2], [3, 4]])}, state, params)
        moved = optax.apply_updates(params, updates)
        np.testing.assert_allclose(moved["q"], 2 - 0.1 * (factor * step + 1), rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(state, "v_row")["q"], [2.5, 12.5])
    np.testing.assert_allclose(optax.tree.get(state, "v_col")["q"], [5, 10])


# Heads of 64 channels are below min_factored_dim, so the smaller model keeps full moments of its
# attention.
@pytest.mark.parametrize(
    ("preset", "factored"),
    [("HuggingFaceTB/SmolLM2-135M-Instruct", 0.8), ("Qwen/Qwen3-4B", 0.0094)],
)
def test_state_bytes_and_layout(preset, factored):
    """What the variants cost, in bytes per parameter and on a device of an fsdp mesh."""
    arch = PRESETS[preset]
    params = abstract(arch)
    num_params = sum(x.size for x in jax.tree.leaves(params))
    mesh = make_mesh(MeshShape(data=1, fsdp=4, tensor=1), jax.devices()[:4])

    def bytes_per_param(cfg, shards):
        state = jax.eval_shape(make_optimizer(cfg, 1).init, params)
        layout = opt_state_shardings(state, params, mesh)
        assert jax.tree.structure(layout) == jax.tree.structure(state)

        def size(x, sharding):
            shape = sharding.shard_shape(x.shape) if shards else x.shape
            return math.prod(shape) * x.dtype.itemsize

        return sum(jax.tree.leaves(jax.tree.map(size, state, layout))) / num_params

    for cfg, expected in (
        (AdamW(), 8.0), (AdamW(first_moment_dtype="bfloat16"), 6.0),
    ):  # fmt: skip
        assert bytes_per_param(cfg, shards=False) == pytest.approx(expected, rel=1e-3)
        assert bytes_per_param(cfg, shards=True) == pytest.approx(expected / 4, rel=1e-3)
    whole, split = (bytes_per_param(Adafactor(), shards=shards) for shards in (False, True))
    assert whole == pytest.approx(factored, rel=0.1)
    assert split < 0.6 * whole


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"beta1 0.99: rounding"):
        AdamW(first_moment_dtype="bfloat16", beta1=0.99)
    with pytest.raises(ValueError, match=r"optimizer.beta2 is 1.0"):
        AdamW(beta2=1.0)
    with pytest.raises(ValueError, match=r"optimizer.decay_rate is 1.5"):
        Adafactor(decay_rate=1.5)
