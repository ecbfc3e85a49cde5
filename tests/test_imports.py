"""The rooms of the package stand in one order, and imports only point to rooms that come before."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "cipo_jax"

PAGE = (ROOT / "docs" / "architecture.md").read_text()
# The order is the one that the page prints.
ROOMS = re.findall(r"^  (\w+)(?:/|\.py) +\S", PAGE, flags=re.MULTILINE)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports inside the package are absolute"
            parts = node.module.split(".")
            if parts[0] == "cipo_jax":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "cipo_jax" and len(parts) > 1:
                    rooms.add(parts[1])
    return rooms - {"__version__"}


def downward_imports(room: str, source: str) -> set[str]:
    """Rooms that stand after `room`, or nowhere, and are imported by its source."""
    return {r for r in imported_rooms(source) if r not in ROOMS[: ROOMS.index(room) + 1]}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upward(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    assert not downward_imports(room, path.read_text())


def test_a_downward_import_would_be_found() -> None:
    assert downward_imports("method", "from cipo_jax.run.loop import train") == {"run"}
    assert downward_imports("method", "from cipo_jax import run") == {"run"}
    assert downward_imports("method", "import cipo_jax.cli") == {"cli"}
    assert not downward_imports("method", "from cipo_jax.config import Band")


@pytest.mark.parametrize("module", ["cipo_jax", "cipo_jax.verify", "cipo_jax.config"])
def test_host_modules_do_not_load_jax(module: str) -> None:
    code = f"import sys, {module}; print('jax' in sys.modules or 'jaxlib' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == "False"


def test_the_page_lists_every_package_and_its_walk_exists() -> None:
    there = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix in ("", ".py")}
    assert set(ROOMS) == there - {"__init__", "__pycache__"}
    walk = PAGE[PAGE.index("## From a prompt") : PAGE.index("## What holds")]
    stops = re.findall(r"^\d+\. ", walk, flags=re.MULTILINE)
    files = re.findall(r"`([\w/]+\.py)`", walk)
    assert 0 < len(stops) < 10
    assert len(files) >= len(stops)
    assert all((PACKAGE / file).is_file() for file in files)
