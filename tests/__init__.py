"""Tests, in folders that mirror the packages of `cipo_jax`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
