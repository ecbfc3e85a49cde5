"""What a compiled program moves: bytes of memory, and collectives.

The compiler's own cost analysis takes every loop body once. Here each instruction counts as often
as the loops around it run: a loop over a known range says so in its condition, the others are
stated by the caller. Sizes are those of one device's program.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cipo_jax.plan.flops import LoopTrips
from cipo_jax.plan.hlo import Computation, Instruction, called, parse, sizes

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_WINDOWED = {"ag": "all-gather in pieces", "rs": "reduce-scatter in pieces"}
"""Kinds of permutations that together are another collective; the last piece of each stays a
`collective-permute`, as it moves beside the loop."""
_FREE = frozenset(
    {
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
        *("while", "conditional", "call", "async-start", "async-update", "async-done"),
        *("after-all", "add-dependency", "partition-id", "replica-id", "copy-done", "slice-done"),
    }
)
"""Instructions that move nothing themselves."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Like collectives of a program, on one device."""

    kind: str
    group: int
    """Devices that take part together; 0 where the text does not say."""
    result_bytes: int
    """Of one of them: what a device holds afterwards."""
    static: int
    """How often it stands in the program."""
    runs: float
    """How often it runs, loops included."""

    @property
    def sent_bytes(self) -> float:
        """What a device has to send at least, over all runs.

        all-gather and all-to-all: the share of the others, (n - 1) / n of the result;
        reduce-scatter: n - 1 pieces of the size of the result; all-reduce: both, one after the
        other; a permutation: the result.
        """
        n = max(self.group, 2)
        factor = {
            "all-gather": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "ragged-all-to-all": (n - 1) / n,
            "reduce-scatter": n - 1,
            "all-reduce": 2 * (n - 1) / n,
        }.get(self.kind, 1.0)
        return factor * self.result_bytes * self.runs


@dataclass(frozen=True, kw_only=True)
class Movement:
    """What one run of a program moves on a device."""

    traffic_bytes: float
    """Read from and written to memory by every instruction; tiles' padding is left out."""
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]
    """Targets of custom calls, such as compiled Pallas kernels."""
    unknown_loops: int
    """Loops of unknown length, which were counted once."""


def of(text: str, trips: LoopTrips) -> Movement:
    """Counts the movement of a compiled program.

    Args:
      text: `compiled.as_text()`, scheduled.
      trips: of the loops whose length is data, as for `flops.count`.
    """
    computations, entry = parse(text)
    lengths, unknown = _loop_lengths(computations, entry, trips)
    traffic = 0.0
    kernels: set[str] = set()
    found: dict[str, tuple[str, int, int, float]] = {}
    for computation, times, is_fused in _executed(computations, entry, lengths):
        types = {i.name: i.type for i in computation.instructions}
        for i in computation.instructions:
            if i.opcode == "custom-call":
                kernels.add(i.attribute("custom_call_target") or "")
            collective = _collective(i, computation, computations)
            if collective is not None:
                kind, says = collective
                once = _identity(says) or f"{computation.name}/{i.name}"
                before = found.get(once)
                if before is None or before[3] < times:
                    found[once] = (kind, _group_size(says.rest), _result_bytes(i), times)
            if not is_fused:
                traffic += times * _traffic(i, types, computations)
    static: Counter[tuple[str, int, int]] = Counter()
    runs: defaultdict[tuple[str, int, int], float] = defaultdict(float)
    for kind, group, size, times in found.values():
        static[kind, group, size] += 1
        runs[kind, group, size] += times
    collectives = [
        Collective(
            kind=kind, group=group, result_bytes=size, static=n, runs=runs[kind, group, size]
        )
        for (kind, group, size), n in static.items()
    ]
    return Movement(
        traffic_bytes=traffic,
        collectives=tuple(sorted(collectives, key=lambda c: -c.sent_bytes)),
        kernels=tuple(sorted(kernels)),
        unknown_loops=unknown,
    )


def _executed(
    computations: Mapping[str, Computation],
    entry: Computation,
    lengths: Mapping[str, float],
) -> Iterator[tuple[Computation, float, bool]]:
    """Every computation with how often it runs, and whether it is the inside of a fusion."""
    pending = [(entry, 1.0, False)]
    while pending:
        computation, times, is_fused = pending.pop()
        yield computation, times, is_fused
        for i in computation.instructions:
            often = times * lengths.get(i.name, 1.0)
            for name in called(i):
                pending.append((computations[name], often, is_fused or i.opcode == "fusion"))


