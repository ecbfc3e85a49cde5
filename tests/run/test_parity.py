"""Faults put between sampler and trainer, and the cause that the split names."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from cipo_jax import config
from cipo_jax.config import Config, ParityStop, ParityWarn
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.method.gaps import bucket_masks
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import init
from cipo_jax.run import parity
from cipo_jax.run.parity import Evidence, split_by_cause, split_of_bundle, write_bundle
from cipo_jax.update.scorer import make_scorer
from tests.batches import random_batch

ARCH = PRESETS["tiny-llama"]
LIMITS = ParityStop(mean_nats=0.01, max_nats=0.1)


def make_config(temperature=0.7, compute_dtype="float32") -> Config:
    return Config(
        name="test",
        model=config.RandomModel(preset="tiny-llama"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16, temperature=temperature),
        train=config.Train(
            row_tokens=120, rows_per_microbatch=4, remat="none", compute_dtype=compute_dtype
        ),
        parity=LIMITS,
    )


@functools.cache
def weights(seed=0):
    grown = init(jax.random.key(seed), ARCH)
    return jax.tree.map(lambda x: 3 * x if x.std() > 0 else x, grown)


@functools.cache
def scored(temperature=0.7, compute_dtype="float32", seed=0, **constants):
    """Log-probs of the batch, as a trainer or a sampler with these settings has them."""
    arch = dataclasses.replace(ARCH, **constants)
    mesh = make_mesh(config.MeshShape(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    score = make_scorer(make_config(temperature, compute_dtype), arch, mesh)
    program = score.lower(weights(seed), batch()).compile(
        compiler_options={"xla_backend_optimization_level": 0}
    )
    return np.asarray(program(weights(seed), batch()))


@functools.cache
def batch():
    return random_batch(4, 120, vocab_size=ARCH.vocab_size)


def sampled(logprob_BT):
    """The batch as a sampler hands it over that reports these log-probs."""
    kept_BT = np.where(batch().is_target_BT, logprob_BT, 0).astype(np.float32)
    return batch().replace(sampler_logprob_BT=kept_BT)


def found(rows, rescored_BT=None, limits=LIMITS, resampled=None, logged_BT=None):
    rescored_BT = scored() if rescored_BT is None else rescored_BT
    logged_BT = rescored_BT if logged_BT is None else logged_BT
    gap = np.abs(logged_BT - rows.sampler_logprob_BT)[rows.is_target_BT]
    logged = {"mean": float(gap.mean()), "max": float(gap.max())}
    evidence = Evidence(
        batch=rows,
        rescored_BT=rescored_BT,
        float32_BT=scored(),
        resampled=resampled,
        logged=logged,
    )
    return split_by_cause(evidence, limits=limits)


def test_without_a_fault_there_is_nothing_to_split():
    gaps = found(sampled(scored())).gaps
    assert gaps["logged"]["max"] == gaps["learning rate 0"]["max"] == 0
    # Control: each of the faults below is far beyond the limits.
    for fault in (scored(temperature=1.0), scored(rope_theta=10.0), scored(seed=1)):
        gaps = found(sampled(fault)).gaps
        assert gaps["logged"]["mean"] > LIMITS.mean_nats


def test_another_temperature_is_everywhere():
    assert found(sampled(scored(temperature=1.0))).cause == "everywhere"


def test_wrong_rotary_angles_grow_with_the_position():
    split = found(sampled(scored(rope_theta=10.0)))
    assert split.cause == "everywhere"
    assert split.gaps["position_16"]["mean"] > split.gaps["position_0"]["mean"]


def test_stale_parameters_are_seen_by_sampling_again():
    """The sampler used other weights than the trainer was given; with the right ones it draws the
    same tokens here, with other log-probs."""
    stale = sampled(scored(seed=1))
    assert found(stale, resampled=sampled(scored())).cause == "sampler"
    # Sampling again drew other tokens.
    other = sampled(scored()).replace(token_BT=batch().token_BT[:, ::-1])
    assert found(stale, resampled=other).cause == "sampler"
    # Control: a sampler that repeats itself is not to blame.
    assert found(stale, resampled=stale).cause == "everywhere"


def test_parameters_that_moved_before_the_update():
    """What the step saw is gone when the batch is scored with the parameters that sampled it."""
    split = found(sampled(scored()), logged_BT=scored(seed=1))
    assert split.cause == "parameters"
    assert split.gaps["logged"]["mean"] > 0.01 > split.gaps["learning rate 0"]["mean"]


@pytest.mark.parametrize(
    ("bucket", "cause"),
    [("first", "first token"), ("last", "last token"), ("position_16", "position_16")],
)
def test_a_fault_of_some_tokens_is_named_by_them(bucket, cause):
    mask = np.asarray(bucket_masks(batch())[bucket])
    assert found(sampled(scored() - 2.0 * mask)).cause == cause


def test_rounding_is_named_by_its_size():
    rescored = scored(compute_dtype="bfloat16")
    narrow = ParityStop(mean_nats=1e-4, max_nats=1e-3)
    split = found(sampled(scored()), rescored, limits=narrow)
    assert split.cause == "dtype"
    assert split.gaps["float32"]["max"] == 0 < split.gaps["rounding"]["mean"]
    # Control: beside a fault of another size, the same rounding explains nothing.
    assert found(sampled(scored(temperature=1.0)), rescored, limits=narrow).cause == "everywhere"


def test_a_bundle_holds_what_the_split_is_made_from(tmp_path):
    rows = sampled(scored(temperature=1.0)).replace(num_rows=np.int32(3))
    evidence = Evidence(
        batch=rows,
        rescored_BT=scored(),
        float32_BT=scored(),
        resampled=rows,
        logged={"mean": 1.0, "max": 2.0},
    )
    path, split = write_bundle(evidence, tmp_path, 12, cfg=make_config(), devices={"kind": "cpu"})
    assert path == tmp_path / "parity" / "step_000012"
    record = json.loads((path / "record.json").read_text())
    assert record["cause"] == split.cause == "everywhere"
    assert record["step"] == 12
    assert record["versions"]["jax"] == jax.__version__
    assert record["shapes"]["token_BT"] == [3, 120]
    with np.load(path / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["token_BT"], rows.token_BT[:3])
        np.testing.assert_array_equal(arrays["sampler_logprob_BT"], rows.sampler_logprob_BT[:3])
        np.testing.assert_array_equal(arrays["rescored_BT"], scored()[:3])
    again = split_of_bundle(path)
    assert again == split
    assert "cause: everywhere" in str(again)


def test_a_run_that_goes_on_leaves_a_few_bundles(tmp_path):
    warn = dataclasses.replace(make_config(), parity=ParityWarn())
    for step in range(parity.MAX_BUNDLES):
        assert parity.has_room(tmp_path, warn)
        (tmp_path / "parity" / f"step_{step:06d}").mkdir(parents=True)
    assert not parity.has_room(tmp_path, warn)
    assert parity.has_room(tmp_path, make_config())
    off = dataclasses.replace(warn, parity=config.ParityOff())
    assert not parity.has_room(tmp_path / "another", off)
