"""Groups of both streams in, one batch of packed rows with its weights out. Host only.

A *unit* is a prompt and completions that follow it: as many of the group's as fit in a row where
prompts are shared, one otherwise. Units are packed into rows of fixed length by first-fit
decreasing. Where a unit lands, and what it shares a row with, does not touch the loss: attention
stays inside the unit, and every token carries its final weight.

The denominators of the weights count every valid sequence of a stream, and its tokens, also those
that are left out of the rows because their advantage is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from cipo_jax.config import Aggregation, Config, Objective, Train
from cipo_jax.records import Batch, Stream

GroupValues: TypeAlias = Float[np.ndarray, " G"] | Float[np.ndarray, "G C"]
"""One number for each completion of a group, or one for each of its tokens, padded."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer: its tokens, the end-of-sequence token included, and their log-probs under
    the law that they were sampled from.
    """

    token_C: Int[np.ndarray, " C"]
    logprob_C: Float32[np.ndarray, " C"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The completions of one prompt, each with its advantage; invalid ones are not trained on and
    count in no denominator.
    """

    stream: Stream
    prompt_P: Int[np.ndarray, " P"]
    completions: Sequence[Completion]
    advantage_G: GroupValues
    is_valid_G: Bool[np.ndarray, " G"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the completions of the groups are in the rows of a batch."""

    spans: Sequence[tuple[int, int, int, slice]]
    """Group, completion of the group, row, and places in the row; those left out have none."""
    shape: tuple[int, int, int]
    """Groups, completions of the largest one, tokens of the longest one."""

    def back(self, value_BT: Shaped[np.ndarray, "B T"]) -> Shaped[np.ndarray, "Q G C"]:
        """What the rows hold for each token of the completions, in the order of the groups; 0
        beyond a completion's length, and for those that were left out of the rows.
        """
        value_QGC = np.zeros(self.shape, value_BT.dtype)
        for q, g, b, here in self.spans:
            value_QGC[q, g, : here.stop - here.start] = value_BT[b, here]
        return value_QGC

    def laid(
        self, values: Sequence[np.ndarray], rows: tuple[int, int]
    ) -> Float32[np.ndarray, "B T"]:
        """The other way: a number for each completion of each group, or one for each of its tokens,
        in an array of `rows`; 0 elsewhere.
        """
        value_BT = np.zeros(rows, np.float32)
        for q, g, b, here in self.spans:
            value_BT[b, here] = np.atleast_1d(values[q][g])[: here.stop - here.start]
        return value_BT


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The batch, and where the completions are in it."""

    batch: Batch
    places: Places

    def credited(self, advantages: Sequence[np.ndarray]) -> Batch:
        """The batch with other advantages than its groups came with, in the groups' order."""
        shape = self.batch.token_BT.shape
        return replace(self.batch, advantage_BT=self.places.laid(advantages, (shape[0], shape[1])))


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How full the rows of a batch are."""

    num_rows: int
    """Rows in use."""
    num_tokens: int
    """Tokens in them that are not padding."""
    num_targets: int
    """Tokens that are trained on."""
    padding_share: float
    """Padding over all places in the rows in use; NaN if there are none."""


def mix(
    groups: Sequence[Group],
    *,
    objective: Objective,
    train: Train,
    max_new_tokens: int,
    max_rows: int,
    keep_zero_signal: bool,
) -> Mixed:
    """Pack groups of both streams into one batch of `max_rows` rows of `train.row_tokens` tokens.

    The weight of a token of sequence i in stream s, with N valid sequences and Z valid tokens in
    the stream (in both streams with `objective.shared_denominator`), by `objective.aggregation`:

        token-mean                1 / Z
        seq-mean-token-mean       1 / (N * length_i)
        seq-mean-token-sum        1 / N
        seq-mean-token-sum-norm   1 / (N * max_new_tokens)

    lambda_c is no part of it (`losses.joint_loss`). With lambda_c = 0, or with no anchors, pass the
    base groups alone: the batch is then the very batch of plain RLVR.

    Args:
      groups: their order only decides ties in placement.
      max_new_tokens: limit on a completion, the constant of seq-mean-token-sum-norm.
      max_rows: from `max_rows(cfg)`; the shape of the batch.
      keep_zero_signal: lay out sequences with advantage 0 too; needed where a KL penalty trains on
        them. They add nothing to the loss otherwise, and leaving them out is exact.
    Returns: the batch, of numpy arrays, whose `num_rows` may be 0; and the places in it.
    Raises: ValueError if a prompt or a completion is empty, a completion is longer than
      max_new_tokens, does not have one log-prob per token or does not fit in a row with its prompt,
      or the rows don't suffice.
    """
    for group in groups:
        _check(group, row_tokens=train.row_tokens, max_new_tokens=max_new_tokens)
    token_weight = _Weights(groups, objective, max_new_tokens)
    rows = _packed(groups, train=train, keep_zero_signal=keep_zero_signal)
    if len(rows) > max_rows:
        raise ValueError(
            f"The batch needs {len(rows)} rows of {train.row_tokens} tokens, but has {max_rows}: "
            "take max_rows from the configuration that the rollouts were sampled with."
        )
    batch = Batch.empty(max_rows, train.row_tokens)
    for b, units in enumerate(rows):
        row = {name: np.asarray(array_BT)[b] for name, array_BT in batch.per_token().items()}
        _lay_out(row, units, token_weight)
    places = Places(
        spans=[
            (unit.index, g, b, here)
            for b, units in enumerate(rows)
            for unit, _, completions in _placed(units)
            for g, here in completions
        ],
        shape=(
            len(groups),
            max((len(group.completions) for group in groups), default=0),
            max((len(c.token_C) for group in groups for c in group.completions), default=0),
        ),
    )
    mixed = Mixed(batch=replace(batch, num_rows=np.asarray(len(rows), np.int32)), places=places)
    return replace(mixed, batch=mixed.credited([group.advantage_G for group in groups]))


def max_rows(cfg: Config) -> int:
    """Rows that hold any batch of the configuration, a multiple of train.rows_per_microbatch.

    With T = row_tokens and C = max_new_tokens, for a stream of groups with n completions of at most
    C tokens and a prompt of at most P (P + C <= T by the configuration's check):

    * Units per group. Without sharing, n. With sharing, m = (T - P) // C >= 1 completions always
      fit beside their prompt. First fit opens another unit only for a completion that fits in no
      earlier one; a unit with fewer than m completions holds at most (m - 1) C tokens of them and
      has room for one more. So every unit but the last has at least m: at most ceil(n / m) units.
    * Rows by count. A row holds at least one unit: rows <= units.
    * Rows by fill. First fit opens a row only for a unit that fits in no earlier row, so any two
      rows hold more than T tokens together. Summed over all pairs of k >= 2 rows that is
      (k - 1) W > k (k - 1) / 2 * T for W tokens in all, or k < 2 W / T. W is at most
      units * P + completions * C, summed over the streams.

    The bound is the smaller of the two, and both hold for every subset of the sequences.
    """
    row, longest = cfg.train.row_tokens, cfg.sampling.max_new_tokens
    samples = cfg.sampling.samples_per_prompt
    streams = [
        (cfg.train.prompts_per_step, cfg.prompts.max_prompt_tokens),
        (
            cfg.num_anchors if cfg.correction_weight > 0 else 0,
            cfg.prompts.max_correction_prompt_tokens,
        ),
    ]
    num_units, num_tokens = 0, 0
    for num_groups, prompt in streams:
        if num_groups == 0:
            continue
        beside_prompt = (row - prompt) // longest if cfg.train.share_prompts else 1
        units = num_groups * math.ceil(samples / beside_prompt)
        num_units += units
        num_tokens += units * prompt + num_groups * samples * longest
    by_fill = max(1, math.ceil(2 * num_tokens / row) - 1)
    at_once = cfg.train.rows_per_microbatch
    return math.ceil(min(num_units, by_fill) / at_once) * at_once


def abstract_batch(cfg: Config) -> Batch:
    """The batch of `mix` as `jax.ShapeDtypeStruct`s: what the train step is compiled for."""
    batch = Batch.empty(max_rows(cfg), cfg.train.row_tokens, has_old_logprob=cfg.has_old_logprob)
    abstract: Batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return abstract


def packing(batch: Batch) -> Packing:
    """How full the rows of a batch are, for the log."""
    num_rows, row_tokens = int(batch.num_rows), np.shape(batch.token_BT)[1]
    num_tokens = int(np.count_nonzero(batch.segment_BT))
    places = num_rows * row_tokens
    return Packing(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_targets=int(np.count_nonzero(batch.is_target_BT)),
        padding_share=1 - num_tokens / places if places else math.nan,
    )


def _check(group: Group, *, row_tokens: int, max_new_tokens: int) -> None:
    if len(group.prompt_P) == 0:
        raise ValueError("A prompt has no tokens: nothing predicts its completions' first token.")
    for completion in group.completions:
        length = len(completion.token_C)
        if not 1 <= length <= max_new_tokens:
            raise ValueError(
                f"A completion has {length} tokens; it must have 1 to {max_new_tokens}, the limit "
                "that the weights and the number of rows were computed with."
            )
        if len(completion.logprob_C) != length:
            raise ValueError(
                f"A completion has {length} tokens and {len(completion.logprob_C)} log-probs."
            )
        if len(group.prompt_P) + length > row_tokens:
            raise ValueError(
                f"A prompt of {len(group.prompt_P)} tokens and its completion of {length} don't "
                f"fit in a row of {row_tokens}: raise train.row_tokens."
            )


def _is_laid_out(group: Group, g: int, keep_zero_signal: bool) -> bool:
    return bool(group.is_valid_G[g]) and (keep_zero_signal or bool(np.any(group.advantage_G[g])))


class _Weights:
    """The weight of each token of a sequence, from the denominators of all groups."""

    def __init__(self, groups: Sequence[Group], objective: Objective, max_new_tokens: int) -> None:
        lengths: dict[Stream, list[int]] = {stream: [] for stream in Stream}
        for group in groups:
            lengths[group.stream] += [
                len(completion.token_C)
                for completion, is_valid in zip(group.completions, group.is_valid_G, strict=True)
                if is_valid
            ]
        if objective.shared_denominator:
            both = [length for stream in Stream for length in lengths[stream]]
            lengths = dict.fromkeys(Stream, both)
        self._num_sequences = {stream: len(lengths[stream]) for stream in Stream}
        self._num_tokens = {stream: sum(lengths[stream]) for stream in Stream}
        self._aggregation: Aggregation = objective.aggregation
        self._max_new_tokens = max_new_tokens

    def __call__(self, stream: Stream, length: int) -> float:
        match self._aggregation:
            case "token-mean":
                return 1 / self._num_tokens[stream]
            case "seq-mean-token-mean":
                return 1 / (self._num_sequences[stream] * length)
            case "seq-mean-token-sum":
                return 1 / self._num_sequences[stream]
            case "seq-mean-token-sum-norm":
                return 1 / (self._num_sequences[stream] * self._max_new_tokens)


@dataclass(frozen=True)
class _Unit:
    """A prompt with the completions (indices into its group) that follow it in one row."""

    index: int
    """Index of the group."""
    group: Group
    members: list[int]

    @property
    def num_tokens(self) -> int:
        completions = self.group.completions
        return len(self.group.prompt_P) + sum(len(completions[g].token_C) for g in self.members)


def _packed(groups: Sequence[Group], *, train: Train, keep_zero_signal: bool) -> list[list[_Unit]]:
    """The rows of a batch, as the units that follow each other in them."""
    units = [
        unit
        for index, group in enumerate(groups)
        for unit in _units(
            index,
            group,
            [g for g in range(len(group.completions)) if _is_laid_out(group, g, keep_zero_signal)],
            row_tokens=train.row_tokens,
            share_prompts=train.share_prompts,
        )
    ]
    rows = _first_fit_decreasing([unit.num_tokens for unit in units], train.row_tokens)
    return [[units[u] for u in row] for row in rows]


def _units(
    index: int, group: Group, members: Sequence[int], *, row_tokens: int, share_prompts: bool
) -> Iterable[_Unit]:
    if not share_prompts:
        return [_Unit(index, group, [g]) for g in members]
    lengths = [len(group.completions[g].token_C) for g in members]
    bins = _first_fit_decreasing(lengths, row_tokens - len(group.prompt_P))
    return [_Unit(index, group, [members[i] for i in indices]) for indices in bins]


def _first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the sizes by bin: the largest first, each into the first bin with room for it."""
    room = np.full(len(sizes), capacity)  # of every bin that could be opened
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        first = int(np.argmax(room >= sizes[index]))
        if first == len(bins):
            bins.append([])
        bins[first].append(index)
        room[first] -= sizes[index]
    return bins


def _placed(
    units: Sequence[_Unit],
) -> Iterator[tuple[_Unit, slice, list[tuple[int, slice]]]]:
    """Where each unit's prompt and its completions (by index in the group) are in their row."""
    start = 0
    for unit in units:
        prompt = slice(start, start + len(unit.group.prompt_P))
        start = prompt.stop
        completions = []
        for g in unit.members:
            here = slice(start, start + len(unit.group.completions[g].token_C))
            completions.append((g, here))
            start = here.stop
        yield unit, prompt, completions


def _lay_out(row: dict[str, np.ndarray], units: Sequence[_Unit], token_weight: _Weights) -> None:
    """Write units into the arrays [T] of one row, each under the name of its field."""
    segment = 0
    for unit, prompt, completions in _placed(units):
        group = unit.group
        prompt_length = len(group.prompt_P)
        segment += 1
        prompt_segment = segment
        row["token_BT"][prompt] = group.prompt_P
        row["position_BT"][prompt] = np.arange(prompt_length)
        row["segment_BT"][prompt] = prompt_segment
        row["prefix_BT"][prompt] = prompt_segment
        row["predecessor_BT"][prompt] = np.arange(prompt.start - 1, prompt.stop - 1)
        row["predecessor_BT"][prompt.start] = 0  # nothing predicts a prompt's first token
        row["stream_BT"][prompt] = group.stream

        for g, here in completions:
            completion = group.completions[g]
            length = len(completion.token_C)
            segment += 1
            row["token_BT"][here] = completion.token_C
            row["position_BT"][here] = np.arange(prompt_length, prompt_length + length)
            row["segment_BT"][here] = segment
            row["prefix_BT"][here] = prompt_segment
            row["predecessor_BT"][here] = np.arange(here.start - 1, here.stop - 1)
            row["predecessor_BT"][here.start] = prompt.stop - 1
            row["is_target_BT"][here] = True
            row["sampler_logprob_BT"][here] = completion.logprob_C
            row["weight_BT"][here] = token_weight(group.stream, length)
            row["stream_BT"][here] = group.stream
