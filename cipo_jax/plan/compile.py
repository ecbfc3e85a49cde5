"""One program, compiled for devices that are not there: its needs, or that it was refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cipo_jax.plan import answers, movement
from cipo_jax.plan.answers import Sizes, memory_of, refused
from cipo_jax.plan.flops import Count, count
from cipo_jax.plan.movement import Movement
from cipo_jax.plan.programs import Program


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    arguments: int
    host_arguments: int
    """The part of the arguments that comes from the host for this call."""
    results: int
    """Without results that are written over arguments."""
    temporaries: int
    peak: int
    """At the worst moment, arguments and results included; no fit where it exceeds the memory."""

    @property
    def growth(self) -> int:
        """What the worst moment needs beyond what was in memory before the call."""
        return self.peak - self.arguments + self.host_arguments


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program after compilation."""

    memory: Memory | None
    """None where the compiler refused the program."""
    refused_bytes: int | None
    """Bytes that a refused program needs, by the compiler's message; None for others."""
    count: Count
    """Operations of one run on all devices together."""
    movement: Movement
    """Bytes and collectives of one run on one device."""
    compile_cpu_s: float


def compile_program(
    program: Program, mesh: Mesh, folder: Path | None = None
) -> tuple[Compiled, Any]:
    """Compiles a program for the devices of the mesh.

    Args:
      folder: where answers of the compiler are kept; None asks it in any case.
    Returns: its needs, and its results as `jax.ShapeDtypeStruct`s with shardings; None in place of
      the results if the compiler refused it for want of memory.
    Raises: the compiler's error, if that is about anything else than memory.
    """
    # Kernels ask the mesh, and not this machine's devices, what they are compiled for.
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.args, **program.static)
        counted = count(traced.jaxpr, program.trips)
        lowered = traced.lower()
        found = answers.answer(lowered, mesh, folder)
    is_refused = found.sizes is None
    compiled = Compiled(
        memory=None if found.sizes is None else _memory(found.sizes, program),
        refused_bytes=found.refused_bytes,
        count=counted,
        movement=movement.NOTHING if is_refused else movement.of(found.text, program.trips),
        compile_cpu_s=found.cpu_s,
    )
    if is_refused:
        return compiled, None
    leaves, structure = jax.tree.flatten(lowered.out_info)
    results = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(leaves, found.specs, strict=True)
    ]
    return compiled, jax.tree.unflatten(structure, results)


def bytes_of(tree: Any) -> int:
    """Bytes of a tree on one device, as the compiler lays it out, tiles' padding included."""
    hold = jax.jit(lambda tree: (), keep_unused=True)
    try:
        return memory_of(hold.lower(tree).compile()).arguments
    except jax.errors.JaxRuntimeError as error:
        sizes = refused(error)
        if sizes is None:
            raise
        return sizes[0]


def available_bytes(mesh: Mesh) -> int | None:
    """Memory of a device that programs may use, as the compiler knows it; None if it knows none.

    It says so when it refuses a program that can't fit.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    far_too_much = jax.ShapeDtypeStruct((2**44,), "int8", sharding=everywhere)
    try:
        jax.jit(lambda x: x + 1).lower(far_too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = refused(error)
        if sizes is not None:
            return sizes[1]
    return None


def _memory(sizes: Sizes, program: Program) -> Memory:
    return Memory(
        arguments=sizes.arguments,
        host_arguments=bytes_of([program.args[position] for position in program.host_args]),
        results=sizes.results,
        temporaries=sizes.temporaries,
        peak=sizes.peak,
    )
