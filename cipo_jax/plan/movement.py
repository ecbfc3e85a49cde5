"""The memory traffic and the collectives of one run of a compiled program on a device.

The compiler's own cost analysis takes every loop body once. Here each instruction counts as often
as the loops around it run. Sizes are those of one device's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cipo_jax.plan.collectives import Collective, collectives
from cipo_jax.plan.hlo import Computation, Instruction, parse, sizes
from cipo_jax.plan.loops import LoopTrips, executed, loop_lengths

_FREE = frozenset(
    {
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
        *("while", "conditional", "call", "async-start", "async-update", "async-done"),
        *("after-all", "add-dependency", "partition-id", "replica-id", "copy-done", "slice-done"),
    }
)
"""Instructions that move nothing themselves."""
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATE = "dynamic-update-slice"


@dataclass(frozen=True, kw_only=True)
class Movement:
    """The data that one run of a program moves on a device."""

    traffic_bytes: float
    """Bytes that all instructions read from memory and write to it, without tiles' padding."""
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]
    """Targets of custom calls, such as compiled Pallas kernels."""
    unknown_loops: int
    """Loops of unknown length, which are counted as running once."""

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device has to send at least."""
        return sum(c.sent_bytes for c in self.collectives)


NOTHING = Movement(traffic_bytes=0.0, collectives=(), kernels=(), unknown_loops=0)
"""The movement of a program that was not compiled."""


def of(text: str, trips: LoopTrips) -> Movement:
    """Counts the movement of a compiled program.

    Args:
      text: `compiled.as_text()`, scheduled.
      trips: as for `flops.count`.
    """
    computations, entry = parse(text)
    lengths, unknown = loop_lengths(computations, entry, trips)
    runs = list(executed(computations, entry, lengths))
    kernels = {
        i.attribute("custom_call_target") or ""
        for computation, _, _ in runs
        for i in computation.instructions
        if i.opcode == "custom-call"
    }
    return Movement(
        traffic_bytes=sum(
            times * _traffic(i, computation, computations)
            for computation, times, is_fused in runs
            if not is_fused
            for i in computation.instructions
        ),
        collectives=collectives(((where, times) for where, times, _ in runs), computations),
        kernels=tuple(sorted(kernels)),
        unknown_loops=unknown,
    )


def _traffic(i: Instruction, where: Computation, computations: Mapping[str, Computation]) -> float:
    """Bytes that an instruction reads from memory and writes to it, in one run."""
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0.0
    if i.opcode in ("copy-start", "slice-start"):
        # Destination, source and a context; a slice reads what it writes.
        arrays = sizes(i.type, in_memory_only=True)[:2]
        return sum(arrays) if i.opcode == "copy-start" else 2 * min(arrays, default=0.0)
    if i.opcode in _SLICES:
        return 2 * _in_memory(i)
    operands = [_in_memory(where.by_name[name]) for name in i.operands]
    if i.opcode == _UPDATE:
        return 2 * operands[1]
    if i.opcode == "scatter":
        return 2 * operands[-1]
    if i.opcode == "fusion":
        inside = computations[i.attribute("calls") or ""]
        read = sum(
            _read(parameter, operands[int(parameter.inside)], inside)
            for parameter in inside.instructions
            if parameter.opcode == "parameter"
        )
        return read + _written(_in_memory(i), inside)
    return sum(operands) + _in_memory(i)


def _read(parameter: Instruction, size: float, inside: Computation) -> float:
    """Bytes that a fusion reads of an operand of `size` bytes: only the slices, if it only slices
    it, and nothing, if it only updates it in place."""
    uses = inside.uses(parameter)
    opcodes = {use.opcode for use in uses}
    if opcodes and opcodes <= _SLICES:
        return min(size, sum(sum(sizes(use.type)) for use in uses))
    return 0.0 if opcodes == {_UPDATE} else size


def _written(size: float, inside: Computation) -> float:
    """Bytes that a fusion writes whose results have `size` bytes in memory: an array that is
    updated in place counts as its update."""
    for result in inside.results:
        if result.opcode == _UPDATE:
            whole = sum(sizes(result.type))
            update = sum(sizes(inside.by_name[result.operands[1]].type))
            if size >= whole:  # or it is on chip
                size += update - whole
    return size


def _in_memory(i: Instruction) -> float:
    return sum(sizes(i.type, in_memory_only=True))
