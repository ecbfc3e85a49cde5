"""The unit that an answer may carry: the right one is dropped, any other is kept and makes the
answer differ from the reference.
"""

from __future__ import annotations

import functools
import re

_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox|textrm|operatorname|rm)\s?\{([^{}]{0,60})\}")
_NUMBER_WITH_UNIT = re.compile(
    r"[-+]?\d[\d.,/]*(?:(?:\\times|e)[-+\d^{}]+)?[A-Za-z°µΩ%][A-Za-z0-9°µΩ%/^]*"
)
_EXPONENT = re.compile(r"\^\{(\d)\}")
_SPACING = re.compile(r"\\[,;:! ]|\\cdot|[\s~·$*]")

SPELLED: dict[str, tuple[str, ...]] = {
    "cm": ("centimeter", "centimetre"),
    "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"),
    "mm": ("millimeter", "millimetre"),
    "in": ("inch", "inche"),
    "ft": ("foot", "feet"),
    "g": ("gram",),
    "kg": ("kilogram",),
    "s": ("second", "sec"),
    "min": ("minute",),
    "h": ("hour", "hr"),
    "K": ("kelvin",),
    "J": ("joule",),
    "N": ("newton",),
    "W": ("watt",),
    "V": ("volt",),
    "Hz": ("hertz",),
    "Pa": ("pascal",),
    "eV": ("electronvolt", "electron volt"),
    "^\\circ": ("^{\\circ}", "°", "degree", "deg", "\\circ", "\\degree"),
    "%": ("\\%", "percent"),
    "\\$": ("$", "dollar", "USD"),
}
"""Names that mean the same as a symbol, in the singular."""


def without_unit(answer: str, unit: str) -> str:
    r"""`answer` without `unit` at its end (or before it, for a currency), however it is typeset:
    `5 cm`, `5\text{ cm}`, `5\,\mathrm{cm}`, `5 centimeters`. Unchanged if it carries none or
    another, or if `unit` is empty.
    """
    if not unit:
        return answer
    flat = _flat(answer)
    for name in sorted(_names(unit), key=len, reverse=True):
        if flat.endswith(name) and _is_value(head := flat.removesuffix(name)):
            return head
        if flat.startswith(name) and _is_value(tail := flat.removeprefix(name)):
            return tail
    return answer


@functools.lru_cache(maxsize=1024)
def known_unit(answer: str) -> str:
    """The symbol of the unit, of those in `SPELLED`, that the answer carries; else empty."""
    flat = _flat(answer)
    for name, symbol in _known_names():
        if (flat.endswith(name) and _is_value(flat.removesuffix(name))) or (
            flat.startswith(name) and _is_value(flat.removeprefix(name))
        ):
            return symbol
    return ""


def has_unit(answer: str) -> bool:
    r"""Whether the answer looks like a number with a unit (`5 m`, `3 m/s`, `2 \text{ cm}^2`)."""
    return _NUMBER_WITH_UNIT.fullmatch(_flat(answer)) is not None


def _flat(text: str) -> str:
    text = _WRAPPED.sub(r"\1", text.replace("\\$", "\x00"))
    text = _SPACING.sub("", text).replace("\x00", "$").replace("{}", "").strip(".")
    return _EXPONENT.sub(r"^\1", text)


@functools.lru_cache(maxsize=1024)
def _names(unit: str) -> frozenset[str]:
    flat = _flat(unit)
    return frozenset({flat}.union(*(group for group in _groups().values() if flat in group)))


@functools.cache
def _groups() -> dict[str, set[str]]:
    """The names of each symbol of `SPELLED`, flat, in singular and plural."""
    groups = {}
    for symbol, spelled in SPELLED.items():
        names = {_flat(symbol), *(_flat(name) for name in spelled)}
        names.discard("")
        groups[symbol] = names | {name + "s" for name in names if len(name) > 2}
    return groups


@functools.cache
def _known_names() -> list[tuple[str, str]]:
    """(name, symbol), the longest names first: `cm` before `m`."""
    found = [(name, symbol) for symbol, names in _groups().items() for name in names]
    return sorted(found, key=lambda pair: -len(pair[0]))


def _is_value(text: str) -> bool:
    """Whether the rest is a value and not the first letters of another unit (`5c` of `5cm`)."""
    return bool(text) and not re.search(r"(?<!\\)(?<![\\A-Za-z])[A-Za-z°µ/]+$", text)
