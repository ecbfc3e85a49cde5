"""Tokenizers in the metadata of .gguf files, against the libraries that made them."""

import functools
import io
import json
from pathlib import Path

import gguf
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Tokenizer

from cipo_jax.config import PretrainedModel
from cipo_jax.model.files import gguf_tokenizer
from cipo_jax.text.tokenizer import eos_ids, load_tokenizer, save_tokenizer
from tests import ROOT

GEMMA_TEMPLATE = (ROOT / "tests" / "text" / "chat_templates" / "gemma3.jinja").read_text()
BYTE_PAIRS, NORMAL, USER_DEFINED, BYTE = 2, 1, 4, 6
TEXTS = [
    (ROOT / "tests" / "method" / "test_mix.py").read_text(),
    "",
    " ",
    "  two  spaces, then a trailing one ",
    "a" + " " * 33 + "b" + " " * 64 + "\n" * 40 + "\t" * 9,
    "\ttab\r\n\r\nCRLF",
    "naïve café 世界 한글 ไทย עברית 🙂\u200d👩‍👩‍👧‍👦 𝔹",
    "e\u0301 ﬁ ① Å \x00\x01\x7f ½ 1234567 3.14",
    r"\begin{align} \frac{\partial^2 f}{\partial x^2} &= \sum_{i=1}^{\infty} e^{-i\omega t} \\",
    "if(a===b&&c!==d||e<=f>>>2){} //" + "-" * 40 + "=" * 33 + "*" * 7 + "xx" * 50,
    "<0x0A> <0xE2> <b>bold</b>",
]
"""Without a special token of the models below, and without the letter that stands for a space."""


# --- byte-level ----------------------------------------------------------------------------------


def test_the_qwen2_tokenizer_equals_that_of_transformers(tmp_path):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet))
    trained.train_from_iterator([TEXTS[0]], trainer)
    vocab = trained.get_vocab()
    tokens = [*sorted(vocab, key=vocab.get), "<|endoftext|>", "<|im_end|>", "<think>"]
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    theirs = Qwen2Tokenizer(vocab=dict(vocab), merges=merges)
    ours = gguf_tokenizer.tokenizer(
        write(
            tmp_path / "t.gguf",
            {
                "model": "gpt2",
                "pre": "qwen2",
                "tokens": tokens,
                "token_type": [NORMAL] * len(vocab) + [3, 3, USER_DEFINED],
                "merges": [" ".join(pair) for pair in merges],
                "eos_token_id": len(vocab) + 1,
            },
        )
    )
    for text in [*TEXTS, "e\u0301 \u00e9 12345 don't  \n\n x", "I'LL we'Ve"]:
        assert ours(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"], text
    assert ours.eos_token == "<|im_end|>"
    thought = ours("<think>hm<|im_end|>")["input_ids"]
    assert (thought[0], thought[-1]) == (len(vocab) + 2, len(vocab) + 1)
    assert ours.decode(thought, skip_special_tokens=True) == "<think>hm"  # type 4 is not special


# --- SentencePiece -------------------------------------------------------------------------------


def write(file: Path, fields: dict) -> Path:
    """A file with nothing but a tokenizer."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in fields.items():
        key = f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def metadata_of(pieces: ModelProto) -> dict:
    """What llama.cpp's converter writes of a SentencePiece model. It spells strings that are always
    one token as they stand in a text, with real spaces."""
    ids = pieces.trainer_spec
    return {
        "model": "llama",
        "tokens": [
            piece.piece.replace("\u2581", " ") if piece.type == USER_DEFINED else piece.piece
            for piece in pieces.pieces
        ],
        "scores": [piece.score for piece in pieces.pieces],
        "token_type": [int(piece.type) for piece in pieces.pieces],
        "bos_token_id": ids.bos_id,
        "eos_token_id": ids.eos_id,
        "unknown_token_id": ids.unk_id,
        "padding_token_id": ids.pad_id,
        "add_bos_token": True,
        "add_space_prefix": pieces.normalizer_spec.add_dummy_prefix,
    }


def sentencepiece_of(file: Path) -> SentencePieceProcessor:
    """The SentencePiece model that the metadata of a file came from, put together again."""
    reader = gguf.GGUFReader(file)

    def value(key):
        return reader.get_field(f"tokenizer.ggml.{key}").contents()

    model = ModelProto()
    for token, score, kind in zip(
        value("tokens"), value("scores"), value("token_type"), strict=True
    ):
        piece = token.replace(" ", "\u2581") if kind == USER_DEFINED else token
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = BYTE_PAIRS
    model.trainer_spec.byte_fallback = True
    for name, key in [("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")]:
        index = value(f"{key}_token_id")
        setattr(model.trainer_spec, f"{name}_id", index)
        setattr(model.trainer_spec, f"{name}_piece", model.pieces[index].piece)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = value("add_space_prefix")
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceProcessor(model_proto=model.SerializeToString())


@functools.cache
def trained(kind: str) -> tuple[dict, SentencePieceProcessor]:
    """(metadata, the SentencePiece model it comes from): as Gemma's vocabulary is built, with runs
    of spaces and line feeds that are one token and nothing put in front; or as Llama 2's."""
    runs = [letter * n for letter in ("\u2581", "\n", "\t") for n in range(2, 17)]
    settings = {
        "gemma": {
            "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
            "bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False,
            "control_symbols": ["<start_of_turn>", "<end_of_turn>"],
            "user_defined_symbols": [*runs, "\n", "<b>", "</b>"],
        },
        "llama2": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3},
    }[kind]  # fmt: skip
    lines = [line for file in sorted((ROOT / "tests").rglob("test_*.py"))[:8]
             for line in file.read_text().splitlines()]  # fmt: skip
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=900, model_type="bpe",
        byte_fallback=True, split_digits=True, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", allow_whitespace_only_pieces=True, **settings,
    )  # fmt: skip
    pieces = ModelProto.FromString(model.getvalue())
    return metadata_of(pieces), SentencePieceProcessor(model_proto=model.getvalue())


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", ["gemma", "llama2"])
def test_ids_and_texts_are_those_of_sentencepiece(kind, tmp_path):
    metadata, reference = trained(kind)
    tokenizer = gguf_tokenizer.tokenizer(write(tmp_path / "t.gguf", metadata))
    assert len(tokenizer) == len(reference) == 900
    for text in TEXTS:
        ids = ids_of(tokenizer, text)
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids) == text
    assert tokenizer("x").input_ids == [reference.bos_id(), *reference.encode("x")]
    half = reference.encode("🙂")[:-1]  # what a policy may write: bytes that are no letter
    assert tokenizer.decode(half) == "\ufffd" * 3
    # The same model, put together again out of the file.
    again = sentencepiece_of(tmp_path / "t.gguf")
    assert [again.encode(text) for text in TEXTS] == [reference.encode(text) for text in TEXTS]


