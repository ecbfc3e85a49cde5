"""Checkpoints in and out, against transformers' own models with the same weights.

The weights are redrawn wide (std 0.25) so that logits vary by several units and a wrong constant
can't hide; half of the tokens get small embeddings, whose mean square is near norm_eps.
"""

import dataclasses
import functools
import json
import math
import re
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from cipo_jax import config
from cipo_jax.mesh.sharding import PARAM_RULES, make_mesh, shardings_of
from cipo_jax.model.files import hf, layout
from cipo_jax.model.head import logits
from cipo_jax.model.presets import PRESETS, Architecture, LinearRopeScaling
from cipo_jax.model.transformer import Params, abstract, hidden_states

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""On logits of up to 7. Measured: 3.4e-5 at most; wrong constants give 0.5 and more."""

FAMILIES = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-gemma3"]


def tiny(preset: str) -> Architecture:
    """The constants of a public model at the dimensions of a tiny one."""
    arch = PRESETS[preset]
    like = PRESETS[next(name for name in FAMILIES if PRESETS[name].family == arch.family)]
    dims = ["model_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"]
    small = {name: getattr(like, name) for name in [*dims, "query_pre_attn_scalar"]}
    if arch.sliding and like.sliding:
        small["sliding"] = dataclasses.replace(
            arch.sliding, is_sliding=like.sliding.is_sliding, window=like.sliding.window
        )
    if arch.experts and like.experts:
        small["experts"] = dataclasses.replace(
            like.experts, is_normalised=arch.experts.is_normalised
        )
    return dataclasses.replace(arch, vocab_size=96, **small)


def their_model(arch: Architecture, seed: int = 0) -> torch.nn.Module:
    """transformers' model of these constants, written down without any of our code."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
        "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    }[arch.family]
    rope = {"rope_type": "default", "rope_theta": arch.rope_theta}
    special = {}
    scaling = arch.rope_scaling
    if isinstance(scaling, LinearRopeScaling):
        rope |= {"rope_type": "linear", "factor": scaling.factor}
    elif scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    if arch.sliding:
        local = {"rope_type": "default", "rope_theta": arch.sliding.rope_theta}
        rope = {"full_attention": rope, "sliding_attention": local}
        kinds = {True: "sliding_attention", False: "full_attention"}
        special = {
            "layer_types": [kinds[slides] for slides in arch.sliding.is_sliding],
            "sliding_window": arch.sliding.window,
            "query_pre_attn_scalar": arch.query_pre_attn_scalar,
        }
    if arch.experts:
        special = {
            "num_experts": arch.experts.num_experts,
            "num_experts_per_tok": arch.experts.num_per_token,
            "norm_topk_prob": arch.experts.is_normalised,
            "moe_intermediate_size": arch.mlp_dim,
        }
    their_config = config_class(
        vocab_size=arch.vocab_size,
        hidden_size=arch.model_dim,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        num_key_value_heads=arch.num_kv_heads,
        head_dim=arch.head_dim,
        intermediate_size=arch.mlp_dim,
        rope_parameters=rope,
        rms_norm_eps=arch.norm_eps,
        tie_word_embeddings=arch.is_tied,
        max_position_embeddings=arch.max_position,
        pad_token_id=None,  # or its embedding would get no gradient
        **special,
    )
    torch.manual_seed(seed)
    model = model_class(their_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 - arch.norm_offset if "norm" in name else 0.0, 0.25)
        model.get_input_embeddings().weight[::2] *= 0.05
    return model


TOKENS = np.random.default_rng(0).integers(0, 96, (2, 120)).astype(np.int32)
"""Longer than the 64 positions that tiny-llama's rotary scaling regards as the original context."""


def their_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS).long()).logits.numpy()


compiled = functools.partial(
    jax.jit, static_argnames="arch", compiler_options={"xla_backend_optimization_level": 0}
)


def forward(params: Params, token_BT: jax.Array, *, arch: Architecture) -> jax.Array:
    ones = jnp.ones_like(token_BT)
    hidden_BTD = hidden_states(
        params,
        token_BT,
        jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape),
        ones,
        ones,
        arch=arch,
        compute_dtype=jnp.float32,
        remat="none",
    )
    return logits(params, hidden_BTD, arch=arch)


