"""The compiled update: exact under every split, mesh and padding; safe when numbers are not finite.

Gradients are read from the optimizer: with beta1 = 0 and no clipping, Adam's first moment *is* the
gradient. Adam's eps is large here, so that an update is a smooth function of the gradient: at the
usual 1e-8 the first update is nearly its sign, and magnifies rounding where it is close to 0.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cipo_jax import config
from cipo_jax.config import Config
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.method.losses import joint_loss, policy_loss
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import hidden_states, init
from cipo_jax.records import Stream
from cipo_jax.update.scorer import make_scorer
from cipo_jax.update.train_step import abstract_state, init_state, make_train_step
from tests.batches import random_batch

pytestmark = pytest.mark.slow

ARCH = PRESETS["tiny-llama"]
ROWS, TOKENS = 8, 48
ONE = config.MeshShape(data=1, fsdp=1, tensor=1)


def make_config(
    *, kl=0.0, correction_weight=0.5, temperature=0.7, optimizer=None, parity=None, **train
) -> Config:
    smooth = {"learning_rate": 0.1, "max_grad_norm": 1e9}
    optimizer = optimizer or {}
    variant = config.Adafactor if optimizer.get("kind") == "adafactor" else config.AdamW
    if variant is config.AdamW:
        smooth |= {"beta1": 0.0, "eps": 1e-2}
    train = {"rows_per_microbatch": 8, "logprob_chunk": 40, "remat": "none"} | train
    return Config(
        name="test",
        model=config.RandomModel(preset="tiny-llama"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16, temperature=temperature),
        correction=config.Correction(weight=correction_weight),
        optimizer=variant(**(smooth | optimizer)),
        train=config.Train(row_tokens=TOKENS, compute_dtype="float32", **train),
        kl=config.Kl(weight=kl),
        parity=parity or config.ParityOff(),
    )


def mesh_of(sizes: config.MeshShape) -> jax.sharding.Mesh:
    return make_mesh(sizes, jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor])


@pytest.fixture(scope="module")
def params():
    # Three times the usual scale, so that attention and logits are not uniform. On the host, so
    # that no donated step can take it away.
    grown = jax.tree.map(lambda x: 3 * x if x.std() > 0 else x, init(jax.random.key(0), ARCH))
    return jax.tree.map(np.asarray, grown)


@pytest.fixture(scope="module")
def batch():
    return random_batch(ROWS, TOKENS, vocab_size=ARCH.vocab_size, num_used=7)


@functools.cache
def compiled(cfg, sizes=ONE, *, is_gated=False):
    """The update, compiled once per configuration and mesh for all tests, without the optimisations
    of machine code, which take most of the compile time."""
    mesh = mesh_of(sizes)
    state = abstract_state(cfg, ARCH, mesh)
    rows = random_batch(ROWS, TOKENS, vocab_size=ARCH.vocab_size)
    step = make_train_step(cfg, ARCH, mesh, is_gated=is_gated).lower(
        state, state.params if cfg.kl.weight else None, rows
    )
    return step.compile(compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def update(params):
    """One update from fresh parameters -> (gradient, parameters, metrics), all on the host."""

    def run(cfg, batch, sizes=ONE):
        step = compiled(cfg, sizes)
        state, metrics = step(init_state(params, cfg, mesh_of(sizes)), None, batch)
        mu = optax.tree.get(state.opt_state, "mu")
        return jax.tree.map(np.asarray, (mu, state.params, metrics))

    return run


@pytest.fixture(scope="module")
def whole(update, batch):
    return update(make_config(), batch)


def gap(actual, expected):
    """The largest relative difference of two trees: in the Euclidean norm of each array; of scalars
    in proportion to 1 at least, for a loss is a sum of terms near 1 that cancel."""

    def relative(a, b):
        size = np.linalg.norm(b) if np.ndim(b) else max(np.abs(b), 1.0)
        return np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / (size or 1.0)

    gaps = jax.tree.leaves(jax.tree.map(relative, actual, expected))
    return max(x for x in gaps if not np.isnan(x))


def test_equals_the_plain_loss(whole, params, batch):
    """Full logits, no chunks, no microbatches: the formula of the loss as it is written."""
    cfg = make_config()
    batch = jax.tree.map(jnp.asarray, batch)

    def loss(params):
        rows = (batch.token_BT, batch.position_BT, batch.segment_BT, batch.prefix_BT)
        hidden = hidden_states(params, *rows, arch=ARCH, compute_dtype=jnp.float32, remat="none")
        law = jax.nn.log_softmax(hidden @ params.head / cfg.sampling.temperature)
        before = jnp.take_along_axis(law, batch.predecessor_BT[..., None], axis=1)
        logprob = jnp.take_along_axis(before, batch.token_BT[..., None], axis=2)[..., 0]
        by_stream, _ = policy_loss(
            logprob,
            logprob,
            None,
            batch,
            objective=cfg.objective,
            kl=cfg.kl,
            importance=cfg.importance,
        )
        return joint_loss(by_stream, correction_weight=cfg.correction.weight)

    value, grads = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, params))
    mu, _, metrics = whole
    assert gap(mu, grads) < 1e-5
    np.testing.assert_allclose(metrics.loss_total, value, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(grads), rtol=1e-5)
    total = metrics.loss_base + cfg.correction.weight * metrics.loss_correction
    np.testing.assert_allclose(metrics.loss_total, total, rtol=1e-6)
    assert metrics.num_tokens == batch.is_target_BT.sum()
    # Neither stream is idle, or half of this would be vacuous.
    assert set(np.unique(batch.stream_BT[batch.is_target_BT])) == set(Stream)


@pytest.mark.parametrize("rows_per_microbatch", [1, 2, 4])
def test_split_is_whole(update, batch, whole, rows_per_microbatch):
    split = update(make_config(rows_per_microbatch=rows_per_microbatch), batch)
    assert gap(split, whole) < 1e-6
    # Control: a row less is seen at once.
    less = update(
        make_config(rows_per_microbatch=rows_per_microbatch), batch.replace(num_rows=np.int32(6))
    )
    assert gap(less[0], whole[0]) > 1e-2
    assert less[2].num_tokens < whole[2].num_tokens


def test_order_of_rows_is_nothing(update, batch, whole):
    order = [3, 6, 0, 2, 5, 1, 4, 7]
    permuted = jax.tree.map(lambda x: x[order] if x.ndim else x, batch)
    assert gap(update(make_config(), permuted), whole) < 1e-6
    # Control: permuting the advantages alone is another batch.
    mixed_up = batch.replace(advantage_BT=permuted.advantage_BT)
    assert gap(update(make_config(), mixed_up)[0], whole[0]) > 1e-2


def one_per_row(batch):
    """Every completion in a row of its own, behind a copy of its prompt."""
    rows = []
    for row in range(int(batch.num_rows)):
        segments, targets = batch.segment_BT[row], batch.is_target_BT[row]
        for segment in np.unique(segments[targets]):
            completion = np.flatnonzero(segments == segment)
            prompt = np.flatnonzero(segments == batch.prefix_BT[row, completion[0]])
            rows.append((row, np.concatenate([prompt, completion])))
    assert 4 < len(rows) <= ROWS
    fields = {name: np.zeros_like(x) for name, x in vars(batch).items() if np.ndim(x)}
    for new, (row, indices) in enumerate(rows):
        for name, x in fields.items():
            x[new, : len(indices)] = getattr(batch, name)[row, indices]
        used = slice(0, len(indices))
        # The prompt and what follows are two segments, of which the second sees the first.
        fields["segment_BT"][new, used] = 1 + fields["is_target_BT"][new, used]
        fields["prefix_BT"][new, used] = 1
        fields["predecessor_BT"][new, used] = np.maximum(np.arange(len(indices)) - 1, 0)
    return batch.replace(**fields, num_rows=np.int32(len(rows)))


def test_packed_is_unpacked(update):
    """Loss, gradients and every metric, also the gaps by position and by length of the prompt."""
    packed = random_batch(ROWS, TOKENS, vocab_size=ARCH.vocab_size, num_used=1, seed=3)
    unpacked = one_per_row(packed)
    assert (packed.segment_BT > 0).sum() < (unpacked.segment_BT > 0).sum()  # prompts were shared
    assert gap(update(make_config(), packed), update(make_config(), unpacked)) < 1e-6
    # Control: completions that do not see their prompt are others.
    blind = unpacked.replace(prefix_BT=unpacked.segment_BT)
    assert gap(update(make_config(), blind)[0], update(make_config(), packed)[0]) > 1e-2


def test_log_probs_of_prompts_and_anchors_are_nothing(update, batch, whole):
    """An anchor is part of a correction's prompt. Its tokens are read by the completion, and their
    own log-probs are in no loss: another predecessor for each changes them and nothing else."""
    is_prompt = (batch.segment_BT > 0) & ~batch.is_target_BT
    assert (is_prompt & (batch.stream_BT == Stream.CORRECTION)).any()
    rng = np.random.default_rng(0)
    elsewhere = rng.integers(0, TOKENS, batch.predecessor_BT.shape).astype(np.int32)
    predecessor_BT = np.where(is_prompt, elsewhere, batch.predecessor_BT)
    changed = update(make_config(), batch.replace(predecessor_BT=predecessor_BT))
    assert gap(changed, whole) < 1e-6
    # Control: of the completions' own tokens it is seen.
    predecessor_BT = np.where(batch.is_target_BT, elsewhere, batch.predecessor_BT)
    changed = update(make_config(), batch.replace(predecessor_BT=predecessor_BT))
    assert gap(changed[0], whole[0]) > 1e-2


def test_garbage_in_padding_is_nothing(update, batch):
    cfg = make_config(rows_per_microbatch=2)
    clean = update(cfg, batch)
    names = set(batch.__dataclass_fields__) - {"old_logprob_BT"}
    fields = {name: np.array(getattr(batch, name)) for name in names}
    unused = np.zeros((ROWS, TOKENS), bool)
    unused[int(batch.num_rows) :] = True
    padding = unused | (batch.segment_BT == 0)
    assert padding[: batch.num_rows].any()
    for name, x in fields.items():
        if x.dtype == np.float32:
            x[~batch.is_target_BT] = np.nan
        elif name == "segment_BT":
            x[unused] = -(10**6)
        elif name == "is_target_BT":
            x[padding] = True
        elif name != "num_rows":
            x[padding] = 10**6
    dirty = update(cfg, type(batch)(**fields))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    # Control: the same garbage where it is read is not survived.
    fields["sampler_logprob_BT"][batch.is_target_BT] = np.nan
    assert update(cfg, type(batch)(**fields))[2].is_finite == 0


MESHES = {
    "data": config.MeshShape(data=8, fsdp=1, tensor=1),
    "fsdp": config.MeshShape(data=1, fsdp=8, tensor=1),
    "tensor": config.MeshShape(data=1, fsdp=1, tensor=2),
    "data tensor": config.MeshShape(data=4, fsdp=1, tensor=2),
    "fsdp tensor": config.MeshShape(data=1, fsdp=2, tensor=2),
    "all": config.MeshShape(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_mesh_is_nothing(update, batch, whole, sizes):
    assert gap(update(make_config(), batch, sizes), whole) < 1e-5


OPTIMIZERS = {
    "adamw": {},
    "bfloat16 moment": {"first_moment_dtype": "bfloat16"},
    "adafactor": {"kind": "adafactor", "min_factored_dim": 16},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_keeps_its_type_and_is_donated(params, batch, optimizer):
    cfg, mesh = make_config(optimizer=optimizer), mesh_of(MESHES["all"])
    step = compiled(cfg, MESHES["all"])
    state = init_state(params, cfg, mesh)
    expected = abstract_state(cfg, ARCH, mesh)
    after, metrics = step(state, None, batch)

    def check(x, wanted):
        assert (x.shape, x.dtype) == (wanted.shape, wanted.dtype)
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)

    jax.tree.map(check, state, expected)
    jax.tree.map(check, after, expected)
    assert after.step == metrics.is_finite == 1
    # Something is really split, or the check says little.
    assert after.params.blocks.gate.addressable_shards[0].data.size * 4 == params.blocks.gate.size
    # Every byte of the old state is reused for the new one.
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    state_bytes = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(after))
    assert step.memory_analysis().alias_size_in_bytes == state_bytes


def test_a_factored_moment_is_that_of_one_device(params, batch):
    """Means over an axis that lies over the mesh, against those of one device."""
    cfg = make_config(optimizer=OPTIMIZERS["adafactor"])

    def moved(sizes):
        state, _ = compiled(cfg, sizes)(init_state(params, cfg, mesh_of(sizes)), None, batch)
        means = optax.tree.get(state.opt_state, "v_row").blocks.gate
        return jax.tree.map(np.asarray, (state.params, means))

    one, split = moved(ONE), moved(MESHES["all"])
    assert one[1].shape == (ARCH.num_layers, ARCH.model_dim)
    assert gap(split, one) < 1e-4
    assert gap(one[0], params) > 1e-2  # control: it moved


def test_one_program_for_every_fill(params, batch):
    cfg, mesh = make_config(rows_per_microbatch=2), mesh_of(ONE)
    step = make_train_step(cfg, ARCH, mesh)
    state = init_state(params, cfg, mesh)
    tokens = []
    for num_rows in (7, 4, 1, 0):
        state, metrics = step(state, None, batch.replace(num_rows=np.int32(num_rows)))
        tokens.append(float(metrics.num_tokens))
        assert metrics.is_finite == 1
    assert tokens == [float(batch.is_target_BT[:n].sum()) for n in (7, 4, 1, 0)]
    assert step._cache_size() == 1
    assert state.step == 4


def test_remat_is_there_and_changes_nothing(update, params, batch, whole):
    def has_remat(remat):
        state = abstract_state(make_config(), ARCH, mesh_of(ONE))
        step = make_train_step(make_config(remat=remat), ARCH, mesh_of(ONE))
        return "rematted_computation" in str(
            step.lower(state, None, batch).as_text(debug_info=True)
        )

    assert has_remat("block")
    assert not has_remat("none")
    assert gap(update(make_config(remat="block"), batch), whole) < 1e-6


def largest_vocab_array(cfg):
    """Elements of the largest array with a vocabulary axis in the compiled program."""
    shapes = re.findall(r"f32\[([\d,]+)\]", compiled(cfg).as_text())
    shapes = [tuple(map(int, shape.split(","))) for shape in set(shapes)]
    return max(np.prod(shape) for shape in shapes if ARCH.vocab_size in shape)


def test_no_array_of_tokens_times_vocabulary():
    vocab, chunk = ARCH.vocab_size, make_config().train.logprob_chunk
    assert largest_vocab_array(make_config()) == max(vocab * ARCH.model_dim, chunk * vocab)
    # Control: with one chunk for all tokens the array is there, and is found.
    full = largest_vocab_array(make_config(logprob_chunk=ROWS * TOKENS))
    assert full == ROWS * TOKENS * vocab > 3 * chunk * vocab


def test_the_vocabulary_crosses_the_mesh_once():
    """Head and embedding are by far the largest matrices. The head is gathered once, its gradient
    is summed once and not after every chunk, and the embedding stays where it is.
    """
    text = compiled(make_config(), MESHES["fsdp"]).as_text()

    def count(collective):
        results = re.findall(rf"= (.*) {collective}\(", text)
        return sum(f"{ARCH.vocab_size}" in re.split(r"\D+", result) for result in results)

    assert len(re.findall(r"= .* all-reduce\(", text)) > 1  # the pattern finds something
    assert (count("all-gather"), count("all-reduce")) == (1, 1)


def test_a_gated_step_that_trips_is_not_applied(params, batch):
    """And a step that does not trip is the very step without a gate."""
    # The sampler's log-probs of this batch are random numbers: the largest gap is some nats.
    narrow = make_config(parity=config.ParityWarn(max_nats=0.1))
    before = init_state(params, narrow, mesh_of(ONE))
    expected = jax.tree.map(np.asarray, before)
    state, metrics = compiled(narrow, is_gated=True)(before, None, batch)
    assert metrics.is_tripped == metrics.is_finite == 1
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), expected)

    wide = make_config(parity=config.ParityWarn(mean_nats=50.0, max_nats=50.0))
    gated, metrics = compiled(wide, is_gated=True)(state, None, batch)
    assert metrics.is_tripped == 0
    free, metrics = compiled(narrow)(init_state(params, narrow, mesh_of(ONE)), None, batch)
    assert metrics.is_tripped == 1
    jax.tree.map(np.testing.assert_array_equal, gated, free)
    assert free.step == 1


def test_a_masked_completion_is_one_without_an_advantage(update, params, batch, whole):
    """It leaves the loss and stays in the denominators; metrics of the policy leave it out, those
    of parity don't."""
    limit = 1.5 * float(whole[2].gaps.total[0] / whole[2].gaps.count[0])
    cfg = make_config(parity=config.ParityMask(mean_nats=limit, max_nats=50.0))
    masked = update(cfg, batch)
    share = float(masked[2].num_masked / masked[2].gaps.count[0])
    assert 0.01 < share < 0.5
    assert masked[2].is_tripped == 1
    assert masked[2].num_tokens == round((1 - share) * whole[2].num_tokens)
    assert gap(masked[2].gaps, whole[2].gaps) < 1e-6

    # Which ones, from the log-probs of one completion at a time.
    scorer = make_scorer(make_config(), ARCH, mesh_of(ONE))
    logprob_BT = np.array(scorer(jax.tree.map(jnp.asarray, params), batch))
    advantage_BT = np.array(batch.advantage_BT)
    for row in range(int(batch.num_rows)):
        targets = batch.is_target_BT[row]
        for segment in np.unique(batch.segment_BT[row][targets]):
            here = (row, batch.segment_BT[row] == segment)
            if np.abs(logprob_BT - batch.sampler_logprob_BT)[here].mean() > limit:
                advantage_BT[here] = 0
    without = update(make_config(), batch.replace(advantage_BT=advantage_BT))
    assert gap(masked[0], without[0]) < 1e-6
    assert gap(masked[0], whole[0]) > 1e-2  # control: the mask did something

    split = update(make_config(parity=cfg.parity, rows_per_microbatch=2), batch)
    assert gap(split, masked) < 1e-6


