"""A batch cut into microbatches, and the log-probs of one: shared by the train step and the scorer.

In: a packed Batch, or some rows of it, and parameters, under a mesh. Out: log-prob and entropy of
each target. Does not know what becomes of them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float32

from cipo_jax.config import Config
from cipo_jax.mesh.sharding import ACTIVATION_RULES, PARAM_RULES, ROW_AXES
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, hidden_states
from cipo_jax.records import Batch


def microbatches_of(batch: Batch, rows_per_microbatch: int) -> Batch:
    """The batch as [microbatch, row, T], each microbatch spread over all devices, and zeros in the
    place of all that is not to be read.
    """
    num_rows, _ = batch.token_BT.shape
    is_used_B1 = (jnp.arange(num_rows) < batch.num_rows)[:, None]
    is_token_BT = is_used_B1 & (batch.segment_BT > 0)
    is_target_BT = is_token_BT & batch.is_target_BT

    def cut(x_BT: Array, is_kept_BT: Array) -> Array:
        x_BT = jnp.where(is_kept_BT, x_BT, jnp.zeros_like(x_BT))
        # Rows lie in contiguous pieces on the devices: one exchange here, of a few numbers per
        # token, spares one in each pass of the loop.
        x_MBT = x_BT.reshape(-1, rows_per_microbatch, x_BT.shape[1])
        spec = PartitionSpec(None, ACTIVATION_RULES["B"], None)
        return jax.lax.with_sharding_constraint(x_MBT, spec)

    at_targets = batch.per_target()
    arrays = {
        name: cut(x_BT, is_target_BT if name in at_targets else is_token_BT)
        for name, x_BT in batch.per_token().items()
    }
    first_row_M = jnp.arange(0, num_rows, rows_per_microbatch)
    num_rows_M = jnp.clip(batch.num_rows - first_row_M, 0, rows_per_microbatch)
    return Batch(**arrays, num_rows=num_rows_M)


def row_logprobs(
    params: Params, rows: Batch, *, cfg: Config, arch: Architecture
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Log-prob and entropy of each target of a microbatch, under the mesh of the context."""
    hidden_BTD = hidden_states(
        params,
        rows.token_BT,
        rows.position_BT,
        rows.segment_BT,
        rows.prefix_BT,
        arch=arch,
        compute_dtype=jnp.dtype(cfg.train.compute_dtype),
        remat=cfg.train.remat,
    )
    return _head_logprobs(params, hidden_BTD, rows, cfg=cfg, arch=arch)


def _head_logprobs(
    params: Params, hidden_BTD: Array, rows: Batch, *, cfg: Config, arch: Architecture
) -> tuple[Array, Array]:
    """Every device scores its own rows against its own piece of the vocabulary.

    The head is gathered over fsdp once, and its gradient scattered once, as sums over the devices.
    Left to itself, XLA sums it after every chunk, and gathers the vocabulary in each.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    split_axes = [axis for axis, size in sizes.items() if size > 1]
    vocab_axis, width_axis = (
        axis if axis in split_axes else None for axis in (PARAM_RULES["V"], PARAM_RULES["D"])
    )
    name, letters = ("embed", "VD") if arch.is_tied else ("head", "DV")

    def score(piece: Array, *arrays: Array) -> tuple[Array, Array]:
        return token_logprobs(
            dataclasses.replace(params, **{name: piece}),
            *arrays,
            temperature=cfg.sampling.temperature,
            chunk=cfg.train.logprob_chunk,
            arch=arch,
            row_axes=tuple(axis for axis in ROW_AXES if axis in split_axes),
            vocab_axis=vocab_axis,
            width_axis=width_axis,
        )

    arrays = (hidden_BTD, rows.token_BT, rows.predecessor_BT, rows.is_target_BT)
    if not split_axes:  # a shard_map would pass over the head's gradient once more
        return score(getattr(params, name), *arrays)
    split = PartitionSpec(ACTIVATION_RULES["B"])
    split_head = PartitionSpec(*(PARAM_RULES[letter] for letter in letters))
    return jax.shard_map(
        score,
        in_specs=(split_head, split, split, split, split),
        out_specs=(split, split),
        check_vma=False,
    )(getattr(params, name), *arrays)
