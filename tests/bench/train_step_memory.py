"""Temporary memory of the compiled train step against row length, rows and vocabulary.

    python tests/bench/train_step_memory.py

Prints a Markdown table from XLA's own buffer assignment; nothing is run, and no accelerator is
needed. Expected: linear in the tokens of a microbatch, constant in the rows of the batch. On the
vocabulary it depends through the gradient of the embedding and the logits of one chunk of tokens,
never through tokens times vocabulary: in the last row, both together add no more than each alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import jax

from cipo_jax import config
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS, Architecture
from cipo_jax.records import Batch
from cipo_jax.update.train_step import abstract_state, make_train_step

CHUNK = 256
BASE = {
    "row_tokens": 512, "rows": 8, "rows_per_microbatch": 2, "vocab": 32_768, "layers": 4,
    "remat": "block",
}  # fmt: skip
VARIED = {
    "row_tokens": (512, 1024, 2048, 4096),
    "rows": (8, 16, 32),
    "rows_per_microbatch": (1, 2, 4, 8),
    "vocab": (8_192, 32_768, 131_072),
}


def make_config(shape: dict) -> config.Config:
    return config.Config(
        name="memory",
        model=config.RandomModel(),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=128, max_correction_prompt_tokens=256),
        sampling=config.Sampling(max_new_tokens=128),
        train=config.Train(
            row_tokens=shape["row_tokens"],
            rows_per_microbatch=shape["rows_per_microbatch"],
            logprob_chunk=CHUNK,
            remat=shape["remat"],
            compute_dtype="float32",
        ),
    )


def abstract_batch(rows: int, row_tokens: int) -> Batch:
    batch = Batch.empty(rows, row_tokens, has_old_logprob=True)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def measure(arch: Architecture, shape: dict) -> tuple[int, int, float]:
    """Temporary bytes of the step, the bytes of two copies of the gradient that are in them (the
    sum so far and a microbatch's own), and the operations that XLA counts in one microbatch."""
    arch = dataclasses.replace(arch, vocab_size=shape["vocab"], num_layers=shape["layers"])
    cfg, mesh = make_config(shape), make_mesh(config.MeshShape(), jax.devices()[:1])
    state = abstract_state(cfg, arch, mesh)
    batch = abstract_batch(shape["rows"], shape["row_tokens"])
    lowered = make_train_step(cfg, arch, mesh).lower(state, None, batch)
    # Machine code is not needed, only the assignment of buffers.
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    gradient = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(state.params))
    operations = compiled.cost_analysis()["flops"]
    return compiled.memory_analysis().temp_size_in_bytes, 2 * gradient, operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    args = parser.parse_args()
    arch = PRESETS[args.preset]
    print(f"{args.preset}, float32, chunks of {CHUNK} tokens\n")
    print("| varied | T | rows | rows per microbatch | V | layers | remat | MiB | gradients "
          "| the rest | GFLOP |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    shapes = [("", BASE)]
    shapes += [
        ("remat", BASE | {"remat": remat, "row_tokens": 2048, "layers": layers})
        for remat in ("block", "attention", "products", "none")
        for layers in (4, 8)
    ]
    shapes += [
        (name, BASE | {name: value})
        for name, values in VARIED.items()
        for value in values
        if value != BASE[name]
    ]
    shapes.append(("row_tokens, vocab", BASE | {"row_tokens": 4096, "vocab": 131_072}))
    for varied, shape in shapes:
        temporary, gradients, operations = measure(arch, shape)
        columns = [varied, *shape.values()]
        columns += [f"{x / 2**20:.0f}" for x in (temporary, gradients, temporary - gradients)]
        columns.append(f"{operations / 1e9:.0f}")
        print("| " + " | ".join(str(x) for x in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
