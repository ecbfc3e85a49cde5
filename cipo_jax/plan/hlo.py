"""A compiled program's text as records: computations of instructions, and the sizes of arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Instruction:
    """`name = type opcode(inside), rest`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    inside: str
    """The text in the parentheses: operands, a constant's value, a parameter's index."""
    rest: str
    """Attributes."""

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, without its quotes."""
        match = re.search(rf'\b{name}=(?:"([^"]*)"|(%[\w.\-]+|\w+))', self.rest)
        return (match[1] or match[2]) if match else None


@dataclass
class Computation:
    """Instructions in their order; the last one is the result."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        return self.instructions[-1]

    @property
    def results(self) -> list[Instruction]:
        """The instructions that make the result, or the parts of it."""
        root = self.root
        while root.opcode == "bitcast":
            root = self.by_name[root.operands[0]]
        return [self.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]

    def uses(self, value: Instruction) -> list[Instruction]:
        """The instructions that take a value, directly or through a bitcast."""
        users = [i for i in self.instructions if value.name in i.operands]
        return [
            use
            for user in users
            for use in (self.uses(user) if user.opcode == "bitcast" else [user])
        ]


def parse(text: str) -> tuple[dict[str, Computation], Computation]:
    """All computations by name, and the one that is the program.

    Raises: ValueError if the text is not a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line)
        if header:
            current = computations[header[2]] = Computation(header[2])
            entry = current if header[1] else entry
        elif current is not None and " = " in line:
            current.instructions.append(_instruction(line))
    if entry is None:
        raise ValueError("The program's text has no ENTRY computation: is it compiled HLO?")
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest, 0) - 1
    inside, rest = rest[:close], rest[close + 1 :]
    operands = tuple(re.findall(r"%[\w.\-]+", inside))
    return Instruction(name, type_, opcode, operands, inside, rest)


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"Unbalanced parentheses in the program's text: {text[:80]}")


def called(i: Instruction) -> list[str]:
    """Names of the computations that an instruction runs, without the functions of reductions."""
    names = [
        i.attribute(key)
        for key in ("calls", "body", "condition", "true_computation", "false_computation")
    ]
    if i.opcode == "call":
        names.append(i.attribute("to_apply"))
    branches = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
    return [n for n in names if n] + (re.findall(r"%[\w.\-]+", branches[1]) if branches else [])


def sizes(type_: str, *, in_memory_only: bool = False) -> list[float]:
    """Bytes of each array of a type, without tiles' padding.

    Args:
      in_memory_only: 0 for arrays on chip, whose layout names another memory than 0.
    """
    return [_size(array, in_memory_only) for array in _ARRAY.finditer(type_)]


def _size(array: re.Match[str], in_memory_only: bool) -> float:
    if in_memory_only and array[3] and re.search(r"S\([1-9]\d*\)", array[3]):
        return 0.0
    return _BYTES.get(array[1], 0) * math.prod(int(n) for n in array[2].split(",") if n)
