"""The licence of the base model: its identifier and its text, from the model's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from cipo_jax.config import ModelSource, PretrainedModel
from cipo_jax.model.files import gguf
from cipo_jax.model.files.load import resolve

_TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def of(source: ModelSource) -> str | None:
    """The licence's identifier in the metadata of the .gguf file or in the folder's model card;
    None if neither states it.
    """
    if not isinstance(source, PretrainedModel):
        return None
    path = resolve(source.path)
    if path.suffix == ".gguf":
        return gguf.licence(path)
    card = path / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8").partition("---\n")[2].partition("\n---")[0]
    try:
        stated = yaml.safe_load(head)
    except yaml.YAMLError:
        return None
    found = stated.get("license") if isinstance(stated, dict) else None
    return found if isinstance(found, str) else None


def copy_files(source: ModelSource, folder: Path) -> None:
    """Copies the licence texts and notices that are beside the base model's weights."""
    if not isinstance(source, PretrainedModel):
        return
    path = resolve(source.path)
    if path.is_dir():
        for file in sorted({f for pattern in _TEXTS for f in path.glob(pattern) if f.is_file()}):
            shutil.copy(file, folder / file.name)