our_logits = compiled(forward)


def error(params: Params, arch: Architecture, expected: np.ndarray) -> float:
    return float(np.abs(our_logits(params, TOKENS, arch=arch) - expected).max())


# One of several presets that differ in dimensions only.
CONSTANTS = {
    (a.family, a.rope_theta, a.rope_scaling, a.norm_eps, a.is_tied): name
    for name, a in reversed(PRESETS.items())
}


@pytest.mark.parametrize("preset", CONSTANTS.values())
def test_logits_equal_transformers_with_the_constants_of_every_preset(preset, tmp_path):
    arch = tiny(preset)
    model = their_model(arch)
    model.save_pretrained(tmp_path)
    assert hf.architecture(tmp_path) == arch
    expected = their_logits(model)
    assert np.std(expected) > 0.3
    measured = error(hf.load(tmp_path, arch), arch, expected)
    print(f"{preset}: max |logit difference| {measured:.1e}, max |logit| {abs(expected).max():.1f}")
    assert measured < TOLERANCE


def their_gradients(model: torch.nn.Module, folder: Path, arch: Architecture) -> Params:
    """Of the mean negative log-prob of the tokens. Saved as weights and loaded as such, each comes
    to the place of its weight."""
    tokens = torch.from_numpy(TOKENS).long()
    model(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    model.save_pretrained(folder)
    return hf.load(folder, arch)


@compiled
def our_gradients(params: Params, token_BT: jax.Array, *, arch: Architecture) -> Params:
    def loss(params: Params) -> jax.Array:
        law_BTV = jax.nn.log_softmax(forward(params, token_BT, arch=arch)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(law_BTV, token_BT[:, 1:, None], axis=-1))

    return jax.grad(loss)(params)


@pytest.mark.parametrize("preset", FAMILIES)
def test_gradients_equal_those_of_transformers(preset, tmp_path):
    arch = tiny(preset)
    model = their_model(arch)
    model.save_pretrained(tmp_path / "weights")
    params = hf.load(tmp_path / "weights", arch)
    expected = layout.fields_of(their_gradients(model, tmp_path / "gradients", arch))
    found = layout.fields_of(our_gradients(params, TOKENS, arch=arch))
    errors = {path: np.abs(found[path] - expected[path]).max() for path in expected}
    largest = {path: np.abs(expected[path]).max() for path in expected}
    print(f"{preset}: max |gradient difference| {max(errors.values()):.1e}")
    assert max(errors.values()) < TOLERANCE
    assert all(errors[path] < 1e-3 * largest[path] for path in expected), (errors, largest)
    # Control: every one of them is there to be compared.
    assert min(largest.values()) > 10 * TOLERANCE


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_wrong_constant_breaks_the_parity(preset, tmp_path):
    arch = tiny(preset)
    model = their_model(arch)
    model.save_pretrained(tmp_path)
    params, expected = hf.load(tmp_path, arch), their_logits(model)
    changed = functools.partial(dataclasses.replace, arch)
    wrong = {"theta": changed(rope_theta=arch.rope_theta * 2), "eps": changed(norm_eps=1e-4)}
    if arch.rope_scaling:
        wrong["scaling"] = changed(rope_scaling=None)
    if arch.experts:
        of_experts = functools.partial(dataclasses.replace, arch.experts)
        wrong["normalised"] = changed(experts=of_experts(is_normalised=False))
        wrong["top-k"] = changed(experts=of_experts(num_per_token=3))
    if arch.sliding:
        of_sliding = functools.partial(dataclasses.replace, arch.sliding)
        wrong["window"] = changed(sliding=of_sliding(window=7))
        wrong["no window"] = changed(sliding=of_sliding(window=arch.max_position))
        wrong["sliding theta"] = changed(sliding=of_sliding(rope_theta=1e6))
        wrong["pattern"] = changed(sliding=of_sliding(is_sliding=(False, True, True)))
        wrong["norm offset"] = changed(norm_offset=0.0)
        wrong["embedding scale"] = changed(is_embed_scaled=False)
        wrong["query scalar"] = changed(query_pre_attn_scalar=arch.head_dim)
        wrong["activation"] = changed(activation="silu")
    errors = {name: error(params, other, expected) for name, other in wrong.items()}

    def without(name: str) -> float:
        changed = params.replace(blocks=params.blocks.replace(**{name: None}))
        return error(changed, arch, expected)

    if arch.has_qk_norm:
        errors["qk-norm"] = without("q_norm")
    if arch.has_post_norms:
        errors |= {name: without(name) for name in ("attn_post_norm", "mlp_post_norm")}
    if arch.has_qkv_bias:
        errors |= {name: without(name) for name in ("q_bias", "k_bias", "v_bias")}
    print(preset, {name: f"{value:.1e}" for name, value in errors.items()})
    # A bias of the keys adds the same score to all keys of a query where it is not turned, so it is
    # the weakest of these.
    assert min(errors.values()) > 10 * TOLERANCE


@pytest.mark.parametrize("preset", FAMILIES)
def test_saved_weights_come_back_bit_by_bit(preset, tmp_path):
    arch = tiny(preset)
    model = their_model(arch)
    model.save_pretrained(tmp_path / "theirs")
    hf.save(hf.load(tmp_path / "theirs", arch), arch, tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(model)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    np.testing.assert_array_equal(their_logits(again), their_logits(model))  # the constants too
    assert hf.architecture(tmp_path / "ours") == arch


def test_several_files(tmp_path, monkeypatch):
    arch = tiny("tiny-qwen2")
    model = their_model(arch)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    params = hf.load(tmp_path / "theirs", arch)
    assert error(params, arch, their_logits(model)) < TOLERANCE
    monkeypatch.setattr(hf, "MAX_FILE_BYTES", 40_000)
    hf.save(params, arch, tmp_path / "ours")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert_same(hf.load(tmp_path / "ours", arch), params)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    np.testing.assert_array_equal(their_logits(again), their_logits(model))


@pytest.mark.parametrize("preset", ["tiny-gemma3", "tiny-qwen3-moe"])
def test_bfloat16_files(preset, tmp_path):
    arch = tiny(preset)
    model = their_model(arch).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    params = hf.load(tmp_path / "theirs", arch)
    assert params.embed.dtype == jnp.float32
    embed = model.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(params.embed, embed)
    half = hf.load(tmp_path / "theirs", arch, dtype=jnp.bfloat16)
    hf.save(half, arch, tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    expected, found = model.state_dict(), again.state_dict()
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert_same(hf.load(tmp_path / "ours", arch), params)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("tiny-qwen2", config.MeshShape(data=2, tensor=2)),
        ("tiny-qwen3-moe", config.MeshShape(fsdp=2, expert=2, tensor=2)),
    ],
)
def test_placed_over_a_mesh(preset, sizes, tmp_path):
    arch = tiny(preset)
    their_model(arch).save_pretrained(tmp_path)
    mesh = make_mesh(sizes)
    shardings = shardings_of(abstract(arch), mesh, PARAM_RULES)
    params = hf.load(tmp_path, arch, shardings)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    single = hf.load(tmp_path, arch)
    assert_same(params, single)
    hf.save(params, arch, tmp_path / "again")
    assert_same(hf.load(tmp_path / "again", arch), params)


def test_the_host_copies_no_tensor(tmp_path):
    """They go from the mapped file to the devices; tests/bench/import_memory.py measures it."""
    arch = dataclasses.replace(PRESETS["tiny-qwen2"], vocab_size=50_000)
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), abstract(arch))
    hf.save(params, arch, tmp_path)

    def peak_bytes(load) -> int:
        tracemalloc.start()
        load()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    hf.load(tmp_path, arch)  # compiles
    assert peak_bytes(lambda: hf.load(tmp_path, arch)) < params.embed.nbytes / 4
    # Control: what the library reads is a copy.
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        read = peak_bytes(lambda: file.get_slice("model.embed_tokens.weight")[:])
    assert read >= params.embed.nbytes


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen3-moe"])
def test_a_tensor_is_written_in_place_by_the_devices_that_need_it(preset):
    """No device gets more of a tensor than its own piece, none asks another,
    and the field's memory is used again."""
    arch = PRESETS[preset]
    mesh = make_mesh(config.MeshShape(fsdp=2, expert=2, tensor=2))
    fields = layout.fields_of(abstract(arch))
    shardings = layout.fields_of(shardings_of(abstract(arch), mesh, PARAM_RULES))
    for slot in {slot.path: slot for slot in layout.slots(hf.layout_of(arch), arch)}.values():
        place = shardings[slot.path]
        file_place = slot.form.file_sharding(place)
        field = jax.ShapeDtypeStruct(fields[slot.path].shape, jnp.float32, sharding=place)
        tensor = jax.ShapeDtypeStruct(slot.form.file_shape, jnp.bfloat16, sharding=file_place)
        program = layout.write.lower(field, tensor, slot.index, form=slot.form, sharding=place)
        text = program.compile({"xla_backend_optimization_level": 0}).as_text()
        assert "input_output_alias={ {}: (0, {}" in text
        assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text), slot
        split = math.prod(mesh.shape[a] for a in place.spec[len(slot.index) :] if a)
        piece = math.prod(file_place.shard_shape(slot.form.file_shape))
        assert piece * split == math.prod(slot.form.file_shape), slot


