"""Prompts of any length as one batch of a fixed shape, which is one compiled program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cipo_jax.records import PromptBatch


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    key_ids: Sequence[int],
    *,
    length: int,
    num_prompts: int,
) -> PromptBatch:
    """Prompts padded on the right into one batch of a fixed shape.

    Args:
      prompts: token ids of at most `num_prompts` prompts.
      key_ids: the identity of each, from which its random numbers come.
      length: P of the batch.
      num_prompts: Q of the batch. Rows without a prompt have length 0 and key id 0.
    Raises: ValueError if a prompt is empty, is longer than P, or there are more than Q.
    """
    if len(prompts) > num_prompts:
        raise ValueError(f"{len(prompts)} prompts don't fit into a batch of {num_prompts}.")
    token_QP = np.zeros((num_prompts, length), np.int32)
    length_Q = np.zeros(num_prompts, np.int32)
    key_id_Q = np.zeros(num_prompts, np.int32)
    for q, (tokens, key_id) in enumerate(zip(prompts, key_ids, strict=True)):
        if not 0 < len(tokens) <= length:
            raise ValueError(
                f"Prompt {q} has {len(tokens)} tokens; this batch takes from 1 to {length}."
            )
        token_QP[q, : len(tokens)] = tokens
        length_Q[q] = len(tokens)
        key_id_Q[q] = key_id
    return PromptBatch(token_QP=token_QP, length_Q=length_Q, key_id_Q=key_id_Q)
