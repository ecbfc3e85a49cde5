"""The records that cross the stages of a run, and the legend of dimension letters.

Legend, used in annotations, array names and einsum strings throughout the package:

    Q  prompts
    G  samples per prompt
    M  anchors
    B  rows (Q * G sequences in a rollout; packed rows in a batch)
    T  query time in a row
    S  key time in a row or in a cache
    P  prompt length (padded)
    C  completion length (padded)
    O  segments of a row, by id
    V  vocabulary
    L  layers
    D  model width
    N  query heads, K * W
    K  key/value heads
    W  query heads that share a key/value head
    H  head width
    F  MLP width
    E  experts
    A  experts that a token is sent to
    Y  pairs of a token and one of its experts
    R  adapter rank
    X  channels that go into a product
    Z  channels that come out of one
    J  pieces that a long axis is cut into: microbatches, chunks of targets, blocks of tokens or of
       the vocabulary
    U  elements of one piece
    I  several axes merged into one: the tokens of all rows, the samples of all prompts

Time alignment, stated once: index t of every per-token array speaks about token t itself (its
log-prob is the log-prob *of* token t). Only `model/head.py` looks at the token before.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float32, Int32

Array: TypeAlias = jax.Array | np.ndarray


class Stream(enum.IntEnum):
    """Which of the two losses a token belongs to."""

    BASE = 0
    CORRECTION = 1


@struct.dataclass
class PromptBatch:
    """Rendered prompts of one sampling call, right-padded to a common bucket length P.

    `key_id_Q` is the identity that random numbers are derived from: the same id under the same step
    and stream yields the same samples, wherever the prompt is in the batch.
    """

    token_QP: Int32[Array, "Q P"]
    length_Q: Int32[Array, " Q"]
    key_id_Q: Int32[Array, " Q"]


@struct.dataclass
class Rollouts:
    """What the sampler returns: G completions for each of Q prompts, right-padded to length C.

    `is_sampled` marks tokens that the model chose, the end-of-sequence token included; everything
    after is padding. A row with no end-of-sequence token was cut by the length limit and has
    `is_finished` False. `logprob` is in nats, under the law that was really sampled from (full
    vocabulary, at the sampling temperature); 0 where not sampled.
    """

    token_QGC: Int32[Array, "Q G C"]
    logprob_QGC: Float32[Array, "Q G C"]
    is_sampled_QGC: Bool[Array, "Q G C"]
    is_finished_QG: Bool[Array, "Q G"]


_PER_TOKEN, _PER_TARGET = {"at_targets_alone": False}, {"at_targets_alone": True}
"""Whether a field [B, T] is read at targets alone, and may hold any value elsewhere."""


@struct.dataclass
class Batch:
    """One fixed-shape training batch: packed rows of both streams.

    A row holds segments. A *prompt* segment is followed by one or more *completion* segments that
    continue it; several such units may share a row. The tokens of a completion see their own
    segment and the prompt segment they continue (`prefix`), so the samples of one prompt share one
    copy of it; without sharing, each completion carries a copy of its prompt.

        token t attends to token s  iff  s <= t and (segment[s] == segment[t] or
                                                     segment[s] == prefix[t]),  segment[t] != 0

    Everything is per token, so a row may mix streams, and rows may be cut into microbatches
    anywhere. `weight` already holds the aggregation rule and the global denominator of the token's
    stream, so that the loss of a stream is the plain sum over its tokens of weight * objective,
    whatever the packing, the microbatch split or the mesh. It is 0 where not `is_target`.

    The fields, all [B, T] but `num_rows`; each declares whether it is read at targets alone:

      token: token ids; padding is 0.
      position: rotary position inside the unit (a completion continues its prompt's count).
      segment: segment id within the row, from 1; 0 is padding.
      prefix: id of the prompt segment that this token also sees; its own segment id for a prompt.
      predecessor: index in the row of the token that predicts this one (the last prompt token for
        the first token of a completion); 0 where there is none.
      is_target: True for sampled tokens, the only ones that are trained on.
      sampler_logprob: log-prob under the sampling law, nats; 0 where not a target.
      advantage: of the token's sequence (or of the token); 0 where not a target.
      weight: aggregation weight over the stream's global denominator; 0 where not a target.
      stream: `Stream` of the token.
      num_rows: scalar, rows in use; rows from there on are padding and cost no computation.
      old_logprob: log-prob under the policy before the first update on this batch, as the trainer
        scores it; None where nothing needs it (see `method.losses.policy_loss`).
    """

    token_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    position_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    segment_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    prefix_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    predecessor_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    is_target_BT: Bool[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    sampler_logprob_BT: Float32[Array, "B T"] = struct.field(metadata=_PER_TARGET)
    advantage_BT: Float32[Array, "B T"] = struct.field(metadata=_PER_TARGET)
    weight_BT: Float32[Array, "B T"] = struct.field(metadata=_PER_TARGET)
    stream_BT: Int32[Array, "B T"] = struct.field(metadata=_PER_TOKEN)
    num_rows: Int32[Array, ""]
    old_logprob_BT: Float32[Array, "B T"] | None = struct.field(metadata=_PER_TARGET, default=None)

    @classmethod
    def empty(cls, num_rows: int, row_tokens: int, *, has_old_logprob: bool = False) -> Batch:
        """Padding alone, and no row in use; numpy arrays, with the dtypes of the annotations."""
        hints = typing.get_type_hints(cls)
        shape = (num_rows, row_tokens)
        arrays = {name: np.zeros(shape, _dtype_of(hints[name])) for name in _per_token()}
        batch = cls(**arrays, num_rows=np.zeros((), _dtype_of(hints["num_rows"])))
        return batch if has_old_logprob else dataclasses.replace(batch, old_logprob_BT=None)

    def per_token(self) -> dict[str, Array]:
        """The arrays [B, T] that there are, by field."""
        arrays = {name: getattr(self, name) for name in _per_token()}
        return {name: x_BT for name, x_BT in arrays.items() if x_BT is not None}

    def per_target(self) -> dict[str, Array]:
        """Those of them that are read at targets alone."""
        alone = _per_token()
        return {name: x_BT for name, x_BT in self.per_token().items() if alone[name]}


def _per_token() -> dict[str, bool]:
    """The fields [B, T] of a batch, and whether each is read at targets alone."""
    key = "at_targets_alone"
    return {f.name: f.metadata[key] for f in dataclasses.fields(Batch) if key in f.metadata}


def _dtype_of(annotation: Any) -> np.dtype[Any]:
    """The dtype that a field is annotated with, be it one of several array types or None."""
    variant, *_ = typing.get_args(annotation)
    dtype: np.dtype[Any] = np.dtype(variant.dtypes[0])
    return dtype
