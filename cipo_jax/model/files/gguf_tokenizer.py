"""The tokenizer in the metadata of a .gguf file, as a fast tokenizer of transformers.

Two kinds are known. `gpt2` is byte-level BPE: tokens, merges, and the name of the rule that splits
words. `llama` is a SentencePiece model of kind BPE: tokens, scores and types; it names no merges,
since any two neighbours may merge whose text together is a token, the highest score first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cipo_jax.model.files.gguf import open_file, stated_in, value_of

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Types of tokens in the format: ordinary ones, the one for what no token covers, markers of the
chat format, other strings that are always one token, and single bytes."""

_SPACE = "\u2581"
"""Takes the place of a space in a SentencePiece token."""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in the file's metadata, with its chat template.

    If the file states no template, a `chat_template.jinja` beside it is taken.

    Raises: ValueError if the tokenizer is of another kind, splits words in an unknown way, or lacks
      something that its kind needs.
    """
    reader = open_file(file)

    def value(key: str) -> Any:
        return value_of(reader, f"tokenizer.ggml.{key}")

    def stated(key: str) -> Any:
        return stated_in(reader, f"tokenizer.ggml.{key}", file)

    model, tokens, types = stated("model"), stated("tokens"), stated("token_type")
    if model == "llama":
        # A file need not state what the format's own reader does by default: it puts a space in
        # front of a text, and the token that begins a sequence before it.
        adds_space = value("add_space_prefix") in (None, True)
        backend = _sentencepiece(tokens, stated("scores"), types, adds_space=adds_space, file=file)
        adds_bos = value("add_bos_token") in (None, True)
    elif model == "gpt2":
        backend = _byte_level(tokens, stated("merges"), words=value("pre"), file=file)
        adds_bos = value("add_bos_token") is True
    else:
        raise ValueError(
            f"{file} has a tokenizer of kind {model!r}; 'gpt2' and 'llama' are known here. Load "
            "the same model from a folder with tokenizer.json."
        )
    backend.add_tokens([
        AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ])  # fmt: skip

    def marker_at(key: str) -> str | None:
        index = value(f"{key}_token_id")
        return None if index is None else tokens[index]

    template = value_of(reader, "tokenizer.chat_template")
    beside = Path(file).parent / "chat_template.jinja"
    if template is None and beside.is_file():
        template = beside.read_text()
    if adds_bos:
        stated("bos_token_id")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=marker_at("bos"),
        eos_token=marker_at("eos"),
        unk_token=marker_at("unknown"),
        pad_token=marker_at("padding"),
        add_bos_token=adds_bos,
        add_eos_token=value("add_eos_token") is True,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(
    tokens: list[str], merges: list[str], *, words: str | None, file: Path
) -> Tokenizer:
    if words not in ("smollm", "qwen2"):
        raise ValueError(
            f"{file} has a byte-level tokenizer that splits words as {words!r}; 'smollm' and "
            "'qwen2' are known here. Load the same model from a folder with tokenizer.json."
        )
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
        )
    )
    if words == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        backend.normalizer = normalizers.NFC()
        steps = [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    tokens: list[str], scores: list[float], types: list[int], *, adds_space: bool, file: Path
) -> Tokenizer:
    """BPE over whole texts, with spaces as letters, and bytes for what no token covers.

    Args:
      adds_space: whether a space goes before a text (and before the text after a marker).
    """
    num_bytes = types.count(_BYTE)
    if num_bytes != 256:
        raise ValueError(
            f"{file} has tokens for {num_bytes} of the 256 bytes: texts with letters that no token "
            "covers would be lost. Load the same model from a folder with tokenizer.json."
        )
    ordinary = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == _NORMAL
    }
    backend = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=list(_merges(ordinary)),
            byte_fallback=True,
        )
    )
    prefix = [normalizers.Prepend(_SPACE)] if adds_space else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    unprefix = [decoders.Strip(content=" ", left=1)] if adds_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *unprefix]
    )
    return backend


def _merges(score_of: dict[str, float]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that merge into a token, the token with the highest score first.

    Pairs that make the same token follow each other, longest left part first. SentencePiece takes
    the leftmost of them instead, which no order of pairs can express.
    """
    for token in sorted(score_of, key=lambda token: -score_of[token]):
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in score_of and right in score_of:
                yield left, right
