"""The standard library in memory: all of it is there, and none of its files is read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cipo_jax.verify.sandbox import library
from tests import ROOT

IMPORTS = """
import importlib, importlib.machinery, json, os, sys

names = json.load(sys.stdin)
if sys.argv[1] == "memory":
    sys.path.insert(0, sys.argv[2])
    from cipo_jax.verify.sandbox import library

    library.keep()
    sys.path[:] = []
    sys.meta_path.remove(importlib.machinery.PathFinder)
report = os.dup(1)
os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
imported = []
for name in names:
    try:
        importlib.import_module(name)
    except Exception:
        continue
    imported.append(name)
os.write(report, json.dumps([imported, sys.modules["argparse"].__file__]).encode())
"""
SPEAKING = {"antigravity", "this"}
"""They open a browser and print."""


def importable(names: list[str], where: str) -> list:
    """Which of the modules an interpreter without packages can import, and where argparse is."""
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", IMPORTS, where, str(ROOT)],
        input=json.dumps(names), capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_what_imports_from_files_imports_from_memory() -> None:
    names = [name for name in library.Library()
             if "__main__" not in name and name.split(".")[0] not in SPEAKING]  # fmt: skip
    assert {"argparse", "asyncio.events", "json", "multiprocessing.shared_memory"} <= {*names}
    assert not [name for name in names if name.startswith(("test", "site-packages"))]
    extensions = ["_datetime", "_pickle", "_ssl", "_codecs_jp", "_sqlite3", "_posixshmem"]
    from_files = importable([*names, *extensions], "files")
    assert len(from_files[0]) > 400
    assert importable([*names, *extensions], "memory") == from_files


def test_modules_that_only_functions_in_c_import_are_kept() -> None:
    """No reader of sources finds these: print of a large integer, strptime of a datetime."""
    kept = set(library.Library())
    assert "_strptime" in kept
    assert sys.version_info < (3, 12) or "_pylong" in kept


@pytest.mark.parametrize(
    ("changed", "is_same_time", "value"),
    [("value = 3", True, 1), ("value = 3", False, 3), ("value = 22", True, 22)],
)
def test_a_compiled_file_counts_only_where_it_belongs_to_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, is_same_time: bool, value: int
) -> None:
    """Size and time of the source say so, as they do for Python itself. The file is gone when the
    module is loaded.
    """
    source = tmp_path / "colorsys.py"
    source.write_text("value = 1")
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(tmp_path)], check=True)
    times = source.stat().st_atime, source.stat().st_mtime
    source.write_text(changed)
    os.utime(source, times if is_same_time else (0, 0))
    monkeypatch.syspath_prepend(tmp_path)
    spec = library.Library().find_spec("colorsys")
    shutil.rmtree(tmp_path)
    namespace: dict = {}
    exec(spec.loader.get_code("colorsys"), namespace)
    assert namespace["value"] == value
