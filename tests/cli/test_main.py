"""The command line as a whole: what --help says, and how a command ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cipo_jax import __version__
from cipo_jax.cli import COMMANDS, main
from tests import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")
NAMES = [command.name for command in COMMANDS]


def without_meaning(help_text: str) -> list[str]:
    """The options and arguments of a help text that have nothing beside or below them."""
    lines = help_text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"  \S", line)]
    return [
        lines[i].strip()
        for i in starts
        if not re.match(r"  .*\S {2,}\S", lines[i])
        and not (i + 1 < len(lines) and re.match(r" {10,}\S", lines[i + 1]))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_every_option_means(name, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    try:
        status = main([name, "--help"])
    except SystemExit as end:
        status = end.code
    text = capsys.readouterr().out
    assert status == 0
    assert f"usage: cipo {name} " in text
    assert text.count("\n  -") >= 1
    assert without_meaning(text) == []


def test_an_option_without_a_meaning_is_noticed() -> None:
    text = (
        "options:\n  -h, --help  this\n  --seed SEED\n  --long-name NAME\n            that\n  --x"
    )
    assert without_meaning(text) == ["--seed SEED", "--x"]


def test_help_names_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert re.findall(r"^    (\S+)", text, re.MULTILINE)[: len(NAMES)] == NAMES
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"cipo_jax {__version__}\n"


def test_help_of_a_config_shows_its_fields_with_overrides(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["train", SMOKE, "--train.steps", "77", "--help"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("--train.steps "))
    assert line.split()[1] == "77"
    # Without a config there is nothing to train: the help, and a failure.
    assert main(["train"]) == 2
    assert "usage: cipo train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("trian",), "invalid choice: 'trian'"),
        (("regrade", "runs/x", "--train.steps", "3"), "no such argument: --train.steps 3"),
        (("evaluate", "m", "--benchmarks", "aime24", "--memory", "3", "--x"), "no such argument"),
    ],
)
def test_what_the_parser_does_not_know(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "absent.yaml"), "cipo train: There is no configuration file absent.yaml"),
        (("train", SMOKE, "--train.stebs", "3"), "Did you mean train.steps?"),
        (("train", SMOKE, "--allow-changes"), "name its folder by --run-dir"),
        (("plan", SMOKE, "--topology", "v5e-x", "--kl.weight", "-1.0"), "kl.weight is -1.0"),
        (("doctor", "--train.steps=3"), "name its file, too"),
        (("study", "absent.yaml"), "There is no configuration file absent.yaml"),
        (("regrade", "absent"), "There is no configuration file absent/config.yaml"),
        (("verify-serve",), "CIPO_VERIFY_TOKEN must hold the secret"),
    ],
)
def test_an_error_that_says_what_to_do_has_no_traceback(
    arguments, message, capsys, monkeypatch
) -> None:
    monkeypatch.delenv("CIPO_VERIFY_TOKEN", raising=False)
    monkeypatch.delenv("CIPO_DEBUG", raising=False)
    assert main(list(arguments)) == 2
    assert message in capsys.readouterr().err
    # Control: the traceback is there for who asks for it.
    monkeypatch.setenv("CIPO_DEBUG", "1")
    with pytest.raises(ValueError, match=re.escape(message.partition(": There")[2] or message)):
        main(list(arguments))


def test_ctrl_c_is_no_error(tmp_path: Path) -> None:
    """While a command waits, here for a service that says nothing. What a run does with Ctrl-C is
    in tests/run/test_loop.py."""
    # What a shell started in the background ignores Ctrl-C, and so would the process below.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        running = subprocess.Popen(
            [
                sys.executable, "-m", "cipo_jax.cli", "doctor", SMOKE, "--run-dir", str(tmp_path),
                "--verify.service-url", f"http://127.0.0.1:{silent.getsockname()[1]}",
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "CIPO_VERIFY_TOKEN": "a token of some length"},
        )  # fmt: skip
        signal.signal(signal.SIGINT, before)
        connection, _ = silent.accept()
        with connection:
            running.send_signal(signal.SIGINT)
            output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    assert "Traceback" not in output
