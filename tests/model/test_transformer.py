"""The decoder against its own definition: what a token sees, where it stands, what is kept.

That the numbers are the public models' is shown in test_hf.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.model.attention import packed_attention
from cipo_jax.model.blockwise import Window
from cipo_jax.model.decoding import layer_of
from cipo_jax.model.presets import (
    PRESETS,
    Architecture,
    Experts,
    LinearRopeScaling,
    Llama3RopeScaling,
    SlidingLayers,
)
from cipo_jax.model.rotary import rotary_angles, rotary_tables, rotate
from cipo_jax.model.transformer import (
    abstract,
    block,
    embed_scaled,
    hidden_states,
    init,
    norm,
    rms_norm,
)
from tests.batches import random_batch
from tests.weights import drawn

TINY = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-gemma3"]


forward = jax.jit(hidden_states, static_argnames=("arch", "compute_dtype", "remat"))


def run(params, batch, arch, *, remat="none", **changed):
    fields = {"token": batch.token_BT, "position": batch.position_BT}
    fields |= {"segment": batch.segment_BT, "prefix": batch.prefix_BT} | changed
    return forward(params, *fields.values(), arch=arch, compute_dtype="float32", remat=remat)


def alone(params, token_T, arch, row_length):
    """Hidden states of one sequence in a row of its own, with padding behind it."""
    token_BT = np.pad(token_T, (0, row_length - len(token_T)))[None]
    position_BT = np.arange(row_length)[None]
    segment_BT = (position_BT < len(token_T)).astype(np.int32)
    hidden_BTD = forward(
        params,
        token_BT,
        position_BT,
        segment_BT,
        segment_BT,
        arch=arch,
        compute_dtype="float32",
        remat="none",
    )
    return np.asarray(hidden_BTD)[0, : len(token_T)]


@pytest.mark.parametrize("name", TINY)
def test_a_packed_sequence_equals_the_sequence_alone(name):
    arch = PRESETS[name]
    params = drawn(arch)
    batch = random_batch(2, 48, vocab_size=arch.vocab_size)
    packed_BTD = np.asarray(run(params, batch, arch))
    # Control: positions in the row. They shift a prompt and its first completion together, which
    # rotary attention cannot tell, but part the second completion from the prompt.
    in_row_BT = np.broadcast_to(np.arange(48), (2, 48))
    wrong_BTD = np.asarray(run(params, batch, arch, position=in_row_BT))
    wrong = []
    for row in range(2):
        for segment in np.unique(batch.segment_BT[row][batch.is_target_BT[row]]):
            own_T = batch.segment_BT[row] == segment
            prefix_T = batch.segment_BT[row] == batch.prefix_BT[row][own_T][0]
            token_T = np.concatenate([batch.token_BT[row][prefix_T], batch.token_BT[row][own_T]])
            alone_TD = alone(params, token_T, arch, 48)[prefix_T.sum() :]
            np.testing.assert_allclose(packed_BTD[row][own_T], alone_TD, atol=2e-5)
            wrong.append(np.abs(wrong_BTD[row][own_T] - alone_TD).max())
    assert max(wrong) > 1e-2


def test_a_token_sees_exactly_what_the_batch_says():
    arch = PRESETS["tiny-qwen3"]
    params = drawn(arch)
    batch = random_batch(1, 32, vocab_size=arch.vocab_size, seed=3)
    segment, prefix = batch.segment_BT[0], batch.prefix_BT[0]
    index = np.arange(32)
    sees_TS = (index[None, :] <= index[:, None]) & (
        (segment[None, :] == segment[:, None]) | (segment[None, :] == prefix[:, None])
    )
    before_TD = np.asarray(run(params, batch, arch))[0]
    for source in np.flatnonzero(segment):
        token_BT = batch.token_BT.copy()
        token_BT[0, source] = token_BT[0, source] % (arch.vocab_size - 1) + 1
        after_TD = np.asarray(run(params, batch, arch, token=token_BT))[0]
        changed_T = np.any(after_TD != before_TD, axis=-1)
        np.testing.assert_array_equal(changed_T, sees_TS[:, source])


def test_positions_decide_what_a_window_holds():
    """A second completion stands far behind its prompt in the row, and yet sees its end."""
    batch = random_batch(1, 48, vocab_size=9, seed=2)
    segment, prefix, position = batch.segment_BT[0], batch.prefix_BT[0], batch.position_BT[0]
    index = np.arange(48)
    sees_TS = (index[None, :] <= index[:, None]) & (
        (segment[None, :] == segment[:, None]) | (segment[None, :] == prefix[:, None])
    )
    in_window_TS = sees_TS & (position[:, None] - position[None, :] < 4)
    by_index_TS = sees_TS & (index[:, None] - index[None, :] < 4)
    is_token = segment > 0
    assert np.any((in_window_TS & ~by_index_TS)[is_token])  # the control: rows would tell otherwise
    v = jnp.eye(48)[None, :, None]
    qk = jnp.zeros((1, 48, 1, 48))
    window = Window(batch.position_BT, 4)
    weight_TS = packed_attention(qk, qk, v, batch.segment_BT, batch.prefix_BT, window)[0, :, 0]
    np.testing.assert_array_equal((weight_TS > 0)[is_token], in_window_TS[is_token])


def test_padding_is_finite_and_reaches_nobody():
    arch = PRESETS["tiny-llama"]
    params = drawn(arch)
    batch = random_batch(2, 40, vocab_size=arch.vocab_size, seed=1)
    is_padding = batch.segment_BT == 0
    assert is_padding.any()
    clean = np.asarray(run(params, batch, arch))
    token = np.where(is_padding, 7, batch.token_BT)
    dirty = run(
        params, batch, arch, token=token, position=np.where(is_padding, 99, 0) | batch.position_BT
    )
    assert np.isfinite(dirty).all()
    np.testing.assert_array_equal(clean[~is_padding], dirty[~is_padding])
    assert np.any(clean[is_padding] != dirty[is_padding])


@pytest.mark.slow
def test_remat_recomputes_and_changes_nothing():
    arch = PRESETS["tiny-qwen3"]
    params = drawn(arch)
    batch = random_batch(2, 24, vocab_size=arch.vocab_size)

    def loss(params, remat):
        return jnp.sum(jnp.square(run(params, batch, arch, remat=remat)))

    gradients = {
        remat: jax.jit(jax.grad(loss), static_argnums=1)(params, remat)
        for remat in ("none", "products", "attention", "block")
    }
    for remat in ("products", "attention", "block"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
            gradients["none"],
            gradients[remat],
        )
    programs = {
        remat: str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, remat))
        for remat in gradients
    }
    assert all("scan[" in program for program in programs.values())
    assert "remat" in programs["block"] or "checkpoint" in programs["block"]
    assert "remat" not in programs["none"]
    assert "checkpoint" not in programs["none"]
    # The less is kept, the more products are computed again.
    counts = [programs[remat].count("dot_general") for remat in gradients]
    assert counts == sorted(counts)
    assert len(set(counts)) == 4


@pytest.mark.parametrize("name", TINY)
@pytest.mark.slow
def test_scan_over_layers_equals_a_walk_over_unstacked_layers(name):
    arch = PRESETS[name]
    params = drawn(arch)
    batch = random_batch(2, 24, vocab_size=arch.vocab_size)
    tables = rotary_tables(batch.position_BT, arch)
    slides = arch.sliding.is_sliding if arch.sliding else (False,) * arch.num_layers

    @jax.jit
    def walk(layers):
        x_BTD = embed_scaled(params.embed[batch.token_BT], arch)
        for weights, is_sliding in zip(layers, slides, strict=True):
            window = Window(batch.position_BT, arch.sliding.window) if is_sliding else None

            def attend(q, k, v, window=window):
                return packed_attention(q, k, v, batch.segment_BT, batch.prefix_BT, window), None

            rotary = tables.sliding if is_sliding else tables.full
            x_BTD, _ = block(x_BTD, weights, rotary=rotary, attend=attend, arch=arch)
        return norm(x_BTD, params.final_norm, arch)

    dtype = jnp.dtype("float32")
    layers = [layer_of(params.blocks, index, dtype=dtype) for index in range(arch.num_layers)]
    expected = run(params, batch, arch)
    np.testing.assert_allclose(walk(layers), expected, atol=2e-5)
    assert np.abs(walk(layers[::-1]) - expected).max() > 1e-2


def test_a_layer_for_decoding_has_cast_matrices_and_whole_norm_scales():
    arch = PRESETS["tiny-qwen3"]
    layer = layer_of(drawn(arch).blocks, 1, dtype=jnp.dtype("bfloat16"))
    assert layer.q.dtype == layer.down.dtype == jnp.bfloat16
    assert layer.attn_norm.dtype == layer.q_norm.dtype == jnp.float32
    assert layer.q.shape == (arch.model_dim, arch.num_heads, arch.head_dim)


def test_rms_norm_by_hand():
    # mean of squares of (3, 4) is 12.5; with eps 3.5 the divisor is sqrt(16) = 4.
    out = rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([2.0, 0.5]), 3.5)
    np.testing.assert_allclose(out, [[1.5, 0.5]], rtol=1e-6)
    # bfloat16 in, bfloat16 out, but the sum is float32: 256 ones and one 16 would lose the ones.
    x = jnp.ones((1, 257), jnp.bfloat16).at[0, 0].set(16)
    exact = 1 / math.sqrt(512 / 257)
    out = rms_norm(x, jnp.ones(257), 0.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(out[0, 1]), exact, rtol=2**-8)


def test_rotary_by_hand():
    # H = 4, theta = 100: frequencies 100^0 = 1 and 100^(-1/2) = 0.1. Channel 0 turns with channel
    # 2, channel 1 with channel 3.
    rotary = rotary_angles(jnp.array([[3]]), 4, 100.0, None)
    turned = rotate(jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4), rotary).reshape(4)
    cos, sin = math.cos, math.sin
    np.testing.assert_allclose(turned, [cos(3), -sin(0.3), sin(3), cos(0.3)], atol=1e-6)


def test_llama3_scaling_by_hand():
    # Turns within the original 64 positions: 64 * frequency / 2 pi. Above high_freq_factor 4 the
    # frequency is kept, below low_freq_factor 1 it is divided by 8, and 2.5 turns, half way
    # between, give the mean of the two: frequency * (1 + 1/8) / 2.
    scaling = Llama3RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64
    )
    for turns, factor in ((10.2, 1.0), (2.5, 9 / 16), (0.5, 1 / 8)):
        frequency = turns * 2 * math.pi / 64
        # The second of the two frequencies is theta^(-1/2).
        _, sin = rotary_angles(jnp.array([1]), 4, frequency**-2, scaling)
        np.testing.assert_allclose(sin[0, 1], math.sin(frequency * factor), rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_abstract_has_the_shapes_of_init(name):
    arch = PRESETS[name]
    params = init(jax.random.key(0), arch)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert abstract(arch) == described
    assert (params.head is None) == arch.is_tied
    assert (params.blocks.q_bias is None) == (not arch.has_qkv_bias)
    assert (params.blocks.q_norm is None) == (not arch.has_qk_norm)
    assert (params.blocks.attn_post_norm is None) == (not arch.has_post_norms)
    assert (params.blocks.router is None) == (params.blocks.gate is not None)
    assert (params.blocks.router is None) == (arch.experts is None)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        # Sums of the tensor sizes in the public checkpoints.
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("ByteDance-Seed/Seed-Coder-8B-Instruct", 8_250_462_208),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("google/gemma-3-270m-it", 268_098_176),
        ("google/gemma-3-1b-it", 999_885_952),
        ("google/gemma-3-4b-it", 3_880_263_168),
    ],
)
def test_presets_have_the_size_of_the_public_models(name, num_parameters):
    assert sum(x.size for x in jax.tree.leaves(abstract(PRESETS[name]))) == num_parameters


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_kv_heads": 3}, "4, which 3 num_kv_heads do not divide"),
        ({"head_dim": 15}, "even"),
        ({"sliding": SlidingLayers(is_sliding=(True,), window=4, rope_theta=1.0)}, "1 layers of 3"),
        (
            {"experts": Experts(num_experts=4, num_per_token=5, is_normalised=True)},
            "5 of 4 experts",
        ),
    ],
)
def test_impossible_architectures_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["tiny-llama"], **changed)


def test_no_constant_of_an_architecture_has_a_default():
    records = (Architecture, Llama3RopeScaling, LinearRopeScaling, SlidingLayers, Experts)
    for record in records:
        for field in dataclasses.fields(record):
            assert field.default is field.default_factory is dataclasses.MISSING, field.name
