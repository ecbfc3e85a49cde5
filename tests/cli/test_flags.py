"""Flags that are made of a dataclass's fields: every field has one, with one default."""

import argparse
import re

import pytest

from cipo_jax.cli import main
from cipo_jax.cli.flags import add_flags, given_flags, read_flags
from cipo_jax.config import Benchmarking, Prompts, Verify


def parsed(cls, *arguments: str, names: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, "settings", cls, *names)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("cls", [Benchmarking, Verify, Prompts])
def test_without_flags_the_defaults_are_the_dataclasss(cls) -> None:
    assert read_flags(parsed(cls), cls) == cls()
    assert given_flags(parsed(cls), cls) == {}


def test_every_kind_of_value_is_read() -> None:
    found = read_flags(
        parsed(
            Benchmarking, "--samples", "3", "--temperature", "1", "--limit", "7", "--no-greedy",
            "--max-new-tokens=64", "--corrections",
        ),
        Benchmarking,
    )  # fmt: skip
    assert found == Benchmarking(
        samples=3, temperature=1.0, limit=7, greedy=False, max_new_tokens=64, corrections=True
    )
    assert isinstance(found.temperature, float)
    usual = read_flags(parsed(Benchmarking, "--samples", "usual", "--limit", "null"), Benchmarking)
    assert usual == Benchmarking()
    strict = read_flags(parsed(Verify, "--isolation", "strict", "--memory-mb", "700"), Verify)
    assert strict == Verify(isolation="strict", memory_mb=700)


def test_a_text_stays_a_text_and_only_given_fields_are_given() -> None:
    names = ("system", "thinking")
    arguments = parsed(Prompts, "--system", "1: yes", "--no-thinking", names=names)
    assert given_flags(arguments, Prompts) == {"system": "1: yes", "thinking": False}
    assert given_flags(parsed(Prompts, "--system", "", names=names), Prompts) == {"system": ""}
    with pytest.raises(SystemExit):
        parsed(Prompts, "--max-prompt-tokens", "3", names=names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "hot"), "temperature is 'hot'; it must be a number"),
        (("--temperature", "0.0"), "temperature is 0.0; it must be positive"),
        (("--samples", "1.5"), "samples is 1.5; it must be a whole number or usual"),
        (("--samples", "[1"), "--samples: '[1' is not valid YAML"),
        (("--memory-mb", "64"), "verify.memory_mb is 64; it must be at least 128"),
        (("--isolation", "landlok"), "Did you mean 'landlock'?"),
        (("--correction-template", "attempt_fist"), "Did you mean 'attempt_first'?"),
        (("--compute-dtype", "bf16"), "Did you mean 'bfloat16'?"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(arguments, message, capsys) -> None:
    assert main(["evaluate", "no-model", "--benchmarks", "aime24", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "verify-serve"])
def test_commands_that_judge_show_the_same_defaults(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.partition("how completions are judged:")[2].split())
    for name in ("workers", "deadline_s", "memory_mb", "output_kb", "isolation"):
        flag = f"--{name.replace('_', '-')} "
        default = re.search(r"default: (.*?)\)", shown.partition(flag)[2])
        assert default, name
        assert default[1] == str(getattr(Verify(), name)), name
