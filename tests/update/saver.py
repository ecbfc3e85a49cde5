"""One process of a job that saves a state, or restores it.

    python -m tests.update.saver save|restore FOLDER MESH JOB

The state is a function of a seed, and no device ever holds it whole. The process prints how many
arrays it compared, and how many of them differ from those of another seed.
"""

import json
import sys

import jax
import numpy as np

from cipo_jax import config
from cipo_jax.config import Config
from cipo_jax.mesh import processes
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.update.checkpoint import Checkpoints
from cipo_jax.update.train_step import abstract_state

STEP = 7
HOST = {"cursor": {"epoch": 1, "index": [3, 1, 2]}, "ratio": 0.1 + 0.2, "buffer": ["ü\n", ""]}
CFG = Config(
    name="test",
    model=config.RandomModel(preset="tiny-llama"),
    tasks=config.GeneratedTask(),
    prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
    sampling=config.Sampling(max_new_tokens=16),
    optimizer=config.AdamW(learning_rate=1e-2, schedule="cosine"),
    train=config.Train(steps=4, row_tokens=32, rows_per_microbatch=8, compute_dtype="float32"),
)


def values(abstract, seed):
    """A different number everywhere, moments included; host arrays."""
    leaves, structure = jax.tree.flatten(abstract)
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(100 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return structure.unflatten(drawn)


def is_same(array, expected):
    """Bit for bit, in the pieces that lie in this process."""
    return all(
        np.asarray(piece.data).tobytes() == np.ascontiguousarray(expected[piece.index]).tobytes()
        for piece in array.addressable_shards
    )


def main(action, folder, mesh, job):
    job = json.loads(job)
    if job:
        processes.connect(**job)
    abstract = abstract_state(
        CFG, PRESETS["tiny-llama"], make_mesh(config.MeshShape(**json.loads(mesh)))
    )
    expected = values(abstract, seed=1)
    with Checkpoints(folder, keep=1) as checkpoints:
        if action == "save":
            state = jax.tree.map(
                lambda x, value: jax.make_array_from_callback(
                    x.shape, x.sharding, lambda index: value[index]
                ),
                abstract,
                expected,
            )
            checkpoints.save(STEP, state, HOST)
            return
        assert checkpoints.latest_step() == STEP
        restored, host = checkpoints.restore_latest(abstract)
    assert host == HOST
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, abstract
    )
    same = jax.tree.leaves(jax.tree.map(is_same, restored, expected))
    other = jax.tree.leaves(jax.tree.map(is_same, restored, values(abstract, seed=2)))
    split = sum(not x.is_fully_replicated for x in jax.tree.leaves(restored))
    print(json.dumps({"arrays": len(same), "same": sum(same), "other": sum(other), "split": split}))


if __name__ == "__main__":
    main(*sys.argv[1:])
