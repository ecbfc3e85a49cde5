"""Log-probs of a packed batch under any parameters, with no gradient: the second compiled program.

Used where log-probs are needed before an update: of the reference policy, for a KL penalty in the
reward, and of the policy itself, for several updates on one batch. It is the forward pass of the
train step, on the same rows and microbatches.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float32

from cipo_jax.config import Config
from cipo_jax.mesh.sharding import batch_shardings
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.records import Batch
from cipo_jax.update.microbatch import microbatches_of, row_logprobs

Scorer = Callable[[Params, Batch], Float32[Array, "B T"]]


def make_scorer(cfg: Config, arch: Architecture, mesh: Mesh) -> Scorer:
    """The jitted `score(params, batch) -> logprob_BT`.

    The log-prob of each target in the rows in use, nats, at the sampling temperature; 0 elsewhere.
    Microbatches are taken while rows are in use, as in the train step, so one program serves any
    fill of the batch.
    """

    def score(params: Params, batch: Batch) -> Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            microbatches = microbatches_of(batch, cfg.train.rows_per_microbatch)

            def add(index: Array, so_far_JUT: Array) -> Array:
                rows = jax.tree.map(lambda x: x[index], microbatches)
                logprob_BT, _ = row_logprobs(params, rows, cfg=cfg, arch=arch)
                return so_far_JUT.at[index].set(logprob_BT)

            num_microbatches = -(-batch.num_rows // cfg.train.rows_per_microbatch)
            nothing_JUT = jnp.zeros(microbatches.token_BT.shape, jnp.float32)
            logprob_JUT: Array = jax.lax.fori_loop(0, num_microbatches, add, nothing_JUT)
            return logprob_JUT.reshape(batch.token_BT.shape)

    shardings = batch_shardings(mesh)
    # The parameters keep the layout that they come with.
    return jax.jit(score, in_shardings=(None, shardings), out_shardings=shardings.token_BT)
