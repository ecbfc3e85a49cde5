"""The data that devices exchange in one run of a compiled program."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cipo_jax.plan.hlo import Computation, Instruction, sizes

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_WINDOWED = {"ag": "all-gather in pieces", "rs": "reduce-scatter in pieces"}
"""Permutations that are pieces of another collective. The last piece of each moves outside of the
loop, and is counted as a `collective-permute`."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The collectives of a program that have the same kind, group and size."""

    kind: str
    group: int
    """Devices that take part together; 0 where the text does not say."""
    result_bytes: int
    """Size of the result on one device."""
    static: int
    """Number of them in the program's text."""
    runs: float
    """Number of them in one run of the program, loops included."""

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device has to send at least, over all runs.

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


def collectives(
    executed: Iterable[tuple[Computation, float]], computations: Mapping[str, Computation]
) -> tuple[Collective, ...]:
    """The collectives of a program; those that send most come first.

    Args:
      executed: computations and the number of times that each runs.
    """
    often: dict[str, float] = {}
    alike: dict[str, tuple[str, int, int]] = {}
    for computation, times in executed:
        for i in computation.instructions:
            found = _collective(i, computation, computations)
            if found is None:
                continue
            kind, described = found
            # The start, the middle and the end of an asynchronous collective count as one.
            name = _identity(described) or f"{computation.name}/{i.name}"
            if name not in often or times > often[name]:
                often[name] = times
                alike[name] = kind, _group_size(described.rest), _result_bytes(i)
    runs = defaultdict(list)
    for name, what in alike.items():
        runs[what].append(often[name])
    made = (
        Collective(kind=kind, group=group, result_bytes=size, static=len(times), runs=sum(times))
        for (kind, group, size), times in runs.items()
    )
    return tuple(sorted(made, key=lambda c: -c.sent_bytes))


def _collective(
    i: Instruction, where: Computation, computations: Mapping[str, Computation]
) -> tuple[str, Instruction] | None:
    """The kind of a collective, and the instruction that names the devices; None for any other
    instruction."""
    if i.opcode == "fusion" and "all-reduce-scatter" in (i.attribute("calls") or ""):
        # An all-reduce of which each device keeps a piece.
        inside = computations[i.attribute("calls") or ""].instructions
        return "reduce-scatter", next((x for x in inside if x.opcode == "all-reduce"), i)
    base = i.opcode.removesuffix("-start")
    if base == "collective-permute":
        # A product's operand or result goes round a ring in pieces while the product is computed.
        window = re.search(r"windowed_dot_general_body_(ag|rs)", where.name)
        return base if window is None else _WINDOWED[window[1]], i
    return (base, i) if base in _KINDS else None


def _identity(i: Instruction) -> str | None:
    """The attributes that the start, the middle and the end of an asynchronous collective share:
    channel, line of the program and devices. The channel alone is not enough, as all collectives of
    a `shard_map` have the same one."""
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
        return int(max(arrays, default=0))  # its type has the operand beside the result
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
    """The number of devices that a piece visits until it is back at the first; 0 if it never is."""
    start = device = next(iter(next_of), "")
    for count in range(1, len(next_of) + 1):
        device = next_of.get(device, "")
        if device == start:
            return count
    return 0
