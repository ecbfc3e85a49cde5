"""The schema of the stored rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class RolloutRow:
    """One sample, as the rollout files store it; everything that is needed to judge it again."""

    step: int
    stream: str
    """`base` or `correction`."""
    problem_id: str
    group: int
    """Which prompt of the step's stream; the samples of one prompt share it."""
    sample: int
    prompt: str
    completion: str
    """The text that was judged."""
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    """Sampled tokens, the end-of-sequence token included."""
    logprobs: Sequence[float]
    """Log-probs of these tokens under the sampling law, nats."""
    is_finished: bool
    """False: cut by the length limit."""
    anchor: str | None
    """The attempt that is corrected; None in the base stream."""
    is_anchor_right: bool | None
    reference: str
    """As `verify.wire` encodes it."""
    status: str
    reason: str
    answer: str | None
    """What the verifier read as the answer, where it says so."""
    reward: float
    """NaN where the status is unknown."""
    advantage: float
    """Mean over the tokens; 0 where the group was left out of the batch."""


SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("stream", pa.string()),
        ("problem_id", pa.string()),
        ("group", pa.int32()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("is_finished", pa.bool_()),
        ("anchor", pa.string()),
        ("is_anchor_right", pa.bool_()),
        ("reference", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("reward", pa.float32()),
        ("advantage", pa.float32()),
    ]
)