def test_each_part_of_the_metadata_is_needed(tmp_path):
    """Control of the test above."""
    metadata, reference = trained("gemma")
    others = {
        "scores": [-score for score in metadata["scores"]],  # the last merge first
        "add_space_prefix": True,
        # Runs of spaces, spelt with real ones, as ordinary tokens.
        "token_type": [NORMAL if t == USER_DEFINED else t for t in metadata["token_type"]],
    }
    for key, value in others.items():
        file = write(tmp_path / f"{key}.gguf", metadata | {key: value})
        assert ids_of(gguf_tokenizer.tokenizer(file), TEXTS[0]) != reference.encode(TEXTS[0]), key


def test_a_marker_begins_a_text_anew(tmp_path):
    """As the format's own reader has it: the space goes in front again behind every marker."""
    metadata, reference = trained("llama2")
    tokenizer = gguf_tokenizer.tokenizer(write(tmp_path / "t.gguf", metadata))
    expected = [*reference.encode("x"), reference.eos_id(), *reference.encode("y")]
    assert ids_of(tokenizer, "x</s>y") == expected
    assert tokenizer.decode(reference.encode(" x")) == " x"


def test_what_a_file_need_not_state(tmp_path):
    """The format's own reader puts a space and the first token before a text, unless it is told."""
    metadata, _ = trained("gemma")
    keys = ("add_space_prefix", "add_bos_token")
    silent = {key: value for key, value in metadata.items() if key not in keys}

    def ids(name: str, fields: dict) -> list[int]:
        return gguf_tokenizer.tokenizer(write(tmp_path / name, fields))("x").input_ids

    adding = ids("adding.gguf", metadata | dict.fromkeys(keys, True))
    assert ids("silent.gguf", silent) == adding
    assert len(adding) > len(ids("plain.gguf", metadata | dict.fromkeys(keys, False))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, r"does not state tokenizer\.ggml\.scores"),
        ({"token_type": None}, r"does not state tokenizer\.ggml\.token_type"),
        ({"bos_token_id": None}, r"does not state tokenizer\.ggml\.bos_token_id"),
        ({"model": "t5"}, r"of kind 't5'; 'gpt2' and 'llama' are known"),
        ({"model": "gpt2", "merges": ["a b"]}, r"splits words as None; 'smollm' and 'qwen2'"),
        ({"token_type": [NORMAL] * 900}, r"tokens for 0 of the 256 bytes"),
    ],
)
def test_metadata_that_is_missing_or_not_covered(change, message, tmp_path):
    fields = {
        key: value for key, value in (trained("gemma")[0] | change).items() if value is not None
    }
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.tokenizer(write(tmp_path / "t.gguf", fields))


def test_the_chat_template(tmp_path):
    """The template is the file's own, or else one beside it; the export gives the same ids."""
    metadata, _ = trained("gemma")
    source = PretrainedModel(path=str(write(tmp_path / "t.gguf", metadata)))
    with pytest.raises(ValueError, match=r"no chat template.*chat_template\.jinja"):
        load_tokenizer(source)
    (tmp_path / "chat_template.jinja").write_text(GEMMA_TEMPLATE)
    tokenizer = load_tokenizer(source)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=False
    )
    start, end = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
    assert ids[:2] == [tokenizer.bos_token_id, start]
    assert eos_ids(source, tokenizer) == (tokenizer.eos_token_id, end)
    exported = tmp_path / "exported"
    save_tokenizer(tokenizer, eos_ids(source, tokenizer), exported, source)
    again = AutoTokenizer.from_pretrained(exported)
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(t).input_ids for t in TEXTS]
    # The file's own template goes first.
    write(tmp_path / "t.gguf", metadata | {"chat_template": "{{ bos_token }}"})
    assert load_tokenizer(source).chat_template == "{{ bos_token }}"
