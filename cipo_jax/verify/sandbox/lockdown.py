"""A freshly forked process gives up every right that a judged program does not need.

The order matters: user id before the parent-death signal (which a change of user clears), and both
before the filter that refuses such calls. Any failure raises, and the program is then never run.
"""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Mapping

from cipo_jax.verify.protocol import NUM_FILES, ProgramLimits
from cipo_jax.verify.sandbox import kernel, landlock, namespaces, seccomp
from cipo_jax.verify.sandbox.layers import Isolation


def lock_down(
    isolation: Isolation, limits: ProgramLimits, *, files: tuple[int, ...], rules: int, report: int,
    uid: int, parent: int,
) -> int:  # fmt: skip
    """Confines this process for good.

    Args:
      files: descriptors that become 0 to 4.
      rules: the Landlock ruleset; -1 without.
      report: a descriptor that is kept.
      uid: user id to change to, where the isolation has one.
      parent: process id of the cell, whose death must be ours.
    Returns: the new number of `report`; every other descriptor is closed.
    Raises: OSError or ValueError where a layer can't be put in place.
    """
    os.setsid()
    report, rules = _arrange(files, report, rules)
    os.chdir(namespaces.SCRATCH if isolation.namespaces else "/")
    if isolation.uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
    for kind, amount in _resource_limits(isolation, limits).items():
        resource.setrlimit(kind, (amount, amount))
    if isolation.uid:
        os.setresuid(uid, uid, uid)
    if isolation.level != "none":
        kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the cell died while the program was being locked down.")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if isolation.landlock:
        landlock.restrict(rules)
    if rules >= 0:
        os.close(rules)
    if isolation.seccomp:
        strict = isolation.seccomp == "strict"
        seccomp.install(seccomp.program(kernel.MACHINE, pid=os.getpid(), strict=strict))
    return report


def _arrange(files: tuple[int, ...], report: int, rules: int) -> tuple[int, int]:
    """Moves the descriptors to 0..4, `report` to 5 and `rules` to 6; closes all others."""
    kept = [*files, report, *([rules] if rules >= 0 else [])]
    # First out of the way of the targets, all at once.
    high = [os.dup(descriptor) for descriptor in kept if descriptor >= 0]
    while min(high) <= len(kept):
        high = [os.dup(descriptor) for descriptor in high]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target, inheritable=True)
    os.closerange(len(kept), 65536)
    return NUM_FILES, NUM_FILES + 1 if rules >= 0 else -1


def _resource_limits(isolation: Isolation, limits: ProgramLimits) -> Mapping[int, int]:
    amounts = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_STACK: 64 * 2**20,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.output_bytes,
    }
    if limits.wall_s:
        amounts[resource.RLIMIT_CPU] = math.ceil(limits.wall_s)
    if isolation.uid:
        # Counted per user id: under a shared one the limit would be the user's, not the program's.
        amounts[resource.RLIMIT_NPROC] = 32
    _, most_stack = resource.getrlimit(resource.RLIMIT_STACK)
    if most_stack != resource.RLIM_INFINITY:
        amounts[resource.RLIMIT_STACK] = min(most_stack, amounts[resource.RLIMIT_STACK])
    return amounts
