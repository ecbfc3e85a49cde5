"""This project's sampler and train step on a shared workload.

python tests/bench/peers/run_cipo.py W1 --out results.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import workload

from cipo_jax import config
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.method.advantages import Scores, objective_advantage
from cipo_jax.method.mix import Completion, Group, max_rows, mix
from cipo_jax.model.presets import PRESETS, Architecture
from cipo_jax.model.transformer import init
from cipo_jax.records import PromptBatch, Stream
from cipo_jax.rollout.sample import sample
from cipo_jax.update.train_step import init_state, make_train_step

ROWS = {"W1": (2, 576), "W2": (2, 320), "W3": (1, 1280)}
"""Rows of a microbatch and their length: a row holds a prompt and its samples in W1 and W2; in W3,
where lengths vary, four times the longest sequence."""


def architecture(model: workload.Model) -> Architecture:
    return dataclasses.replace(
        PRESETS["HuggingFaceTB/SmolLM2-135M-Instruct"],
        vocab_size=model.vocab,
        model_dim=model.width,
        num_layers=model.layers,
        num_heads=model.heads,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_width,
        mlp_dim=model.mlp_width,
    )


def make_config(work: workload.Work, args: argparse.Namespace) -> config.Config:
    return config.Config(
        name="bench",
        model=config.RandomModel(),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=work.prompt_tokens),
        sampling=config.Sampling(
            samples_per_prompt=work.samples, max_new_tokens=work.max_new_tokens
        ),
        correction=config.Correction(prompts_per_base_prompt=0),
        optimizer=config.AdamW(learning_rate=1e-6, max_grad_norm=1.0),
        train=config.Train(
            steps=work.warm_steps + work.steps,
            prompts_per_step=work.prompts,
            row_tokens=args.row_tokens or ROWS[args.work][1],
            rows_per_microbatch=args.rows or ROWS[args.work][0],
            logprob_chunk=args.chunk,
            remat=args.remat,
            compute_dtype="float32",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=workload.WORKS)
    parser.add_argument("--out", default="results.jsonl")
    parser.add_argument("--row-tokens", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--remat", default="none")
    args = parser.parse_args()
    work = workload.WORKS[args.work]
    arch, cfg = architecture(work.model), make_config(work, args)
    mesh = make_mesh(config.MeshShape(), jax.devices()[:1])
    state = init_state(init(jax.random.key(0), arch), cfg, mesh)
    step = make_train_step(cfg, arch, mesh)
    clock = workload.Clock()

    def roll_out(index: int, prompts: list[list[int]]) -> list[Completion]:
        if work.spread:
            given = workload.completions(work, index)
            # Random weights are close to the uniform law, so ratios are near 1, as after sampling.
            logprob = -np.log(work.model.vocab)
            return [
                Completion(
                    token_C=np.asarray(c, np.int32),
                    logprob_C=np.full(len(c), logprob, np.float32),
                )
                for c in given
            ]
        batch = PromptBatch(
            token_QP=jnp.asarray(prompts, jnp.int32),
            length_Q=jnp.full(work.prompts, work.prompt_tokens, jnp.int32),
            key_id_Q=jnp.arange(work.prompts, dtype=jnp.int32),
        )
        rollouts = jax.device_get(
            sample(
                state.params,
                batch,
                jax.random.fold_in(jax.random.key(0), index),
                1.0,
                arch=arch,
                samples_per_prompt=work.samples,
                max_new_tokens=work.max_new_tokens,
                eos_ids=(),
                compute_dtype="float32",
            )
        )
        pairs = zip(
            rollouts.token_QGC.reshape(work.rows, -1),
            rollouts.logprob_QGC.reshape(work.rows, -1),
            strict=True,
        )
        return [Completion(token_C=token, logprob_C=logprob) for token, logprob in pairs]

    def train(prompts: list[list[int]], completions: list[Completion]) -> None:
        nonlocal state
        reward_QG = np.array([workload.reward(c.token_C.tolist()) for c in completions])
        by_prompt = (work.prompts, work.samples)
        is_valid_QG = np.ones(by_prompt, bool)
        length_QG = np.array([len(c.token_C) for c in completions]).reshape(by_prompt)
        scores = Scores(
            reward_QG=reward_QG.reshape(by_prompt), is_valid_QG=is_valid_QG, length_QG=length_QG
        )
        advantage_QG = objective_advantage(scores, objective=cfg.objective)
        groups = [
            Group(
                stream=Stream.BASE,
                prompt_P=np.asarray(prompt, np.int32),
                completions=completions[q * work.samples : (q + 1) * work.samples],
                advantage_G=advantage_QG[q],
                is_valid_G=is_valid_QG[q],
            )
            for q, prompt in enumerate(prompts)
        ]
        batch = mix(
            groups,
            objective=cfg.objective,
            train=cfg.train,
            max_new_tokens=work.max_new_tokens,
            max_rows=max_rows(cfg),
            keep_zero_signal=False,
        )
        state, metrics = step(state, None, batch)
        jax.block_until_ready((state, metrics))
        packed.append((int(batch.num_rows), int(np.count_nonzero(batch.segment_BT))))

    packed: list[tuple[int, int]] = []
    num_steps = work.warm_steps + work.steps
    prompts = workload.prompts(work, work.prompts * num_steps)
    timed_roll_out = clock.timed("rollout", roll_out, first=clock.begin)
    timed_train = clock.timed("train", train)
    for index in range(num_steps):
        here = prompts[index * work.prompts : (index + 1) * work.prompts]
        timed_train(here, timed_roll_out(index, here))
    rows, tokens = packed[-1]
    facts = {
        "versions": {p: version(p) for p in ("cipo-jax", "jax", "jaxlib", "optax", "numpy")},
        "python": sys.version.split()[0],
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "rows": rows,
        "rows_per_microbatch": cfg.train.rows_per_microbatch,
        "row_tokens": cfg.train.row_tokens,
        "tokens": tokens,
        "programs": step._cache_size(),
    }
    workload.record("cipo_jax", args.work, clock, facts, args.out)


if __name__ == "__main__":
    main()
