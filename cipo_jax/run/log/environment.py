"""What a run ran on: versions, machine, command line, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "cipo-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy",
    "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "math-verify", "sympy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, machine, command line, and the commit of the package's checkout where it has one.

    Nothing of the process's environment variables, which may hold secrets.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
    }


def _commit(folder: Path) -> str | None:
    """Hash of the checkout, with `+changes` if tracked files differ from it; None outside one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in someone else's checkout, which says nothing about it.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "-uno") else commit
