"""A batch cut into microbatches, and the log-probs of one: shared by the train step and the scorer.

In: a packed Batch, or some rows of it, and parameters, under a mesh. Out: log-prob and entropy of
each target. Does not know what they are used for.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Float32, Shaped

from cipo_jax.config import Config
from cipo_jax.mesh.sharding import ACTIVATION_RULES, PARAM_RULES, ROW_AXES
from cipo_jax.model.head import token_logprobs
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, hidden_states
from cipo_jax.records import Array, Batch


def microbatches_of(batch: Batch, rows_per_microbatch: int) -> Batch:
    """The batch as [microbatch, row, T], each microbatch spread over all devices. Every array has
    zeros where it is not to be read: in padding, and away from targets where it is read at them
    alone.
    """
    num_rows, _ = batch.token_BT.shape
    is_used_B1 = (jnp.arange(num_rows) < batch.num_rows)[:, None]
    is_token_BT = is_used_B1 & (batch.segment_BT > 0)
    is_target_BT = is_token_BT & batch.is_target_BT

    def cut(
        x_BT: Shaped[Array, "B T"], is_kept_BT: Bool[jax.Array, "B T"]
    ) -> Shaped[jax.Array, "J U T"]:
        x_BT = jnp.where(is_kept_BT, x_BT, jnp.zeros_like(x_BT))
        # Rows lie in contiguous pieces on the devices: one exchange here, of a few numbers per
        # token, spares one in each pass of the loop.
        x_JUT = x_BT.reshape(-1, rows_per_microbatch, x_BT.shape[1])
        spec = PartitionSpec(None, ACTIVATION_RULES["B"], None)
        spread_JUT: jax.Array = jax.lax.with_sharding_constraint(x_JUT, spec)
        return spread_JUT

    at_targets = batch.per_target()
    arrays = {
        name: cut(x_BT, is_target_BT if name in at_targets else is_token_BT)
        for name, x_BT in batch.per_token().items()
    }
    first_row_J = jnp.arange(0, num_rows, rows_per_microbatch)
    num_rows_J = jnp.clip(batch.num_rows - first_row_J, 0, rows_per_microbatch)
    return Batch(**arrays, num_rows=num_rows_J)


def row_logprobs(
    params: Params, rows: Batch, *, cfg: Config, arch: Architecture
) -> tuple[Float32[jax.Array, "B T"], Float32[jax.Array, "B T"]]:
    """Log-prob and entropy of each target of a microbatch, under the mesh of the context."""
    hidden_BTD = hidden_states(
        params,
        jnp.asarray(rows.token_BT),
        jnp.asarray(rows.position_BT),
        jnp.asarray(rows.segment_BT),
        jnp.asarray(rows.prefix_BT),
        arch=arch,
        compute_dtype=jnp.dtype(cfg.train.compute_dtype),
        remat=cfg.train.remat,
    )
    return head_logprobs(params, hidden_BTD, rows, cfg=cfg, arch=arch)


def head_logprobs(
    params: Params,
    hidden_BTD: Float[jax.Array, "B T D"],
    rows: Batch,
    *,
    cfg: Config,
    arch: Architecture,
) -> tuple[Float32[jax.Array, "B T"], Float32[jax.Array, "B T"]]:
    """`row_logprobs` from the hidden states: every device scores its own rows against its own piece
    of the vocabulary.

    The head is gathered over fsdp once, and its gradient scattered once, as sums over the devices.
    Left to itself, XLA sums it after every chunk, and gathers the vocabulary in each.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    split_axes = [axis for axis, size in sizes.items() if size > 1]
    vocab_axis, width_axis = (
        axis if axis in split_axes else None for axis in (PARAM_RULES["V"], PARAM_RULES["D"])
    )

    def score(head: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return token_logprobs(
            _with_head(params, head, arch),
            *arrays,
            temperature=cfg.sampling.temperature,
            chunk=cfg.train.logprob_chunk,
            arch=arch,
            row_axes=tuple(axis for axis in ROW_AXES if axis in split_axes),
            vocab_axis=vocab_axis,
            width_axis=width_axis,
        )

    head, letters = (params.embed, "VD") if arch.is_tied else (params.head, "DV")
    assert head is not None
    ids = (rows.token_BT, rows.predecessor_BT, rows.is_target_BT)
    arrays = (head, hidden_BTD, *(jnp.asarray(x_BT) for x_BT in ids))
    if not split_axes:  # a shard_map would pass over the head's gradient once more
        return score(*arrays)
    rows_split = PartitionSpec(ACTIVATION_RULES["B"])
    head_split = PartitionSpec(*(PARAM_RULES[letter] for letter in letters))
    return jax.shard_map(
        score,
        in_specs=(head_split, *(rows_split for _ in arrays[1:])),
        out_specs=(rows_split, rows_split),
        check_vma=False,
    )(*arrays)


def _with_head(params: Params, head: jax.Array, arch: Architecture) -> Params:
    if arch.is_tied:
        return dataclasses.replace(params, embed=head)
    return dataclasses.replace(params, head=head)
