"""The memory of a device in the course of a step, and where it is fullest.

A program only knows its own arguments. Everything that is kept for other programs is in memory too:
the optimizer state while tokens are drawn, the prompts' cache while the layers are taken apart.
This is arithmetic on the compiler's figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cipo_jax.plan.compile import Compiled


@dataclass(frozen=True, kw_only=True)
class Call:
    """A compiled program and its place in the cycle; the fields are those of `Program`."""

    phase: str
    name: str
    at_once: int
    per_step: int
    makes: str | None
    frees: tuple[str, ...]
    compiled: Compiled

    @property
    def label(self) -> str:
        return f"{self.phase}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One device's memory at the worst moment of a call."""

    label: str
    kept: dict[str, int]
    """Name -> bytes that were in memory before the call, used by it or not."""
    growth: int
    """Bytes that the call needs beyond them."""
    is_refused: bool
    """The compiler refused the program; `growth` is then taken from its message, and may be too
    small."""

    @property
    def total(self) -> int:
        return sum(self.kept.values()) + self.growth


def moments(resident: Mapping[str, int], calls: Sequence[Call]) -> list[Moment]:
    """The worst moment of each call, in their order.

    Args:
      resident: name -> bytes that stay in memory from the first call to the last.
    """
    kept = dict(resident)
    found = []
    for call in calls:
        memory = call.compiled.memory
        if memory is None:
            growth = max(0, (call.compiled.refused_bytes or 0) - sum(kept.values()))
            found.append(Moment(label=call.label, kept=dict(kept), growth=growth, is_refused=True))
            # It is not known what it would have made and what would have been dropped.
            kept = dict(resident)
            continue
        before = (call.at_once - 1) * memory.results
        found.append(
            Moment(
                label=call.label,
                kept=dict(kept),
                growth=before + memory.growth,
                is_refused=False,
            )
        )
        if call.makes is not None:
            kept[call.makes] = call.at_once * memory.results
        for name in call.frees:
            kept.pop(name, None)
    return found


def fits(found: Sequence[Moment], available_bytes: int) -> bool:
    """Whether every call compiled and stays within the memory of a device."""
    return all(not m.is_refused and m.total <= available_bytes for m in found)


def fullest(found: Sequence[Moment]) -> Moment:
    """The moment that needs most memory."""
    return max(found, key=lambda m: m.total)
