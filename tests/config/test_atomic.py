"""A file is as it was before or as it shall be, whatever happens in between."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cipo_jax.config import atomic


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    atomic.write_json(path, {"step": 1})
    atomic.write_json(path, {"step": 2})
    assert path.read_text() == '{\n "step": 2\n}\n'
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    atomic.write_text(path, "before")

    def write_half() -> None:
        with atomic.replacing(path) as unfinished:
            unfinished.write_text("af")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_half()
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(path, {"loss": float("nan")})
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["text"]


def test_a_process_killed_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    atomic.write_text(path, "before")
    code = (
        "import os, pathlib, signal, sys\n"
        "from cipo_jax.config import atomic\n"
        "with atomic.replacing(pathlib.Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('af')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    # The next writer is not disturbed by what it left.
    atomic.write_text(path, "after")
    assert os.listdir(tmp_path) == ["text"]
    assert path.read_text() == "after"
