"""The number of times that each part of a compiled program runs.

A loop over a known range has its length in the text. The lengths of the others depend on data, and
the caller states them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from cipo_jax.plan.hlo import Computation, called

LoopTrips = Callable[[Sequence[int | None]], Sequence[int]]
"""The lengths of the loops that depend on data, in the order of the program. It is given the
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
      lengths: name of a loop's instruction -> times that it runs; once if it is not there.
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
    """Name of a loop's instruction -> times that it runs, and the number of loops that are not
    there: all that depend on data, if `trips` does not give a length for each of them.
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
    """The constant N of the condition `i < N`, or the only constant of another condition."""
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
    """The step of a loop's counter, which starts from 0: the compiler unrolls some loops by two."""
    read = [condition.by_name[name] for name in condition.root.operands]
    counter = next((i for i in read if i.opcode == "get-tuple-element"), None)
    if counter is None or body.root.opcode != "tuple":
        return 1
    place = int(counter.attribute("index") or 0)
    added = body.by_name[body.root.operands[place]]
    numbers = [body.by_name[name] for name in added.operands if added.opcode == "add"]
    return next((int(i.inside) for i in numbers if i.opcode == "constant"), 1)
