"""LoRA against the merged model: values, gradients, state, and what is never computed.

As in test_train_step.py, gradients are read from the optimizer: with beta1 = 0 and no clipping,
Adam's first moment is the gradient.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cipo_jax import config
from cipo_jax.config import Config, Lora, NoAdapter
from cipo_jax.mesh.sharding import ACTIVATION_RULES, distributed, make_mesh
from cipo_jax.model import adapter
from cipo_jax.model.adapter import Adapter, adapt
from cipo_jax.model.decoding import layer_of
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.linear import Adapted, merged
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import hidden_states
from cipo_jax.records import PromptBatch
from cipo_jax.rollout.sample import sample
from cipo_jax.update import policy
from cipo_jax.update.checkpoint import Checkpoints, restore_params
from cipo_jax.update.optim import has_decay
from cipo_jax.update.train_step import abstract_state, init_state, make_train_step
from tests.batches import random_batch
from tests.weights import drawn

pytestmark = pytest.mark.slow

ARCH = PRESETS["tiny-qwen2"]
ROWS, TOKENS = 8, 48
ONE = config.MeshShape(data=1, fsdp=1, tensor=1)
LORA = Lora(rank=6, alpha=9.0)
INNER = {"q": "D", "k": "D", "v": "D", "o": "NH", "gate": "D", "up": "D", "down": "F"}
OUTER = {"q": "NH", "k": "KH", "v": "KH", "o": "D", "gate": "F", "up": "F", "down": "D"}


def make_config(lora=LORA, *, kl=0.0, weight_decay=0.0) -> Config:
    return Config(
        name="test",
        model=config.RandomModel(preset="tiny-qwen2"),
        adapter=lora,
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16, temperature=0.7),
        kl=config.Kl(weight=kl),
        optimizer=config.AdamW(
            learning_rate=0.1, beta1=0.0, eps=1e-2, max_grad_norm=1e9, weight_decay=weight_decay
        ),
        train=config.Train(
            row_tokens=TOKENS, rows_per_microbatch=8, logprob_chunk=40, compute_dtype="float32"
        ),
    )


def drawn_adapter(cfg=LORA, seed=1) -> Adapter:
    """A and B both away from zero, so that each has a gradient."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), adapter.abstract(ARCH, cfg)
    )


def merged_params(params, adapter_, cfg=LORA):
    """By einsum over the letters, with no line of the shipped code."""
    fields = {}
    for name in cfg.projections:
        a, b = getattr(adapter_, f"{name}_a"), getattr(adapter_, f"{name}_b")
        spec = f"L{INNER[name]}R,LR{OUTER[name]}->L{INNER[name]}{OUTER[name]}"
        delta = cfg.alpha / cfg.rank * np.einsum(spec, a, b)
        fields[name] = np.asarray(getattr(params.blocks, name)) + delta
    return params.replace(blocks=params.blocks.replace(**fields))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, drawn(ARCH))


@pytest.fixture(scope="module")
def batch():
    return random_batch(ROWS, TOKENS, vocab_size=ARCH.vocab_size, num_used=7)


def mesh_of(sizes):
    return make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])


@functools.cache
def compiled(cfg, sizes=ONE):
    mesh = mesh_of(sizes)
    rows = random_batch(ROWS, TOKENS, vocab_size=ARCH.vocab_size)
    step = make_train_step(cfg, ARCH, mesh).lower(
        abstract_state(cfg, ARCH, mesh), policy.abstract_frozen(cfg, ARCH, mesh), rows
    )
    return step.compile(compiler_options={"xla_backend_optimization_level": 0})


def placed(params, cfg, mesh):
    """The base as the loader lays it out."""
    return jax.tree.map(
        lambda x, wanted: jax.device_put(x, wanted.sharding),
        params,
        policy.abstract_frozen(cfg, ARCH, mesh),
    )


def update(cfg, params, trainable, batch, sizes=ONE):
    """One update -> (gradient, trained tree, metrics), all on the host."""
    mesh = mesh_of(sizes)
    frozen = placed(params, cfg, mesh) if policy.has_frozen(cfg) else None
    state, metrics = compiled(cfg, sizes)(init_state(trainable, cfg, mesh), frozen, batch)
    mu = optax.tree.get(state.opt_state, "mu")
    return jax.tree.map(np.asarray, (mu, state.params, metrics))


def gap(actual, expected):
    """The largest relative difference of two trees, in the Euclidean norm of each array."""
    gaps = jax.tree.map(
        lambda a, b: (
            np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / max(np.linalg.norm(b), 1e-30)
        ),
        actual,
        expected,
    )
    return max(x for x in jax.tree.leaves(gaps) if not np.isnan(x))


