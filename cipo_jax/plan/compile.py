"""One program, compiled for devices that are not there: what it needs, or why it is refused."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from cipo_jax.plan import flops, movement
from cipo_jax.plan.movement import Collective
from cipo_jax.plan.programs import Program

_REFUSED = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device."""

    arguments: int
    host_arguments: int
    """Of the arguments, what came from the host for this call."""
    results: int
    """Without those that take the place of arguments."""
    temporaries: int
    peak: int
    """At the worst moment, arguments and results included; no fit where it exceeds the memory."""

    @property
    def growth(self) -> int:
        """What the worst moment needs beyond what lay in memory before the call."""
        return self.peak - self.arguments + self.host_arguments


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What became of a program."""

    memory: Memory | None
    """None where the compiler refused it."""
    refused_bytes: int | None
    """What it would have needed, by the compiler's message."""
    flops: float
    """Of one run, over all devices."""
    uncounted: tuple[str, ...]
    traffic_bytes: float
    """Of one run, on one device."""
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]
    unknown_loops: int
    compile_cpu_s: float


def compile_program(program: Program, mesh: Mesh) -> tuple[Compiled, Any]:
    """Compiles a program for the devices of the mesh.

    Returns: what it needs, and its results as `jax.ShapeDtypeStruct`s with shardings; None in their
      place if the compiler refused it for want of memory.
    Raises: what the compiler raises for any other reason.
    """
    start = time.process_time()
    # Kernels ask the mesh, and not this machine's devices, what they are compiled for.
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.args, **program.static)
        counted = flops.count(traced.jaxpr, program.trips)
        lowered = traced.lower()
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _refused_bytes(str(error))
            if needed is None:
                raise
            refused = Compiled(
                memory=None,
                refused_bytes=needed,
                flops=counted.flops,
                uncounted=counted.uncounted,
                traffic_bytes=0.0,
                collectives=(),
                kernels=(),
                unknown_loops=0,
                compile_cpu_s=time.process_time() - start,
            )
            return refused, None
    seconds = time.process_time() - start
    moved = movement.of(executable.as_text(), program.trips)
    results = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        lowered.out_info,
        executable.output_shardings,
    )
    compiled = Compiled(
        memory=_memory(executable, program),
        refused_bytes=None,
        flops=counted.flops,
        uncounted=counted.uncounted,
        traffic_bytes=moved.traffic_bytes,
        collectives=moved.collectives,
        kernels=moved.kernels,
        unknown_loops=moved.unknown_loops,
        compile_cpu_s=seconds,
    )
    return compiled, results


def bytes_of(tree: Any) -> int:
    """Bytes of a tree on one device, as the compiler lays it out, tiles' padding included."""
    hold = jax.jit(lambda tree: (), keep_unused=True)
    try:
        stats = hold.lower(tree).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = _refused_bytes(str(error))
        if needed is None:
            raise
        return needed
    return stats.argument_size_in_bytes


def available_bytes(mesh: Mesh) -> int | None:
    """Memory of a device that programs may use, as the compiler knows it; None if it knows none.

    It says so when it refuses a program that can't fit.
    """
    far_too_much = jax.ShapeDtypeStruct((2**44,), "int8", sharding=_replicated(mesh))
    try:
        jax.jit(lambda x: x + 1).lower(far_too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        match = _REFUSED.search(str(error))
        if match:
            return int(float(match[3]) * _UNITS[match[4]])
    return None


def _replicated(mesh: Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _refused_bytes(message: str) -> int | None:
    match = _REFUSED.search(message)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def _memory(executable: Any, program: Program) -> Memory:
    stats = executable.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(
        arguments=stats.argument_size_in_bytes,
        host_arguments=bytes_of([program.args[position] for position in program.host_args]),
        results=results,
        temporaries=stats.temp_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )
