"""A comparison of an exported folder, as transformers computes from it, with the trainer.

In: the folder, and the parameters that were written to it. Out: the largest difference of logits
and how often the likeliest token is the same, over a few fixed prompts and their greedy answers; or
the reason why the two were not compared.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from cipo_jax.mesh.host import free_memory
from cipo_jax.model.head import logits
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTIONS = (
    "What is 7 + 5?",
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write a Python function that reverses a string.",
)
TEXTS = (*QUESTIONS, "naïve café, 世界 🙂\u200d, \t two  spaces\r\n", "x = [1, 2]\n    return x**2")
"""Texts whose token ids are compared."""

NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near transformers and the trainer are, both in float32."""

    largest_gap: float
    """Largest difference of a logit, over the whole vocabulary at every token."""
    largest_logit: float
    """Largest absolute value of a logit, for comparison with the gap."""
    greedy_agreement: float
    """Share of the greedily generated tokens that are the likeliest for both."""
    num_tokens: int
    """Number of generated tokens."""
    has_same_token_ids: bool
    """Whether the exported tokenizer, read anew, encodes all texts as the run's does."""
    answers: tuple[str, ...]
    """The answers to QUESTIONS."""
    versions: str

    def __str__(self) -> str:
        ids = "same token ids" if self.has_same_token_ids else "OTHER token ids"
        return (
            f"checked against {self.versions}: largest gap of a logit {self.largest_gap:.2g} (of "
            f"{self.largest_logit:.3g}), greedy agreement {self.greedy_agreement:.1%} of "
            f"{self.num_tokens} tokens, {ids}"
        )


@dataclass(frozen=True)
class NotChecked:
    """The two were not compared."""

    reason: str

    def __str__(self) -> str:
        return f"not checked against transformers: {self.reason}"


Comparison = Agreement | NotChecked


def compare(
    load: Callable[[], Any] | str,
    folder: Path,
    params: Params,
    arch: Architecture,
    tokenizer: PreTrainedTokenizerFast,
    *,
    is_adapter: bool,
) -> Comparison:
    """Answers QUESTIONS greedily with the exported model, and scores the same tokens with `params`.

    Args:
      load: returns the exported model in PyTorch; or the reason why it can't be loaded.
      params: the exported parameters, after rounding to their dtype.
    """
    if importlib.util.find_spec("torch") is None:
        return NotChecked("PyTorch is not installed")
    if isinstance(load, str):
        return NotChecked(load)
    needed = 2 * 4 * sum(x.size for x in jax.tree.leaves(params))
    available = free_memory()
    if available is not None and needed > available:
        return NotChecked(
            f"it takes {needed / 1e9:.0f} GB of memory, and {available / 1e9:.0f} GB were free"
        )
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = load().eval()
    again = AutoTokenizer.from_pretrained(folder)
    prompts = [_prompt(tokenizer, text) for text in QUESTIONS]
    generated = []
    with torch.no_grad():
        for prompt in prompts:
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                # Or transformers warns of sampling settings in the model's own configuration.
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=0,
            )
            generated.append(out[0].tolist())
        theirs = [model(torch.tensor([tokens])).logits[0].float().numpy() for tokens in generated]
    del model
    ours = _scores(params, generated, arch)
    is_same = [
        (a.argmax(-1) == b.argmax(-1))[len(prompt) - 1 : -1]
        for a, b, prompt in zip(ours, theirs, prompts, strict=True)
    ]
    return Agreement(
        largest_gap=float(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))),
        largest_logit=float(max(np.abs(b).max() for b in theirs)),
        greedy_agreement=float(np.concatenate(is_same).mean()),
        num_tokens=sum(map(len, is_same)),
        has_same_token_ids=all(_ids(again, text) == _ids(tokenizer, text) for text in TEXTS)
        and prompts == [_prompt(again, text) for text in QUESTIONS],
        answers=tuple(
            tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True).strip()
            for tokens, prompt in zip(generated, prompts, strict=True)
        ),
        versions=_versions("transformers", "torch", *(["peft"] if is_adapter else [])),
    )


def _scores(params: Params, rows: list[list[int]], arch: Architecture) -> list[np.ndarray]:
    """The logits [tokens, V] of each row."""
    length_B = np.array([len(row) for row in rows])
    token_BT = np.zeros((len(rows), length_B.max()), np.int32)
    for token_T, row in zip(token_BT, rows, strict=True):
        token_T[: len(row)] = row
    position_BT = np.broadcast_to(np.arange(token_BT.shape[1], dtype=np.int32), token_BT.shape)
    segment_BT = (position_BT < length_B[:, None]).astype(np.int32)

    scored_BTV = _score(params, token_BT, position_BT, segment_BT, segment_BT, arch=arch)
    return [np.asarray(scored_BTV[row, :length]) for row, length in enumerate(length_B)]


@partial(jax.jit, static_argnames="arch")
def _score(params: Params, *fields: jax.Array, arch: Architecture) -> jax.Array:
    # The products take the weights to float32 one at a time, not all at once.
    hidden_BTD = hidden_states(params, *fields, arch=arch, compute_dtype=jnp.float32, remat="none")
    return logits(params, hidden_BTD, arch=arch)


def _prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return _ids(tokenizer, rendered)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _versions(*packages: str) -> str:
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
