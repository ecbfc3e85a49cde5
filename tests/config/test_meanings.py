"""Every setting says what it is: all fields of all variants, in words that help shows."""

import dataclasses
import inspect
import io
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rich.console import Console

from cipo_jax.config import Benchmarking, Config, configfile
from cipo_jax.config.meanings import meanings_of, print_fields
from tests import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def dataclasses_below(tp: object) -> Iterator[type]:
    """The dataclasses that a type is made of: itself, the members of a union, their fields."""
    for option in typing.get_args(tp) or (tp,):
        if dataclasses.is_dataclass(option):
            yield option
            for inner in typing.get_type_hints(option).values():
                yield from dataclasses_below(inner)


def mistold(cls: type) -> list[str]:
    """The fields of a dataclass whose meaning is missing, or is no sentence."""
    told = {f.name: meanings_of(cls).get(f.name, "") for f in dataclasses.fields(cls)}
    told.pop("kind", None)  # the dataclass's own docstring is its meaning
    told["the dataclass"] = " ".join((cls.__doc__ or "").split())
    return [
        name
        for name, text in told.items()
        if not text.endswith(".") or text.startswith(("Of ", "What of ", f"{cls.__name__}("))
    ]


SECTIONS = sorted({*dataclasses_below(Config), Benchmarking}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_setting_says_what_it_is(cls) -> None:
    assert mistold(cls) == []


def test_all_variants_are_looked_at() -> None:
    assert {"Config", "Robust", "Soft", "MaskedSequence", "HubTask", "Rloo", "Adafactor"} <= {
        cls.__name__ for cls in SECTIONS
    }


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base."""

    inherited: int = 0
    """The meaning of what is inherited,
    on two lines."""


@dataclass(frozen=True, kw_only=True)
class Section(Base):
    kind: str = "section"
    told: int = 0
    """A meaning."""
    untold: int = 0
    hanging: int = 0
    """Of the other thing."""
    cut: int = 0
    """No sentence"""


def test_a_setting_without_a_meaning_is_noticed() -> None:
    assert mistold(Section) == ["untold", "hanging", "cut", "the dataclass"]
    assert mistold(Base) == []
    assert meanings_of(Section)["inherited"] == "The meaning of what is inherited, on two lines."


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_help_has_no_empty_meaning(path) -> None:
    cfg = configfile.load(path)
    console = Console(width=500, record=True, file=io.StringIO())
    print_fields(cfg, console)
    header, *lines = console.export_text().splitlines()
    start = header.index("meaning")
    assert len(lines) > 80
    for line in lines:
        assert line[start] not in " (", line


def test_help_of_a_variant_is_its_docstring() -> None:
    console = Console(width=500, record=True, file=io.StringIO())
    print_fields(configfile.load(CONFIGS[0]), console)
    (line,) = (x for x in console.export_text().splitlines() if "--objective.kind" in x)
    cfg = configfile.load(CONFIGS[0])
    assert " ".join(inspect.getdoc(cfg.objective).split()) in line
