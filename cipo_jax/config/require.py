"""The one way of refusing a value: its setting, the value, and the rule."""

from __future__ import annotations


def require(ok: bool, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def require_at_least(low: float, part: object, section: str, *names: str) -> None:
    """Every named field of a section is `low` or more. Raises: ValueError."""
    for name in names:
        value = getattr(part, name)
        require(value >= low, f"{section}.{name} is {value}; it must be at least {low}.")


def require_positive(part: object, section: str, *names: str) -> None:
    """Every named field of a section is above 0. Raises: ValueError."""
    for name in names:
        value = getattr(part, name)
        require(value > 0, f"{section}.{name} is {value}; it must be positive.")
