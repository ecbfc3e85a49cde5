"""The check that every section of the configuration makes of its fields."""

from __future__ import annotations


def require(ok: bool, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)
