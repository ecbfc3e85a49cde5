"""The tokenizer of a model, the tokens that mark turns, and those that end an answer.

Always a transformers fast tokenizer with a chat template, wherever the model comes from.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cipo_jax.config import ModelSource, PretrainedModel, RandomModel
from cipo_jax.model.files import gguf_tokenizer
from cipo_jax.model.files.load import resolve
from cipo_jax.model.presets import Architecture

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PROBES = (
    "Hello world",
    "  two  spaces, then a trailing one ",
    "x = [1, 2]\n    return x**2\n\n\n",
    "\ttab\r\n",
    "naïve café 世界 한글 🙂\u200d",
    "e\u0301 ﬁ ① Å ▁ \x01",
    "1234567 3.14",
    "",
)
"""Texts on which a converted tokenizer must agree with the one that it was converted from."""

_LLAMA3_RANKS = 128_000
"""Tokens in the file of Llama 3 that has the format of tiktoken."""

_BRACKETED = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerFast:
    """The model's tokenizer; for random weights, the byte-level one.

    Raises: ValueError if the model is not found, or its tokenizer has no chat template or no fast
      implementation.
    """
    if isinstance(source, RandomModel):
        return byte_tokenizer()
    path = resolve(source.path)
    tokenizer = gguf_tokenizer.tokenizer(path) if path.suffix == ".gguf" else _of_folder(path)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source.path} has a {type(tokenizer).__name__} without a fast implementation. "
            "Convert it to tokenizer.json and save it with the model."
        )
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {source.path} has no chat template, which prompts are rendered "
            "with. Use an instruction-tuned model, or put a chat_template.jinja into its folder."
        )
    return tokenizer


def _of_folder(path: Path) -> PreTrainedTokenizerFast:
    file = path / "tokenizer.model"
    if file.is_file() and not (path / "tokenizer.json").is_file():
        return _of_tiktoken(file) if _is_tiktoken(file) else _of_sentencepiece(file)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no tokenizer can be read from {path} ({str(error).splitlines()[0]}). Copy the "
            "model's tokenizer.json and tokenizer_config.json into it."
        ) from error


def _of_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a raw SentencePiece model, converted by transformers.

    AutoTokenizer would convert by the rules of the model's family, whatever the file says, and give
    other ids in silence where the two don't belong together. The general class follows the file;
    that it does is held against the sentencepiece package itself.
    """
    try:
        pieces = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{file} is no SentencePiece model ({str(error).splitlines()[0]}). Copy the model's "
            "tokenizer.json beside it."
        ) from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True)
    for text in _PROBES:
        if tokenizer(text, add_special_tokens=False).input_ids != pieces.encode(text):
            raise ValueError(
                f"{file} can't be converted to a fast tokenizer: {text!r} becomes other tokens "
                "than with the sentencepiece package. Copy the model's tokenizer.json beside it."
            )
    return tokenizer


def _is_tiktoken(file: Path) -> bool:
    """Whether the file begins with a token in base64 and its rank, as those of tiktoken do."""
    with file.open("rb") as opened:
        return re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} \d+\n?", opened.readline(200)) is not None


def _of_tiktoken(file: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of Llama 3's tokenizer.model, converted by transformers.

    The file holds byte strings and their ranks alone. How words are split is known by the model
    only, so no other model's file is read; the special tokens are those of tokenizer_config.json.
    """
    with file.open("rb") as opened:
        num_ranks = sum(1 for line in opened if line.strip())
    copy = "Copy the model's tokenizer.json beside it."
    if num_ranks != _LLAMA3_RANKS:
        raise ValueError(
            f"{file} has the format of tiktoken and {num_ranks} tokens. Such a file does not say "
            f"how words are split, which is known here for the {_LLAMA3_RANKS} of Llama 3 alone. "
            f"{copy}"
        )
    config = file.parent / "tokenizer_config.json"
    if not (config.is_file() and json.loads(config.read_text()).get("added_tokens_decoder")):
        raise ValueError(
            f"{file} has the format of tiktoken, which leaves special tokens out, and no "
            f"tokenizer_config.json beside it lists them in added_tokens_decoder. {copy}"
        )
    if importlib.util.find_spec("tiktoken") is None:
        raise ValueError(f"{file} needs the package tiktoken: pip install tiktoken. Or: {copy}")
    return PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, three special tokens and a chat template: 259 tokens.

    Ids 0 to 255 are the bytes, 256 is <|pad|>, 257 <|im_start|>, 258 <|im_end|> (end of sequence).
    A model may have a larger vocabulary: ids from 259 decode to nothing.
    """
    letters = _byte_letters()
    backend = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def check_fits(tokenizer: PreTrainedTokenizerFast, arch: Architecture) -> None:
    """Raises ValueError if the tokenizer has tokens that the model does not know."""
    if len(tokenizer) > arch.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {arch.vocab_size}: they do "
            "not belong together. Copy the model's own tokenizer beside its weights."
        )


def markers(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Id -> text of every token that is structure, and must never come out of a question or an
    attempt.

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


def eos_ids(source: ModelSource, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Every token that ends an answer, ascending.

    The union of the tokenizer's own, of those in the model's generation_config.json, and of the
    special token that the chat template puts behind an assistant's message. Each alone is
    incomplete for some public model.

    Raises: ValueError if there is none at all: an answer would never end.
    """
    found: set[int] = set()
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    stated = _generation_config(source).get("eos_token_id")
    if stated is not None:
        found |= set(stated) if isinstance(stated, list) else {stated}
    found |= _ends_of_turn(tokenizer)
    if not found:
        raise ValueError(
            "no end-of-sequence token: neither the tokenizer, nor generation_config.json, nor the "
            "chat template names one. Set eos_token in tokenizer_config.json."
        )
    return tuple(sorted(found))


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    eos_ids: tuple[int, ...],
    folder: Path,
    source: ModelSource,
) -> None:
    """Writes the tokenizer and generation_config.json beside the weights of `hf.save`.

    What the source's own generation_config.json states, such as a temperature, is kept; the tokens
    that end an answer are `eos_ids`.
    """
    tokenizer.save_pretrained(folder)
    config = _generation_config(source) | {
        "eos_token_id": list(eos_ids),
        "pad_token_id": tokenizer.pad_token_id,
    }
    (Path(folder) / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _generation_config(source: ModelSource) -> dict[str, Any]:
    if not isinstance(source, PretrainedModel):
        return {}
    file = resolve(source.path) / "generation_config.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _ends_of_turn(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The marker that follows an assistant's message in the chat template, if one does."""
    if not tokenizer.chat_template:
        return set()
    content = "The answer of the assistant"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": content}],
        tokenize=False,
    )
    after = tokenizer.encode(text.rpartition(content)[2], add_special_tokens=False)
    # SentencePiece may put a space before a text.
    visible = [token for token in after if tokenizer.decode([token]).strip()]
    return set(visible[:1]) & markers(tokenizer).keys()


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
