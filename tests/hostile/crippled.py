"""Runs a module on a kernel that lacks calls.

    python -m tests.hostile.crippled 444,446 MODULE ...

A real seccomp filter answers the named calls with ENOSYS, for this process and all that it starts.
So the sandbox meets a machine without Landlock, without namespaces or without seccomp.
"""

from __future__ import annotations

import runpy
import sys

from cipo_jax.verify.sandbox import kernel, seccomp

_ENOSYS = 38
_LOAD, _EQUAL, _RETURN, _ALLOW, _ERRNO = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000


def refuse(numbers: list[int]) -> None:
    """From here on the calls of these numbers don't exist."""
    ops = [seccomp._op(_LOAD, 0)]
    for number in numbers:
        ops += [seccomp._op(_EQUAL, number, 0, 1), seccomp._op(_RETURN, _ERRNO | _ENOSYS)]
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(b"".join([*ops, seccomp._op(_RETURN, _ALLOW)]))


if __name__ == "__main__":
    refuse([int(number) for number in sys.argv[1].split(",")])
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
