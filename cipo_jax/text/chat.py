"""What in a chat is structure and not text: the tokens that a template marks turns with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BRACKETED = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def markers(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Id -> text of every token that must never come out of a question or an attempt.

    These are the special tokens, and whatever the chat template writes in brackets that is one
    token: `<think>` is no special token, and neither are the turn markers of a SentencePiece model
    that has them among its ordinary pieces.
    """
    found = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for text in _BRACKETED.findall(tokenizer.chat_template or ""):
        token = tokenizer.convert_tokens_to_ids(text)
        if token is not None and tokenizer.convert_ids_to_tokens(token) == text:
            found[token] = text
    return found