@pytest.fixture(scope="module")
def low_rank(params, batch):
    return update(make_config(), params, drawn_adapter(), batch)


# --- the update ---------------------------------------------------------------------------------


def test_gradients_are_the_low_rank_part_of_the_merged_models(params, batch, low_rank):
    """With W' = W + s A B:  dA = s dW' B^T  and  dB = s A^T dW', where dW' comes from full training
    of the merged model on the same batch."""
    adapter_ = drawn_adapter()
    full, _, full_metrics = update(
        make_config(NoAdapter()), None, merged_params(params, adapter_), batch
    )
    grads, _, metrics = low_rank
    np.testing.assert_allclose(metrics.loss_total, full_metrics.loss_total, atol=1e-5)
    scale = LORA.alpha / LORA.rank

    def expected(scale):
        fields = {}
        for name in LORA.projections:
            d_weight, inner, outer = getattr(full.blocks, name), INNER[name], OUTER[name]
            a, b = (getattr(adapter_, f"{name}_{side}") for side in "ab")
            weight = f"L{inner}{outer}"
            fields[f"{name}_a"] = scale * np.einsum(f"{weight},LR{outer}->L{inner}R", d_weight, b)
            fields[f"{name}_b"] = scale * np.einsum(f"{weight},L{inner}R->LR{outer}", d_weight, a)
        return Adapter(**fields)

    assert gap(grads, expected(scale)) < 1e-5
    # Controls: another scale, and the gradient where A and B are others.
    assert gap(grads, expected(1.01 * scale)) > 5e-3
    moved, _, _ = update(make_config(), params, drawn_adapter(seed=2), batch)
    assert gap(moved, expected(scale)) > 0.1


def weight_shapes():
    """Of every matrix of the model, with heads merged, in both orders."""
    a = ARCH
    heads, kv_heads = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    pairs = [(heads,), (kv_heads,), (a.mlp_dim,), (a.vocab_size,)]
    return {frozenset((a.model_dim, *other)) for other in pairs}


def products_of_weight_size(cfg):
    """Shapes of matrix products in the compiled program that are as large as a weight matrix."""
    text = compiled(cfg).as_text()
    shapes = [
        tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]\S* dot\(", text)
    ]
    assert len(shapes) > 20, "the pattern finds the products"
    return [shape for shape in shapes if frozenset(shape) in weight_shapes()]


def test_no_gradient_of_a_whole_matrix_is_computed():
    assert ROWS * TOKENS not in {x for shape in weight_shapes() for x in shape}
    assert products_of_weight_size(make_config()) == []
    # Control: full training computes one for each of the seven matrices, and one for the head.
    assert len(products_of_weight_size(make_config(NoAdapter()))) == 8


def test_the_state_is_that_of_the_adapter_alone(params, tmp_path, batch):
    cfg, mesh = make_config(kl=0.1), mesh_of(ONE)
    state = abstract_state(cfg, ARCH, mesh)
    num_trained = sum(x.size for x in jax.tree.leaves(adapter.abstract(ARCH, LORA)))
    counts = sum(x.size for x in jax.tree.leaves(state))
    assert counts <= 3 * num_trained + 8  # parameters, two moments, a few counters
    assert sum(x.size for x in jax.tree.leaves(params)) > num_trained

    # The reference is the base: no divergence before the first update, some after it.
    base = placed(params, cfg, mesh)
    trainable, frozen = policy.split(base, cfg, ARCH)
    assert frozen is base
    state, first = compiled(cfg)(init_state(trainable, cfg, mesh), frozen, batch)
    assert first.kl == 0
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {})
    saved = jax.tree.map(np.asarray, state)
    state, second = compiled(cfg)(state, frozen, batch)
    assert second.kl > 1e-4
    jax.tree.map(np.testing.assert_array_equal, frozen, params)  # not donated, not changed

    # Training goes on from what was saved, bit for bit.
    resumed, _ = checkpoints.restore_latest(abstract_state(cfg, ARCH, mesh))
    jax.tree.map(np.testing.assert_array_equal, compiled(cfg)(resumed, frozen, batch)[0], state)
    # It is the adapter alone, and comes back on any mesh.
    spread = mesh_of(config.MeshShape(data=1, fsdp=2, tensor=2))
    restored, _ = checkpoints.restore_latest(abstract_state(cfg, ARCH, spread))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert restored.params.gate_b.addressable_shards[0].data.shape[-1] == ARCH.mlp_dim // 2
    again, _ = restore_params(tmp_path, adapter.abstract(ARCH, LORA))
    jax.tree.map(np.testing.assert_array_equal, again, saved.params)
    with pytest.raises(
        ValueError, match=r"params/q_a is .*\(3, 32, 6\).* there and .*\(3, 32, 5\)"
    ):
        restore_params(tmp_path, adapter.abstract(ARCH, dataclasses.replace(LORA, rank=5)))


