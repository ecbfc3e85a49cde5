"""What lies in a device's memory as a step goes on, and where it is fullest.

A program only knows its own arguments. Beside it lies everything that is kept for other programs:
an optimizer state while tokens are drawn, a prompt's cache while the layers are taken apart. Pure
arithmetic on what the compiler measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cipo_jax.plan.compile import Compiled


@dataclass(frozen=True, kw_only=True)
class Call:
    """A program's place in the cycle, and what became of it."""

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
    """Bytes by name of what lay there before the call, used by it or not."""
    growth: int
    """What the call needs beyond that."""
    is_refused: bool
    """The compiler refused the program; `growth` is then what it asked for beyond what is kept, as
    far as it said so, and may be too small."""

    @property
    def total(self) -> int:
        return sum(self.kept.values()) + self.growth


def moments(resident: Mapping[str, int], calls: Sequence[Call]) -> list[Moment]:
    """Memory over the calls, in their order.

    Args:
      resident: bytes by name of what stays from the first call to the last.
    """
    kept = dict(resident)
    found = []
    for call in calls:
        memory = call.compiled.memory
        if memory is None:
            growth = max(0, (call.compiled.refused_bytes or 0) - sum(kept.values()))
            found.append(Moment(label=call.label, kept=dict(kept), growth=growth, is_refused=True))
            # What it would have made, and what would have been dropped, is not known.
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
    """The moment that needs most."""
    return max(found, key=lambda m: m.total)