def test_zero_advantage_is_zero_gradient(update, params, batch):
    idle = batch.replace(advantage_BT=np.zeros_like(batch.advantage_BT))
    mu, after, metrics = update(make_config(), idle)
    assert all((x == 0).all() for x in jax.tree.leaves(mu))
    jax.tree.map(np.testing.assert_array_equal, after, params)
    assert metrics.grad_norm == metrics.loss_total == 0
    assert metrics.entropy > 0


def with_infinite_advantage(batch):
    advantage_BT = np.array(batch.advantage_BT)
    advantage_BT[tuple(np.argwhere(batch.is_target_BT)[0])] = np.inf
    return batch.replace(advantage_BT=advantage_BT)


def test_an_update_that_is_not_finite_is_not_applied(params, batch):
    cfg, mesh = make_config(), mesh_of(MESHES["all"])
    step = compiled(cfg, MESHES["all"])
    state, _ = step(init_state(params, cfg, mesh), None, batch)
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, None, with_infinite_advantage(batch))
    assert metrics.is_finite == 0
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), before)
    # And training can go on from there.
    state, metrics = step(state, None, batch)
    assert metrics.is_finite == 1
    assert state.step == 2
    assert gap(jax.tree.map(np.asarray, state.params), before.params) > 1e-3


def test_reference(params, batch, update, whole):
    cfg, mesh = make_config(kl=0.1), mesh_of(ONE)
    step = compiled(cfg)
    state = init_state(params, cfg, mesh)
    reference = init_state(params, cfg, mesh).params
    state, first = step(state, reference, batch)
    # The policy is the reference: no divergence, and k3 is flat there.
    np.testing.assert_allclose(first.kl, 0.0, atol=1e-9)
    assert gap(np.asarray(optax.tree.get(state.opt_state, "mu").embed), whole[0].embed) < 1e-5
    state, second = step(state, reference, batch)
    assert second.kl > 1e-3
    jax.tree.map(np.testing.assert_array_equal, reference, params)  # not donated, not changed
    assert np.isnan(whole[2].kl)