def test_replicas_may_be_donated(tmp_path):
    """On CPUs a loaded array may use the reader's memory in place, and the replicas of all devices
    the same memory: an update that donates them must not write there once per device."""
    arch = tiny("tiny-qwen2")
    their_model(arch).save_pretrained(tmp_path)
    mesh = make_mesh(config.MeshShape(data=8))
    params = hf.load(tmp_path, arch, shardings_of(abstract(arch), mesh, PARAM_RULES))
    expected = np.array(params.blocks.gate) + 1
    plus_one = jax.jit(lambda x: x + 1, donate_argnums=0)(params.blocks.gate)
    for shard in plus_one.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected)


def assert_same(params: Params, expected: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, params, expected)


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with an untied tiny Qwen2, to be broken."""
    arch = dataclasses.replace(tiny("tiny-qwen2"), is_tied=False)
    their_model(arch).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def set_tensor(name: str, array: np.ndarray):
    return lambda tensors: tensors.update({name: array})


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(K_PROJ), rf"{K_PROJ} is missing.*holds 38 tensors where 39"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing.*tied"),
        (set_tensor("model.layers.0.mlp.up_proj.bias", np.zeros(48, np.float32)),
         r"up_proj.bias is unknown to a qwen2 decoder.*\(48,\)"),
        (set_tensor("model.layers.3.input_layernorm.weight", np.ones(32, np.float32)),
         "layers.3.input_layernorm.weight is unknown .* of 3 layers"),
        # The transpose: as many numbers, but not the same matrix.
        (lambda t: t.update({K_PROJ: t[K_PROJ].T.reshape(32, 32)[:, :16].copy()}),
         rf"{K_PROJ} has shape \(32, 16\), but .* \(32, 32\) \(KH D\)"),
        (set_tensor(K_PROJ, np.zeros((32, 32), np.int8)), rf"{K_PROJ} holds I8"),
    ],
    ids=["missing", "missing-head", "extra", "extra-layer", "mis-shaped", "quantised"],
)  # fmt: skip
def test_wrong_tensors_are_named(saved, change, message):
    arch = hf.architecture(saved)
    hf.load(saved, arch)
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        hf.load(saved, arch)


def test_a_tensor_in_two_files(saved):
    arch = hf.architecture(saved)
    (saved / "model.safetensors").rename(saved / "a.safetensors")
    twice = {K_PROJ: np.zeros((32, 32), np.float32)}
    safetensors.numpy.save_file(twice, saved / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", K_PROJ: "b.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{K_PROJ} is in a.safetensors and again in b.safetens"):
        hf.load(saved, arch)


def test_a_head_beside_a_tied_embedding_must_equal_it(saved):
    tied = dataclasses.replace(hf.architecture(saved), is_tied=True)
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        hf.load(saved, tied)
    rewrite(saved, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert hf.load(saved, tied).head is None


def test_no_weights_and_present_weights(saved):
    arch = hf.architecture(saved)
    with pytest.raises(ValueError, match=r"already holds model.safetensors"):
        hf.save(hf.load(saved, arch), arch, saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"missing; the folder holds .*pytorch_model.bin"):
        hf.load(saved, arch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": None}, "does not state rms_norm_eps"),
        ({"num_key_value_heads": None}, "does not state num_key_value_heads"),
        ({"tie_word_embeddings": None}, "does not state tie_word_embeddings"),
        ({"rope_parameters": None}, "does not state rope_theta"),
        ({"rope_theta": 5e5}, r"states the bases \[500000.0, 1000000.0\]"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, "'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6,
          "rope_parameters": None}, "'dynamic'"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "linear"}}, "linear without factor"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "llama3", "factor": 8.0}},
         "llama3 without low_freq_factor"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "0.5"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": "qwen3", "head_dim": None}, "does not state head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias is True"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding_window is 64"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
    ids=str,
)  # fmt: skip
def test_constants_that_are_missing_or_not_covered(saved, change, message):
    file = saved / "config.json"
    stated = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        hf.architecture(saved)


@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("tiny-gemma3", {"model_type": "gemma3"}, "whose model_type is gemma3_text"),
        ("tiny-gemma3", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("tiny-gemma3", {"final_logit_softcapping": 30.0}, "softcapping is 30.0; .* caps no"),
        ("tiny-gemma3", {"use_bidirectional_attention": True}, "only looks back"),
        ("tiny-gemma3", {"query_pre_attn_scalar": None}, "does not state query_pre_attn_scalar"),
        ("tiny-gemma3", {"sliding_window": None}, "does not state sliding_window"),
        ("tiny-gemma3", {"layer_types": None, "_sliding_window_pattern": None},
         "neither layer_types nor sliding_window_pattern"),
        ("tiny-gemma3", {"layer_types": ["full_attention"]}, "for each of 3 layers"),
        ("tiny-gemma3", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
         "sliding layers does not state rope_theta"),
        ("tiny-qwen3-moe", {"norm_topk_prob": None}, "does not state norm_topk_prob"),
        ("tiny-qwen3-moe", {"num_local_experts": None}, "does not state num_experts"),
        ("tiny-qwen3-moe", {"mlp_only_layers": [1]}, "has experts in every layer"),
        ("tiny-qwen3-moe", {"decoder_sparse_step": 2}, "has experts in every layer"),
    ],
    ids=str,
)  # fmt: skip
def test_constants_of_windows_and_experts(preset, change, message, tmp_path):
    their_model(tiny(preset)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stated = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        hf.architecture(tmp_path)


def test_gemma_in_the_older_form(tmp_path):
    """As the public configs have it: bases and scaling at the top level, a pattern in the place of
    a list of layers, and no word about the tied head."""
    arch = tiny("tiny-gemma3")
    their_model(arch).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stated = json.loads(file.read_text())
    del stated["rope_parameters"], stated["layer_types"], stated["tie_word_embeddings"]
    stated |= {"rope_theta": arch.rope_theta, "rope_local_base_freq": arch.sliding.rope_theta}
    stated |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2}
    file.write_text(json.dumps(stated))
    assert hf.architecture(tmp_path) == arch


EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(EXPERT), f"{EXPERT} is missing"),
        (set_tensor(EXPERT.replace("4", "6"), np.zeros((24, 32), np.float32)),
         "experts.6.up_proj.weight is unknown to a qwen3_moe decoder"),
        (set_tensor(EXPERT, np.zeros((32, 24), np.float32)),
         rf"{EXPERT} has shape \(32, 24\), but .* \(24, 32\)"),
    ],
    ids=["missing", "extra", "mis-shaped"],
)  # fmt: skip
def test_wrong_experts_are_named(change, message, tmp_path):
    arch = tiny("tiny-qwen3-moe")
    their_model(arch).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        hf.load(tmp_path, arch)


def test_constants_in_the_older_form(saved):
    """Before transformers 5 the rotary base stood at the top level, and heads of Llama and Qwen2
    had no width of their own."""
    file = saved / "config.json"
    stated = json.loads(file.read_text())
    before = hf.architecture(saved)
    del stated["rope_parameters"], stated["head_dim"]
    # Qwen2.5 states a window that it does not use.
    stated |= {"rope_theta": 1e6, "sliding_window": 32768, "use_sliding_window": False}
    file.write_text(json.dumps(stated))
    assert hf.architecture(saved) == dataclasses.replace(
        before, head_dim=32 // 4, query_pre_attn_scalar=32 // 4
    )


def test_no_config(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        hf.architecture(tmp_path)