@pytest.mark.parametrize(
    "sizes",
    [config.MeshShape(data=1, fsdp=2, tensor=2), config.MeshShape(data=2, fsdp=2, tensor=2)],
    ids=str,
)
def test_mesh_is_nothing(params, batch, low_rank, sizes):
    assert gap(update(make_config(), params, drawn_adapter(), batch, sizes), low_rank) < 1e-5


def test_decay_shrinks_both_factors(params, batch):
    assert all(jax.tree.leaves(has_decay(drawn_adapter())))
    idle = batch.replace(advantage_BT=np.zeros_like(batch.advantage_BT))
    before = drawn_adapter()
    _, after, _ = update(make_config(weight_decay=0.5), params, before, idle)
    assert gap(after, jax.tree.map(lambda x: x * (1 - 0.1 * 0.5), before)) < 1e-6


# --- the values ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="dtype")
def score(weights, token_BT, *, dtype="float32"):
    """Log-prob of every token of plain rows, by the training path."""
    ones_BT = jnp.ones_like(token_BT)
    position_BT = jnp.arange(token_BT.shape[1])[None] * ones_BT
    hidden_BTD = hidden_states(
        weights, token_BT, position_BT, ones_BT, ones_BT,
        arch=ARCH, compute_dtype=dtype, remat="none",
    )  # fmt: skip
    before_BT = jnp.maximum(position_BT - 1, 0)
    return token_logprobs(
        weights, hidden_BTD, token_BT, before_BT, ones_BT > 0,
        temperature=0.7, chunk=64, arch=ARCH,
    )[0]  # fmt: skip


def test_a_new_adapter_changes_nothing(params):
    first = adapter.init(jax.random.key(0), ARCH, LORA)
    token_BT = np.random.default_rng(0).integers(0, ARCH.vocab_size, (6, 17))
    plain = score(params, token_BT)
    np.testing.assert_array_equal(score(adapt(params, first, LORA), token_BT), plain)
    # Not because nothing could: A is drawn within its bound, and B alone is zero.
    for name, width in (("q", ARCH.model_dim), ("o", ARCH.num_heads * ARCH.head_dim)):
        a = np.abs(getattr(first, f"{name}_a"))
        assert 0.9 * width**-0.5 < a.max() <= width**-0.5
    assert np.abs(score(adapt(params, drawn_adapter(), LORA), token_BT) - plain).max() > 0.1


def test_a_layer_for_decoding_is_merged(params):
    adapter_ = drawn_adapter()
    expected = merged_params(params, adapter_).blocks
    adapted = adapt(params, adapter_, LORA).blocks
    for index in range(ARCH.num_layers):
        layer = layer_of(adapted, index, dtype=jnp.dtype("float32"))
        jax.tree.map(
            lambda x, y, index=index: np.testing.assert_allclose(x, y[index], atol=1e-6),
            layer,
            expected,
        )
    # A bfloat16 base is merged in float32, and rounded once.
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    first = layer_of(adapt(half, adapter_, LORA).blocks, 0, dtype=jnp.dtype("bfloat16"))
    whole = merged_params(jax.tree.map(lambda x: x.astype(np.float32), half), adapter_)
    np.testing.assert_array_equal(first.up, whole.blocks.up[0].astype(jnp.bfloat16))


@pytest.mark.parametrize("projections", [LORA.projections, ("q", "down")], ids=["all", "two"])
def test_the_sampler_and_the_trainer_see_one_policy(params, projections):
    """The sampler's weights are merged, the trainer's are not; their log-probs are the same."""
    cfg = dataclasses.replace(LORA, projections=projections)
    # At the usual size of weights: three times that, rounding alone makes 2e-5 nats.
    params = params.replace(
        blocks=jax.tree.map(lambda x: x / 3 if x.ndim > 2 else x, params.blocks)
    )
    adapted = adapt(params, drawn_adapter(cfg), cfg)
    rng = np.random.default_rng(0)
    prompt_QP = rng.integers(0, ARCH.vocab_size, (3, 9)).astype(np.int32)
    prompts = PromptBatch(prompt_QP, np.full(3, 9, np.int32), np.arange(3, dtype=np.int32))
    rollouts = sample(
        adapted, prompts, jax.random.key(0), 0.7, arch=ARCH, samples_per_prompt=2,
        max_new_tokens=8, eos_ids=(ARCH.vocab_size - 1,), compute_dtype="float32",
    )  # fmt: skip
    completion_BC = rollouts.token_QGC.reshape(6, -1)
    token_BT = np.concatenate([np.repeat(prompt_QP, 2, axis=0), completion_BC], axis=1)
    is_sampled_BC = np.asarray(rollouts.is_sampled_QGC.reshape(6, -1))

    def largest_gap(weights):
        gap_BC = score(weights, token_BT)[:, 9:] - rollouts.logprob_QGC.reshape(6, -1)
        return np.abs(gap_BC)[is_sampled_BC].max()

    assert is_sampled_BC.sum() > 24
    assert largest_gap(adapted) < 1e-5
    # Controls: the base alone, and an adapter that is 2 % larger.
    assert largest_gap(params) > 1e-2
    larger = jax.tree.map(lambda x: x * 1.01, drawn_adapter(cfg))
    assert largest_gap(adapt(params, larger, cfg)) > 1e-3