def _loop_lengths(
    computations: Mapping[str, Computation], entry: Computation, trips: LoopTrips
) -> tuple[dict[str, float], int]:
    lengths: dict[str, float] = {}
    data: list[tuple[str, int | None]] = []
    for computation, _, _ in _executed(computations, entry, {}):
        for i in computation.instructions:
            if i.opcode != "while":
                continue
            condition = computations[i.attribute("condition") or ""]
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.rest)
            bound = _bound(condition)
            if known:
                lengths[i.name] = float(known[1])
            elif bound is not None and condition.root.opcode == "compare":
                step = _step(condition, computations[i.attribute("body") or ""])
                lengths[i.name] = float(-(-bound // step))
            else:
                data.append((i.name, bound))
    data.sort(key=lambda loop: loop[1] or 0)
    stated = list(trips([bound for _, bound in data]))
    if len(stated) != len(data):
        return lengths, len(data)
    return lengths | {name: float(n) for (name, _), n in zip(data, stated, strict=True)}, 0


def _bound(condition: Computation) -> int | None:
    """N of a condition `i < N`."""
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


def _collective(
    i: Instruction, where: Computation, computations: Mapping[str, Computation]
) -> tuple[str, Instruction] | None:
    """Its kind, and the instruction that says who takes part; None for other instructions."""
    if i.opcode == "fusion" and "all-reduce-scatter" in (i.attribute("calls") or ""):
        # An all-reduce of which each device keeps a piece.
        inside = computations[i.attribute("calls") or ""].instructions
        return "reduce-scatter", next((x for x in inside if x.opcode == "all-reduce"), i)
    base = i.opcode.removesuffix("-start")
    if base == "collective-permute":
        # A product's operand or result goes round a ring in pieces while the product is computed.
        window = re.search(r"windowed_dot_general_body_(ag|rs)", where.name)
        return base if window is None else _WINDOWED[window[1]], i
    return (base, i) if base in _COLLECTIVES else None


def _identity(i: Instruction) -> str | None:
    """What the start, the middle and the end of an asynchronous collective share: a channel, the
    line of the program and who takes part. The channel alone does not do, as all of a `shard_map`
    have the same."""
    channel = i.attribute("channel_id")
    if channel is None:
        return None
    said = re.findall(
        r"metadata=\{[^}]*\}|(?:replica_groups|source_target_pairs)=.*?(?=, \w+=|$)", i.rest
    )
    return " ".join([channel, *said])


def _result_bytes(i: Instruction) -> int:
    arrays = sizes(i.type)
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        return int(max(arrays, default=0))  # operand and result stand side by side
    return int(sum(arrays))


def _group_size(rest: str) -> int:
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        by_axis = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(by_axis[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if "source_target_pairs" in rest:
        return _ring(dict(re.findall(r"\{(\d+),(\d+)\}", rest)))
    return 0


def _ring(next_of: Mapping[str, str]) -> int:
    """Devices that a piece passes before it is back where it started; 0 if it never is."""
    start = device = next(iter(next_of), "")
    for count in range(1, len(next_of) + 1):
        device = next_of.get(device, "")
        if device == start:
            return count
    return 0


def _traffic(
    i: Instruction, types: Mapping[str, str], computations: Mapping[str, Computation]
) -> float:
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0.0
    operand = [_hbm(types.get(name, "")) for name in i.operands]
    if i.opcode in ("copy-start", "slice-start"):
        # Destination, source and a context; a slice reads what it writes.
        arrays = sizes(i.type, in_memory_only=True)[:2]
        return sum(arrays) if i.opcode == "copy-start" else 2 * min(arrays, default=0.0)
    if i.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _hbm(i.type)
    if i.opcode == "dynamic-update-slice":
        return 2 * operand[1]
    if i.opcode == "scatter":
        return 2 * operand[-1]
    if i.opcode == "fusion":
        return _fusion_traffic(i, operand, computations[i.attribute("calls") or ""])
    return sum(operand) + _hbm(i.type)


def _fusion_traffic(i: Instruction, operand: list[float], inside: Computation) -> float:
    """A fusion reads of an operand only what it slices out, and writes of an array that it updates
    in place only the update."""
    users: dict[str, list[Instruction]] = {}
    for inner in inside.instructions:
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    by_name = inside.by_name
    total = 0.0
    for parameter in inside.instructions:
        if parameter.opcode != "parameter":
            continue
        size = operand[int(parameter.inside)]
        reads = _through_bitcasts(parameter.name, users)
        if reads and all(r.opcode in ("dynamic-slice", "gather", "slice") for r in reads):
            size = min(size, sum(sum(sizes(r.type)) for r in reads))
        elif reads and all(r.opcode == "dynamic-update-slice" for r in reads):
            size = 0.0 if size else size
        total += size
    written = _hbm(i.type)
    root = inside.root
    while root.opcode == "bitcast":
        root = by_name[root.operands[0]]
    results = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result in results:
        if result.opcode == "dynamic-update-slice":
            full, update = sum(sizes(result.type)), sum(sizes(by_name[result.operands[1]].type))
            if written >= full:
                written += update - full
    return total + written


def _through_bitcasts(name: str, users: Mapping[str, list[Instruction]]) -> list[Instruction]:
    found = []
    for user in users.get(name, []):
        found += _through_bitcasts(user.name, users) if user.opcode == "bitcast" else [user]
    return found


def _hbm(type_: str) -> float:
    return sum(sizes(type_, in_memory_only=True))
