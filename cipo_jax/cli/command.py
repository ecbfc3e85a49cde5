"""A command of `cipo`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its name, its options and the function behind them."""

    name: str
    help: str
    description: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, list[str]], int]
    """Takes the parsed options and those that the parser does not know; returns the exit status."""
    takes_settings: bool = False
    """Options that the parser does not know set fields of the configuration."""
    has_own_help: bool = False
    """`--help` is an option of its own."""