def test_the_sampler_on_a_mesh_merges_the_same(params):
    """Base and adapter in pieces over fsdp and tensor; every token as on one device."""
    cfg, mesh = make_config(), mesh_of(config.MeshShape(data=1, fsdp=2, tensor=2))
    prompt_QP = np.random.default_rng(0).integers(0, ARCH.vocab_size, (4, 9)).astype(np.int32)
    prompts = PromptBatch(prompt_QP, np.full(4, 9, np.int32), np.arange(4, dtype=np.int32))
    params = params.replace(
        blocks=jax.tree.map(lambda x: x / 3 if x.ndim > 2 else x, params.blocks)
    )

    def run(base, adapter_, prompts):
        return sample(
            adapt(base, adapter_, LORA), prompts, jax.random.key(0), 0.7, arch=ARCH,
            samples_per_prompt=2, max_new_tokens=4, eos_ids=(319,), compute_dtype="float32",
        )  # fmt: skip

    alone = run(params, drawn_adapter(), prompts)
    spread = init_state(drawn_adapter(), cfg, mesh).params
    assert spread.gate_b.addressable_shards[0].data.shape[-1] == ARCH.mlp_dim // 2
    with jax.set_mesh(mesh):
        meshed = run(
            placed(params, cfg, mesh), spread, distributed(prompts, mesh, ACTIVATION_RULES)
        )
    np.testing.assert_array_equal(meshed.token_QGC, alone.token_QGC)
    np.testing.assert_allclose(meshed.logprob_QGC, alone.logprob_QGC, atol=1e-5)
    # Control: the base alone draws others.
    plain = jax.tree.map(jnp.zeros_like, drawn_adapter())
    assert (run(params, plain, prompts).token_QGC != alone.token_QGC).any()


def test_factors_in_the_order_of_the_formula():
    """W = 0, A = (1, 2)^T, B = (3, 5), scale 0.5: the rank-one matrix (1.5 2.5; 3 5)."""
    weight = Adapted(
        weight=jnp.zeros((2, 2)), a=jnp.array([[1.0], [2.0]]), b=jnp.array([[3.0, 5.0]]), scale=0.5
    )
    np.testing.assert_array_equal(merged(weight), [[1.5, 2.5], [3.0, 5.0]])


# --- the configuration --------------------------------------------------------------------------


def test_scale():
    assert Lora(rank=16, alpha=32.0).scale == 2.0
    assert Lora(rank=16, alpha=32.0, scaling="rank_stabilised").scale == 8.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"adapter\.rank is 0; it must be at least 1"),
        ({"alpha": 0.0}, r"adapter\.alpha is 0\.0; it must be positive"),
        ({"projections": ()}, r"adapter\.projections is \[\]; name at least one"),
        ({"projections": ("q", "q")}, r"\['q', 'q'\]; name at least one, each once"),
    ],
)
def test_a_bad_adapter_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Lora(**fields)


def test_projections_that_a_family_does_not_have():
    moe = PRESETS["tiny-qwen3-moe"]
    with pytest.raises(ValueError, match=r"projections names gate, up, down, which .* qwen3_moe"):
        adapter.init(jax.random.key(0), moe, LORA)
    attention = dataclasses.replace(LORA, projections=("q", "k", "v", "o"))
    assert adapter.abstract(moe, attention).o_b.shape == (moe.num_layers, 6, moe.model_dim)


def test_frozen_parameters_are_asked_for(batch):
    cfg, mesh = make_config(), mesh_of(ONE)
    with pytest.raises(ValueError, match=r"adapter\.kind is lora.*none were given"):
        make_train_step(cfg, ARCH, mesh).lower(abstract_state(cfg, ARCH, mesh), None, batch)


def test_experts_are_not_adapted():
    arch = PRESETS["tiny-qwen3-moe"]
    with pytest.raises(
        ValueError, match="names gate, up, down, which layers of the qwen3_moe family don't have"
    ):
        adapter.abstract(arch, Lora())
    assert adapter.abstract(arch, Lora(projections=("q", "o"))).o_a is not None
