"""LiveCodeBench: competition problems, judged by their public and their private tests."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from typing import Any, NoReturn

from cipo_jax.tasks.benchmarks.benchmark import Benchmark, HubFiles, Item
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.references import Unusable
from cipo_jax.tasks.rows import Row, abbreviated
from cipo_jax.verify.verdict import CallsReference, Reference, StdioReference

CASE_S = 6.0
"""Seconds of each test, as in LiveCodeBench's runner."""

MAX_TESTS_BYTES = 2**30
"""Unpacked tests of one problem; a small file could unpack to any size."""

IMPORTS = """\
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics
import itertools, functools, operator, io, sys, json
sys.setrecursionlimit(50000)
"""
"""The names that LiveCodeBench's runner gives every program, in its order: later ones win."""

STDIN_FORMAT = (
    "Read the inputs from standard input, solve the problem and write the answer to standard "
    "output. Write the complete program in one ```python code block."
)
STARTER_FORMAT = (
    "Complete the starter code. Write the complete class, with its imports, in one ```python code "
    "block."
)


def livecodebench(row: Row) -> Item:
    """Programs read standard input; with starter code, a method of a class is called."""
    tests = [*_tests(row, "public_test_cases"), *_tests(row, "private_test_cases")]
    starter = str(row.fields.get("starter_code") or "")
    question = row.text("question_content")
    if starter.strip():
        question += f"\n\nStarter code:\n```python\n{starter.strip()}\n```"
    return Item(
        problem=Problem(
            id=f"livecodebench:{row.text('question_id')}",
            question=question,
            answer_format=STARTER_FORMAT if starter.strip() else STDIN_FORMAT,
            reference=_reference(row, tests),
        ),
        tags={k: str(row.fields[k]) for k in ("platform", "difficulty") if k in row.fields},
    )


def _reference(row: Row, tests: list[dict[str, str]]) -> Reference:
    kinds = {test["testtype"] for test in tests}
    if kinds == {"stdin"}:
        return StdioReference(
            cases=tuple((test["input"], test["output"]) for test in tests),
            prelude=IMPORTS,
            case_s=CASE_S,
        )
    if kinds != {"functional"}:
        raise Unusable(f"tests of the kinds {', '.join(sorted(kinds)) or 'none'}")
    metadata = row.value("metadata")
    function = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
    if not function:
        raise ValueError(f"{row.where}: functional tests, but no func_name in 'metadata'.")
    try:
        cases = tuple(
            (
                tuple(json.loads(line) for line in test["input"].split("\n")),
                json.loads(test["output"]),
            )
            for test in tests
        )
    except ValueError as error:
        raise ValueError(
            f"{row.where}: a functional test must have one JSON value a line as its input and one "
            f"as its output ({error})."
        ) from error
    return CallsReference(
        function=function, cases=cases, prelude=IMPORTS, case_s=CASE_S, tuple_is_list=True
    )


def _tests(row: Row, name: str) -> list[dict[str, str]]:
    packed = row.text(name)
    try:
        tests: Any = json.loads(packed)
    except ValueError:
        tests = json.loads(unpack(packed, where=f"{row.where}: field '{name}'"))
    if not isinstance(tests, list) or not all(
        isinstance(t, dict) and {"input", "output", "testtype"} <= t.keys() for t in tests
    ):
        raise ValueError(
            f"{row.where}: '{name}' must hold tests with input, output and testtype, it is "
            f"{abbreviated(tests)}."
        )
    return tests


def unpack(packed: str, *, where: str) -> str:
    """The text in base64 of zlib of a pickle, the form of LiveCodeBench's private tests.

    A pickle is a program. This one holds a single text, which needs no class or function: whatever
    asks for one is refused before it is looked up.

    Raises: ValueError for anything but a text of up to `MAX_TESTS_BYTES`.
    """
    try:
        unzip = zlib.decompressobj()
        pickled = unzip.decompress(base64.b64decode(packed, validate=True), MAX_TESTS_BYTES)
        if unzip.unconsumed_tail:
            raise ValueError(f"more than {MAX_TESTS_BYTES} bytes")
        value = _TextUnpickler(io.BytesIO(pickled)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{where} is no packed text ({error}).") from error
    except Exception as error:  # malformed pickles raise all sorts of errors
        raise ValueError(f"{where} is no packed text ({error!r}).") from error
    if not isinstance(value, str):
        raise ValueError(f"{where} is no packed text, but a {type(value).__name__}.")
    return value


class _TextUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, identity: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an outside object")


BENCHMARKS = (
    Benchmark(
        name="livecodebench",
        title="LiveCodeBench v6",
        area="code",
        source=HubFiles(
            dataset="livecodebench/code_generation_lite",
            files=("test.jsonl", *(f"test{n}.jsonl" for n in range(2, 7))),
        ),
        num_rows=1055,
        fields=(
            "question_content",
            "question_id",
            "starter_code",
            "public_test_cases",
            "private_test_cases",
            "metadata",
        ),
        samples=10,
        read=livecodebench,
        note="release_v6, all of 1055 problems; the file test6.jsonl alone holds the newest 175",
    ),
)
