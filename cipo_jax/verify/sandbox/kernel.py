"""The system calls that Python's standard library lacks, by number, for x86-64 and aarch64.

Everything here raises OSError when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

MACHINE = platform.machine()
"""`x86_64` or `aarch64`; the sandbox knows no other."""

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277},
}
# The same number on every architecture (added after the tables were unified).
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x08000000, 0x10000000, 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

_CAPABILITY_HEADER = struct.pack("<Ii", 0x20080522, 0)  # version 3, of this thread


def syscall(number: int, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A raw system call; each argument fills its register: an integer, or the address of a buffer.

    Whatever is built here is built for every program that is judged, in memory that its process
    shares with the cell until something writes to it: hence plain bytes, and no ctypes objects.
    """
    result: int = _libc.syscall(number, *args, *[None] * (6 - len(args)))
    return _checked(result)


def number(name: str) -> int:
    """Number of one of the named system calls that this module issues itself."""
    if MACHINE not in _NUMBERS:
        raise OSError(f"the sandbox has no system-call table for {MACHINE}.")
    return _NUMBERS[MACHINE][name]


def prctl(option: int, argument: int) -> None:
    """`prctl(option, argument, 0, 0, 0)`."""
    _checked(_libc.prctl(option, argument, 0, 0, 0))


def unshare(flags: int) -> None:
    """New namespaces for this process (for its next child, in the case of CLONE_NEWPID)."""
    _checked(_libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """`mount(2)`."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() if kind else None,
            flags,
            data.encode() if data else None,
        )
    )


def umount(target: str) -> None:
    """Detaches a mount, with everything below it."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH))


def pivot_root(new_root: str, put_old: str) -> None:
    """`pivot_root(2)`."""
    syscall(number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old))


def drop_capabilities() -> None:
    """Empties the effective, permitted and inheritable sets of this thread."""
    syscall(number("capset"), _CAPABILITY_HEADER, bytes(24))


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
