"""Landlock: the kernel's own file rules for an unprivileged process (Linux 5.13 on).

It governs opening, making and removing files, TCP (ABI 4) and signals to processes outside
(ABI 6). It does not govern chmod, utime or UDP: the seccomp list refuses those.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from cipo_jax.verify.sandbox import kernel

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_RULE_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1


def abi() -> int:
    """Version of the kernel's Landlock; 0 where there is none."""
    try:
        return kernel.syscall(
            kernel.LANDLOCK_CREATE_RULESET,
            None,
            0,
            _CREATE_RULESET_VERSION,
        )
    except OSError:
        return 0


def ruleset(*, readable: Iterable[str], devices: Iterable[str], scratch: str) -> int:
    """A ruleset as a file descriptor.

    Args:
      readable: files and folders that may be read.
      devices: files that may be read and written.
      scratch: a folder where anything may be done; empty: none.
    """
    version = abi()
    handled = (1 << 13) - 1  # the thirteen rights of ABI 1
    handled |= _REFER * (version >= 2) | _TRUNCATE * (version >= 3) | _IOCTL_DEV * (version >= 5)
    tcp = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0
    attributes = struct.pack("<QQQ", handled, tcp, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, attributes, size, 0)
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in devices:
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    if scratch:
        _allow(rules, scratch, handled & ~_EXECUTE)
    return rules


def restrict(rules: int) -> None:
    """Puts this thread and what it starts under the ruleset, for good. Needs no_new_privs."""
    kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, rules, 0)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what isn't there needs no rule
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
        kernel.syscall(
            kernel.LANDLOCK_ADD_RULE,
            rules,
            _RULE_PATH_BENEATH,
            struct.pack("<Qi", rights, target),
            0,
        )
    finally:
        os.close(target)
