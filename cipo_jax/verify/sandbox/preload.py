"""What a nursery imports before it forks, so that no program pays for it.

Most of a program's cost is its fork: a copy of the page tables of all this, and of every page that
either side then writes to. So modules that few programs import are left to them, and what is loaded
is left quiet.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import importlib
import logging
import pkgutil
import random
import site
import threading
from collections.abc import Callable
from typing import Any

from cipo_jax.verify.answers import judging
from cipo_jax.verify.sandbox import library
from cipo_jax.verify.verdict import MathReference

_COMMON = """
abc array ast bisect cmath collections collections.abc contextlib copy copyreg ctypes dataclasses
datetime decimal enum fractions functools gc heapq inspect io itertools json json.decoder
json.encoder keyword linecache locale math numbers operator os pathlib queue random re reprlib
resource select selectors signal socket stat statistics string struct subprocess sys textwrap
threading time token tokenize traceback types typing warnings weakref
"""

_ALGEBRA = """
assumptions calculus concrete discrete functions integrals logic matrices ntheory polys series sets
simplify solvers tensor
"""
"""Packages of sympy that import some of their modules when an answer needs them. A worker may not
be able to: it can read no file under strict seccomp, and none below /tmp, where its own scratch
folder lies, in namespaces."""

_ORDINARY_ANSWERS = (
    ("\\frac{1}{2}x", "x/2"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("\\sqrt{5}", "7^{1/2}"),
    ("x^2 + 3x", "x(x+3)"),
    ("x^2 + 3x + 1", "x(x+3)"),
    ("(1, 2]", "[1,2]"),
    ("\\{1, 2\\}", "2, 1"),
    ("1 < x < 2", "(1,2)"),
    ("\\frac{\\pi}{4}", "0.7"),
    ("e^{i\\pi}", "-1"),
    ("\\sin^2 x", "1-\\cos^2 x"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 3 \\end{pmatrix}"),
    ("\\text{east}", "west"),
    ("y = 2x + 1", "y = x"),
)

MAX_THREAD_STACK = 128 * 2**20
"""Bytes. Recursion of plain Python functions takes none of it."""

Hooks = list[dict[str, Callable[[], Any]]]
"""Arguments of calls of `os.register_at_fork`."""

BOOT = """
import os, sys
# What modules want to do in every forked process is kept aside: new locks and a new random seed,
# which a process without threads and with a fixed seed needs not, are a tenth of a program's cost.
hooks = []
os.register_at_fork = lambda **each: hooks.append(each)
descriptor, kind, trainer = sys.argv[1:4]
own = sys.path[:]
sys.path[:0] = sys.argv[4:]
from cipo_jax.verify.sandbox.nursery import main
if kind == "code":
    sys.path[:] = own
main(int(descriptor), kind, int(trainer), hooks)
"""
"""The program of a nursery; arguments: a descriptor, its kind, the trainer's process id, paths."""


def load(kind: str) -> None:
    """What nearly every program of this kind of nursery needs."""
    for name in _COMMON.split():
        # An interpreter may be built without some of them; programs can't have those either.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if kind == "math":
        # Parsers build their tables, and sympy imports its parts and fills its caches, on first
        # use: a worker that takes the place of a killed one starts with all that.
        for text, gold in _ORDINARY_ANSWERS:
            judging.judge(f"\\boxed{{{text}}}", MathReference(answers=(gold,)))
        for package in _ALGEBRA.split():
            _import_all(f"sympy.{package}")
    threading.stack_size = _stack_size
    # `exit` and `quit`, which scripts expect and which an interpreter without site lacks.
    site.setquit()
    _settle()


def load_library() -> None:
    """The whole standard library (`library.py`), for isolations without mounts of their own, in
    which programs may not be able to read it.
    """
    library.keep()
    _settle()


def _stack_size(size: int = 0, /) -> int:
    """`threading.stack_size`, but for sizes beyond what a program's memory leaves room for, which
    scripts ask for from habit: they get the largest there is, as with the main thread's stack.
    """
    return _thread.stack_size(min(size, MAX_THREAD_STACK))


def _import_all(package: str) -> None:
    """A package with all its modules but its tests."""
    paths = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(paths, f"{package}."):
        if not {"tests", "benchmarks"} & set(module.name.split(".")):
            importlib.import_module(module.name)


def _settle() -> None:
    """Leaves the process as programs shall find it."""
    random.seed(0)
    logging._handlerList.clear()  # type: ignore[attr-defined]  # nothing to shut down at exit
    gc.collect()
    gc.freeze()
