"""What a call of the train step costs in Python, and what its metrics cost to fetch.

    python tests/bench/train_step_dispatch.py

The model is tiny and no row of the batch is in use, so that the program itself does next to
nothing: a call is then its dispatch (the state's arrays taken apart and put together, the batch's
transferred, the compiled program found), and bounds the step's overhead from above. The number of
arrays is that of any model, for parameters are stacked over layers. Reported in CPU time of the
calling thread, which other processes of the machine don't lengthen.
"""

from __future__ import annotations

import statistics
import time

import jax

from cipo_jax import config
from cipo_jax.config import Config
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import init
from cipo_jax.records import Batch
from cipo_jax.update.train_step import init_state, make_train_step

CALLS = 300


def main() -> None:
    arch = PRESETS["tiny-qwen3"]
    cfg = Config(
        name="dispatch",
        model=config.RandomModel(preset="tiny-qwen3"),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=128, max_correction_prompt_tokens=256),
        sampling=config.Sampling(max_new_tokens=128),
        train=config.Train(row_tokens=512, compute_dtype="float32"),
    )
    mesh = make_mesh(config.MeshShape(), jax.devices()[:1])
    step = make_train_step(cfg, arch, mesh)
    state = init_state(init(jax.random.key(0), arch), cfg, mesh)
    print(f"{len(jax.tree.leaves(state))} arrays in the state, {jax.devices()[0].device_kind}")
    for rows in (8, 64):
        batch = Batch.empty(rows, 512)
        dispatch, fetch = [], []
        for call in range(CALLS + 20):
            start = time.thread_time()
            state, metrics = step(state, None, batch)
            called = time.thread_time()
            jax.block_until_ready(metrics)
            ready = time.thread_time()
            jax.device_get(metrics)
            fetched = time.thread_time()
            if call >= 20:
                dispatch.append(called - start)
                fetch.append(fetched - ready)
        assert step._cache_size() <= 2, "the step was compiled again"
        for name, seconds in (("call", dispatch), ("fetch of the metrics", fetch)):
            low, middle, high = statistics.quantiles(seconds, n=10)[::4]
            print(
                f"{rows} rows of 512: {name} {1e3 * middle:.2f} ms (median of {CALLS}; "
                f"10 % {1e3 * low:.2f}, 90 % {1e3 * high:.2f})"
            )


if __name__ == "__main__":
    main()
