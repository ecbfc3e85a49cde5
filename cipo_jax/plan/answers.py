"""The compiler's answers, kept in a folder: a program that was compiled once is not compiled again.

Most of a plan's programs are the same again in the next plan: after a change of a setting, after an
interruption, for an adapter instead of full training. JAX's own compilation cache can't help, as it
keeps executables, which can't be read back without their devices. A plan needs none, only sizes,
the shardings of the results and the compiled program's text.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

_REFUSED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes on one device, by the compiler."""

    arguments: int
    results: int
    """Without results that are written over arguments."""
    temporaries: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The compiler's answer for one program."""

    refused_bytes: int | None
    """Bytes that a refused program needs, by the compiler's message; None where it was compiled."""
    sizes: Sizes | None
    specs: tuple[PartitionSpec, ...]
    """How each result is split over the mesh."""
    text: str
    """The compiled program; empty where it was refused."""
    cpu_s: float


def answer(lowered: jax.stages.Lowered, mesh: Mesh, folder: Path | None) -> Answer:
    """The compiler's answer for a program, from the folder if it is there.

    Raises: the compiler's error, if that is about anything else than memory.
    """
    if folder is None:
        return _ask(lowered)
    path = folder / f"{_key(lowered, mesh)}.json.gz"
    if path.exists():
        return _read(path)
    found = _ask(lowered)
    _write(path, found)
    return found


def refused(error: Exception) -> tuple[int, int] | None:
    """Bytes that a refused program needs, and bytes that there are; None for another error."""
    match = _REFUSED.search(str(error))
    if match is None:
        return None
    needed, available = ((match[i], match[i + 1]) for i in (1, 3))
    return _bytes(*needed), _bytes(*available)


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])


def _ask(lowered: jax.stages.Lowered) -> Answer:
    start = time.process_time()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused(error)
        if sizes is None:
            raise
        seconds = time.process_time() - start
        return Answer(refused_bytes=sizes[0], sizes=None, specs=(), text="", cpu_s=seconds)
    seconds = time.process_time() - start
    return Answer(
        refused_bytes=None,
        sizes=memory_of(executable),
        specs=tuple(sharding.spec for sharding in jax.tree.leaves(executable.output_shardings)),
        text=executable.as_text() or "",
        cpu_s=seconds,
    )


def memory_of(executable: jax.stages.Compiled) -> Sizes:
    """The compiler's figures for a program that it compiled."""
    stats: Any = executable.memory_analysis()
    return Sizes(
        arguments=stats.argument_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )


def _key(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """A hash of everything that the answer depends on: the program with its shardings, the devices
    in the order of the mesh, the compiler and its settings."""
    versions = [(name, _version(name)) for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt")]
    devices = [
        (device.device_kind, getattr(device, "coords", None), device.id)
        for device in mesh.devices.flat
    ]
    settings = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    # An answer that was kept with other fields is of no use.
    fields = [*Answer.__dataclass_fields__, *Sizes.__dataclass_fields__]
    described = json.dumps([versions, devices, settings, fields])
    return hashlib.sha256((described + lowered.as_text()).encode()).hexdigest()[:32]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> Answer:
    with gzip.open(path, "rt") as file:
        stored: dict[str, Any] = json.load(file)
    specs = (
        PartitionSpec(*(tuple(axis) if isinstance(axis, list) else axis for axis in spec))
        for spec in stored["specs"]
    )
    sizes = None if stored["sizes"] is None else Sizes(**stored["sizes"])
    return Answer(**{**stored, "specs": tuple(specs), "sizes": sizes})


def _write(path: Path, found: Answer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is whole: this plan may be killed, and others may be running.
    handle, half = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(handle, "wb") as file, gzip.open(file, "wt", compresslevel=6) as text:
        json.dump({**asdict(found), "specs": [tuple(spec) for spec in found.specs]}, text)
    Path(half).replace(path)
