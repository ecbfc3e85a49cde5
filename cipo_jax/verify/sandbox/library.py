"""The standard library in memory, for programs that can't read its files.

Under strict seccomp no path can be opened, and a program with a user id of its own may not be able
to enter the folder of the interpreter. Many modules are imported late, some of them by functions
written in C (`print` of a large integer imports `_pylong`), so no list of names would be complete:
the whole library is kept, as the compiled files that Python itself keeps.
"""

from __future__ import annotations

import importlib
import importlib.util
import marshal
import struct
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import (
    ExtensionFileLoader,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple

_USELESS = {"_tkinter", "ensurepip", "idlelib", "lib2to3", "readline", "test", "tkinter",
            "turtle", "turtledemo"}  # fmt: skip
"""Modules that need a display, a terminal or a network, and the library's own tests."""


class _KeptModule(NamedTuple):
    path: str
    content: bytes
    is_compiled: bool


class StandardLibrary:
    """Finds the modules written in Python, which it holds."""

    def __init__(self) -> None:
        self._modules = {name: _read(path) for name, path in _sources()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by the import system."""
        kept = self._modules.get(name)
        if kept is None:
            return None
        return importlib.util.spec_from_file_location(
            name, kept.path, loader=_MemoryLoader(name, kept)
        )


class _MemoryLoader(SourceFileLoader):
    def __init__(self, name: str, kept: _KeptModule) -> None:
        super().__init__(name, kept.path)
        self._kept = kept

    def get_code(self, fullname: str) -> CodeType:
        path, content, is_compiled = self._kept
        if is_compiled:
            code: CodeType = marshal.loads(memoryview(content)[16:])
            return code
        return self.source_to_code(content, path)


def keep() -> StandardLibrary:
    """Makes the whole standard library importable without its files, for this process and what it
    forks: modules written in C are imported now, for the others a `StandardLibrary` is installed.
    """
    for spec in _specs():
        if isinstance(spec.loader, ExtensionFileLoader):
            importlib.import_module(spec.name)
    library = StandardLibrary()
    sys.meta_path.insert(sys.meta_path.index(PathFinder), library)
    return library


def _specs() -> Iterator[ModuleSpec]:
    """Those modules and packages of the library that this interpreter has as files."""
    for name in sorted(sys.stdlib_module_names - _USELESS):
        spec = PathFinder.find_spec(name)
        if spec is not None:
            yield spec


def _sources() -> Iterator[tuple[str, Path]]:
    """Names and files of the modules written in Python, those of packages included."""
    for spec in _specs():
        if not isinstance(spec.loader, SourceFileLoader):
            continue
        source = Path(spec.loader.path)
        yield spec.name, source
        for path in source.parent.rglob("*.py") if spec.submodule_search_locations else ():
            *folders, last = path.relative_to(source.parent).with_suffix("").parts
            if path != source and not {"test", "tests"}.intersection(folders):
                yield ".".join([spec.name, *folders, *([last] if last != "__init__" else [])]), path


def _read(path: Path) -> _KeptModule:
    """The compiled file, where there is one that belongs to the source; otherwise the source."""
    state = path.stat()
    header = importlib.util.MAGIC_NUMBER + struct.pack(
        "<III", 0, int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
    )
    try:
        content = Path(importlib.util.cache_from_source(path)).read_bytes()
    except OSError:
        content = b""
    if content.startswith(header):
        return _KeptModule(str(path), content, is_compiled=True)
    return _KeptModule(str(path), path.read_bytes(), is_compiled=False)