def test_errors(params, batch):
    mesh = mesh_of(ONE)

    def call(cfg, batch=batch, frozen=None, mesh=mesh):
        make_train_step(cfg, ARCH, mesh).lower(abstract_state(cfg, ARCH, mesh), frozen, batch)

    with pytest.raises(ValueError, match=r"kl.weight is 0.1, and none were given"):
        call(make_config(kl=0.1))
    with pytest.raises(ValueError, match=r"kl.weight is 0.0, and some were given"):
        call(make_config(), frozen=jax.tree.map(jnp.array, params))
    with pytest.raises(ValueError, match=r"8 rows, which train.rows_per_microbatch 3"):
        call(make_config(rows_per_microbatch=3))
    with pytest.raises(ValueError, match=r"data \* fsdp \* expert = 4"):
        call(make_config(rows_per_microbatch=2), mesh=mesh_of(MESHES["all"]))


def test_schedule_clipping_and_decay_reach_the_update(params, batch):
    optimizer = {"schedule": "linear", "max_grad_norm": 1e-3, "weight_decay": 0.5}
    cfg, mesh = make_config(optimizer=optimizer, steps=2, updates_per_step=2), mesh_of(ONE)
    step = compiled(cfg)
    state = init_state(params, cfg, mesh)
    # Without a gradient, decay alone moves the matrices, by rate * decay, and not the norms.
    idle = batch.replace(advantage_BT=np.zeros_like(batch.advantage_BT))
    state, metrics = step(state, None, idle)
    np.testing.assert_allclose(state.params.embed, params.embed * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(state.params.blocks.mlp_norm, params.blocks.mlp_norm)
    rates = [metrics.learning_rate]
    # Update k has rate(k) of a run of four, and one that was not applied does not count.
    for rows in (with_infinite_advantage(batch), batch, batch, batch):
        state, metrics = step(state, None, rows)
        rates.append(metrics.learning_rate)
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.075, 0.05, 0.025], rtol=1e-6)
    assert metrics.grad_norm > 0.01
    np.testing.assert_allclose(
        optax.tree.norm(optax.tree.get(state.opt_state, "mu")), 1e-3, rtol=1e-5
    )
