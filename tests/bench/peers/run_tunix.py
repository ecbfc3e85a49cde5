"""Tunix's GRPOLearner with its jitted sampler on a shared workload, timed from outside by wrapping
its bound methods.

    TUNIX_PYTHON tests/bench/peers/run_tunix.py W1 --out results.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
import workload
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout

MICROBATCHES = {
    "W3": {"mini_batch_size": 4, "train_micro_batch_size": 1, "rollout_micro_batch_size": 4}
}
"""In prompts. W3 at once takes more than 24 GB: the gradients of each prompt are added up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=workload.WORKS)
    parser.add_argument("--out", default="results.jsonl")
    args = parser.parse_args()
    work = workload.WORKS[args.work]
    shape = work.model
    settings = llama3.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab,
        embed_dim=shape.width,
        hidden_dim=shape.mlp_width,
        num_heads=shape.heads,
        head_dim=shape.head_width,
        num_kv_heads=shape.kv_heads,
        rope_theta=10_000,
        norm_eps=1e-5,
        weight_tying=True,
    )
    actor = nnx.jit(lambda: llama3.Llama3(settings, rngs=nnx.Rngs(0)))()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    num_steps = work.warm_steps + work.steps
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=None,
        tokenizer=workload.tokenizer(shape.vocab),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=10**9,
                max_steps=num_steps,
                **MICROBATCHES.get(args.work, {}),
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=work.max_new_tokens,
                max_prompt_length=work.prompt_tokens,
                kv_cache_size=work.prompt_tokens + work.max_new_tokens,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[-1],  # never sampled, so every completion has the full length
            ),
        ),
    )
    learner = GRPOLearner(
        rl_cluster=cluster,
        reward_fns=workload.text_reward,
        algo_config=GRPOConfig(num_generations=work.samples, num_iterations=1, beta=0.0),
    )
    clock = workload.Clock()
    lengths: set[int] = set()
    generate = cluster.generate

    def roll_out(prompts, *rest, **kwargs):
        if not work.spread:
            result = generate(prompts, *rest, **kwargs)
        else:
            # The fields beside text, tokens and prompts are None, as from `generate`.
            given = workload.completions(work, len(clock.steps) - 1)
            ids = [[int(word[1:]) for word in prompt.split()] for prompt in prompts]
            empty = dict.fromkeys(f.name for f in dataclasses.fields(base_rollout.RolloutOutput))
            result = base_rollout.RolloutOutput(
                **empty
                | {
                    "text": [workload.text(c) for c in given],
                    "tokens": [np.asarray(c, np.int32) for c in given],
                    "left_padded_prompt_tokens": np.asarray(ids, np.int32),
                }
            )
        lengths.update(len(tokens) for tokens in result.tokens)
        return result

    def wait(_: object) -> None:
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))

    cluster.generate = clock.timed("rollout", roll_out, first=clock.begin)
    cluster.update_actor = clock.timed("train", cluster.update_actor, after=wait)
    texts = [workload.text(p) for p in workload.prompts(work, work.prompts * num_steps)]
    learner.train(
        [
            {"prompts": np.array(texts[i * work.prompts : (i + 1) * work.prompts])}
            for i in range(num_steps)
        ]
    )
    clock.end()
    leaves = jax.tree.leaves(nnx.state(actor, nnx.Param))
    facts = {
        "versions": {p: version(p) for p in ("google-tunix", "jax", "jaxlib", "flax", "optax")},
        "python": sys.version.split()[0],
        "parameters": sum(x.size for x in leaves),
        "completion_lengths": [min(lengths), max(lengths)],
    }
    workload.record("tunix", args.work, clock, facts, args.out)


if __name__ == "__main__":
    main()
