"""How near a run's programs come to what the devices at hand can do at most.

    python tests/bench/accelerator.py [--SETTING VALUE ...]        # settings as of `cipo train`

First the two ceilings are measured, on one device: a product of two large square matrices in the
compute dtype, and adding 1 to a large array. Then each large program of a step runs with random
weights and full lengths: prefill and decoding of one call of the sampler, and the train step on a
full batch whose rows hold one sequence each. Products are what `cipo plan` counts. Decoding has a
floor of bytes too: for each token all weights in the compute dtype, the prompts' cache, and half of
the completions' at its full length. Seconds by phase of a real run are in its metrics, `time/...`.

The model is Qwen3-0.6B's size, with prompts of 256 and completions of 1024 tokens. Two CPU cores
would take hours for that; for them: --model.preset HuggingFaceTB/SmolLM2-135M-Instruct
--train.compute-dtype float32 --sampling.max-new-tokens 64 --train.prompts-per-step 4
--train.row-tokens 1024
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cipo_jax.config import Config, configfile
from cipo_jax.mesh.sharding import ACTIVATION_RULES, distributed, make_mesh, num_row_shards
from cipo_jax.method.mix import max_rows
from cipo_jax.model import transformer
from cipo_jax.model.files.load import load_model
from cipo_jax.model.presets import Architecture
from cipo_jax.plan.worker import Workshop, planned_architecture
from cipo_jax.records import Batch, PromptBatch
from cipo_jax.rollout.sample import stages
from cipo_jax.run.iteration import base_shape
from cipo_jax.update import policy
from cipo_jax.update.train_step import init_state, make_train_step

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
MODEL = [
    "--name", "accelerator", "--model.preset", "Qwen/Qwen3-0.6B",
    "--prompts.max-prompt-tokens", "256", "--prompts.max-attempt-tokens", "64",
    "--prompts.max-correction-prompt-tokens", "512", "--sampling.max-new-tokens", "1024",
    "--train.prompts-per-step", "32", "--train.row-tokens", "4096",
    "--train.compute-dtype", "bfloat16",
]  # fmt: skip
REPEATS = 5


def seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median, after one run that compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def ceilings(cfg: Config) -> tuple[float, float]:
    """FLOP/s of a product and bytes/s of a pass over memory, of one device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), cfg.train.compute_dtype)
    product = jax.jit(jnp.matmul)
    array = jnp.ones(2**26, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * size**3 / seconds(lambda: product(x, x)), 2 * array.nbytes / seconds(
        lambda: add(array)
    )


def full_prompts(num_prompts: int, num_tokens: int, vocab_size: int) -> PromptBatch:
    rng = np.random.default_rng(0)
    return PromptBatch(
        rng.integers(1, vocab_size, (num_prompts, num_tokens), np.int32),
        np.full(num_prompts, num_tokens, np.int32),
        np.arange(num_prompts, dtype=np.int32),
    )


def full_batch(cfg: Config, vocab_size: int) -> Batch:
    """Each row one sequence: a prompt of one token, and a completion that fills the row."""
    shape = max_rows(cfg), cfg.train.row_tokens
    rng = np.random.default_rng(1)
    position_BT = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    is_target_BT = position_BT > 0
    return Batch(
        token_BT=rng.integers(1, vocab_size, shape, np.int32),
        position_BT=position_BT,
        segment_BT=np.where(is_target_BT, 2, 1).astype(np.int32),
        prefix_BT=np.ones(shape, np.int32),
        predecessor_BT=np.maximum(position_BT - 1, 0),
        stream_BT=np.zeros(shape, np.int32),
        is_target_BT=is_target_BT,
        sampler_logprob_BT=np.full(shape, -np.log(vocab_size), np.float32),
        old_logprob_BT=np.full(shape, -np.log(vocab_size), np.float32)
        if cfg.has_old_logprob
        else None,
        advantage_BT=rng.normal(size=shape).astype(np.float32),
        weight_BT=np.full(shape, 1 / is_target_BT.sum(), np.float32),
        num_rows=np.int32(shape[0]),
    )


def decoding_bytes(cfg: Config, arch: Architecture, mesh: jax.sharding.Mesh) -> float:
    """What one call of the sampler reads at least after its prefill, over all devices: those that
    split the rows all read the weights."""
    shape, itemsize = base_shape(cfg), jnp.dtype(cfg.train.compute_dtype).itemsize
    weights = sum(x.size for x in jax.tree.leaves(transformer.abstract(arch)))
    if not arch.is_tied:  # of a table, only rows are read
        weights -= arch.vocab_size * arch.model_dim
    of_token = 2 * arch.num_layers * arch.num_kv_heads * arch.head_dim
    tokens = shape.prompt_tokens + shape.num_samples * shape.new_tokens / 2
    cache = shape.num_prompts * tokens * of_token
    return (shape.new_tokens - 1) * itemsize * (num_row_shards(mesh) * weights + cache)


def measured(cfg: Config, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Seconds of one run of each program."""
    params, arch = load_model(cfg.model, mesh, seed=cfg.seed, dtype=policy.base_dtype(cfg))
    dtype, shape = jnp.dtype(cfg.train.compute_dtype), base_shape(cfg)
    shards = num_row_shards(mesh)
    num_prompts = shards * math.ceil(shape.num_prompts / shards)
    prompts = full_prompts(num_prompts, shape.prompt_tokens, arch.vocab_size)
    prompts = distributed(prompts, mesh, ACTIVATION_RULES)
    found = {}
    running = stages(
        params, prompts, jax.random.key(0), jnp.float32(1.0), arch=arch, eos_ids=(0,),
        samples_per_prompt=shape.num_samples, max_new_tokens=shape.new_tokens, compute_dtype=dtype,
    )  # fmt: skip
    stage = next(running)
    while stage.name != "decode":
        if stage.name == "prefill":
            found["prefill"] = seconds(stage.run)
        stage = running.send(stage.run())
    found["decode"] = seconds(stage.run, repeats=3)
    del running, stage

    trainable, frozen = policy.split(params, cfg, arch)
    state = init_state(trainable, cfg, mesh)
    step = make_train_step(cfg, arch, mesh)
    batch = distributed(full_batch(cfg, arch.vocab_size), mesh, ACTIVATION_RULES)

    def update():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return metrics

    found["train step"] = seconds(update, repeats=3)
    return found


def main() -> None:
    cfg = configfile.load(SMOKE, [*MODEL, *sys.argv[1:]])
    devices = jax.devices()
    versions = " ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax")
    )
    print(
        f"{datetime.date.today()}  {len(devices)} x {devices[0].device_kind}, "
        f"{devices[0].client.platform_version.splitlines()[0]}, {versions}, "
        f"Python {platform.python_version()}\n"
        f"{cfg.model.preset}, {cfg.train.compute_dtype}, settings: {' '.join(sys.argv[1:])}"
    )
    flops_per_s, bytes_per_s = ceilings(cfg)
    print(f"ceilings of a device: {flops_per_s:.3g} FLOP/s, {bytes_per_s:.3g} byte/s\n")

    mesh = make_mesh(cfg.mesh)
    arch = planned_architecture(cfg)
    workshop = Workshop(arch=arch, mesh=mesh, folder=None, compiled={})
    counted = {call.name: call.compiled for call in workshop.calls(cfg, ["sample", "train"])}
    with jax.set_mesh(mesh):
        took = measured(cfg, mesh)
    print("| program | s | GFLOP | of the ceiling | GB at least | of the ceiling |")
    print("|---|---|---|---|---|---|")
    for name, taken in took.items():
        flops = counted[name].count.flops
        read, share = "", ""
        if name == "decode":
            floor = decoding_bytes(cfg, arch, mesh)
            read, share = f"{floor / 1e9:,.1f}", f"{floor / taken / bytes_per_s / len(devices):.1%}"
        print(
            f"| {name} | {taken:.3f} | {flops / 1e9:,.1f} "
            f"| {flops / taken / flops_per_s / len(devices):.1%} | {read} | {share} |"
        )


if __name__ == "__main__":
    main()
