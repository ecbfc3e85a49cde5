"""How often the parts of a compiled program run.

A loop over a known range says so in its text. How often a loop runs whose length is data, is stated
by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from cipo_jax.plan.hlo import Computation, called

LoopTrips = Callable[[Sequence[int | None]], Sequence[int]]
"""How often each loop runs whose length is data, in the order of the program. It is given the
constants that the loops' counters are compared with, None for a loop without one."""


def run_once(bounds: Sequence[int | None]) -> Sequence[int]:
    """For programs without loops whose length is data."""
    if bounds:
        raise ValueError(f"The program has {len(bounds)} loops, and how often they run is unknown.")
    return []


def executed(
    computations: Mapping[str, Computation],
    entry: Computation,
    lengths: Mapping[str, float],
) -> Iterator[tuple[Computation, float, bool]]:
    """Every computation with how often it runs, and whether it is the inside of a fusion.

    Args:
      lengths: of the loops, by the name of their instruction; 1 for those that are not there.
    """
    pending = [(entry, 1.0, False)]
    while pending:
        computation, times, is_fused = pending.pop()
        yield computation, times, is_fused
        for i in computation.instructions:
            often = times * lengths.get(i.name, 1.0)
            for name in called(i):
                pending.append((computations[name], often, is_fused or i.opcode == "fusion"))


def loop_lengths(
    computations: Mapping[str, Computation], entry: Computation, trips: LoopTrips
) -> tuple[dict[str, float], int]:
    """How often each loop runs, by the name of its instruction, and the number of loops for which
    that is not known: all whose length is data, where `trips` does not state one for each.
    """
    lengths: dict[str, float] = {}
    open_ended: list[tuple[str, int | None]] = []
    for computation, _, _ in executed(computations, entry, {}):
        for loop in computation.instructions:
            if loop.opcode != "while":
                continue
            condition = computations[loop.attribute("condition") or ""]
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
            bound = _bound(condition)
            if known:
                lengths[loop.name] = float(known[1])
            elif bound is not None and condition.root.opcode == "compare":
                step = _step(condition, computations[loop.attribute("body") or ""])
                lengths[loop.name] = float(-(-bound // step))
            else:
                open_ended.append((loop.name, bound))
    open_ended.sort(key=lambda loop: loop[1] or 0)
    stated = trips([bound for _, bound in open_ended])
    if len(stated) != len(open_ended):
        return lengths, len(open_ended)
    for (name, _), times in zip(open_ended, stated, strict=True):
        lengths[name] = float(times)
    return lengths, 0


def _bound(condition: Computation) -> int | None:
    """N of a condition `i < N`; of another condition, its only constant, if it has just one."""
    constants = {
        i.name: int(i.inside)
        for i in condition.instructions
        if i.opcode == "constant" and re.match(r"[su]\d+\[\]", i.type)
    }
    for i in condition.instructions:
        if i.opcode == "compare" and "direction=LT" in i.rest:
            for operand in i.operands:
                if operand in constants:
                    return constants[operand]
    return next(iter(constants.values())) if len(constants) == 1 else None


def _step(condition: Computation, body: Computation) -> int:
    """What a loop adds to its counter, which starts from 0: the compiler unrolls some by two."""
    read = [condition.by_name[name] for name in condition.root.operands]
    counter = next((i for i in read if i.opcode == "get-tuple-element"), None)
    if counter is None or body.root.opcode != "tuple":
        return 1
    place = int(counter.attribute("index") or 0)
    added = body.by_name[body.root.operands[place]]
    numbers = [body.by_name[name] for name in added.operands if added.opcode == "add"]
    return next((int(i.inside) for i in numbers if i.opcode == "constant"), 1)
