"""Which isolation holds here: found out by attacks that run inside it, as any program would.

A list of kernel features does not tell: a container may offer Landlock and refuse it, or allow
namespaces and leave the host's files in them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from cipo_jax.verify.protocol import ProgramLimits
from cipo_jax.verify.sandbox import runner
from cipo_jax.verify.sandbox.host import Nursery, SandboxError
from cipo_jax.verify.sandbox.layers import UNPROTECTED, Isolation, candidates

_ATTACKS = """
import ctypes, os, socket, sys

def attempt(group, what, action):
    try:
        action()
    except MemoryError:
        return
    except Exception:
        return
    print("OPEN", group, what)

def write(folder):
    path = os.path.join(folder, ".probe-%d" % os.getpid())
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
    os.unlink(path)

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def call(number, *arguments):
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError

X86 = os.uname().machine == "x86_64"
print("CONTROL", sum(range(10)))
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM),
                     (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_NETLINK, socket.SOCK_RAW)):
    attempt("network", "socket %d" % family, lambda: socket.socket(family, kind).close())
for path in ("/etc/passwd", "/etc/hostname", "/proc/1/environ", "/proc/self/environ",
             "/proc/%d/environ" % os.getppid(), SECRET):
    attempt("reading", path, lambda: open(path, "rb").read(1))
for folder, name in (("/etc", "passwd"), ("/proc", "1"), ("/dev", "shm"), ("/", "sys")):
    attempt("reading", folder, lambda: os.listdir(folder).index(name))
for folder in FOLDERS:
    attempt("writing", folder, lambda: write(folder))
attempt("attributes", "fchmod", lambda: os.fchmod(1, 0o600))
attempt("processes", "fork", fork)
attempt("processes", "spawn", lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0))
attempt("signals", "kill", lambda: os.kill(os.getppid(), 0))
attempt("signals", "kill all", lambda: os.kill(-1, 0))
attempt("kernel", "new user namespace", lambda: call(272 if X86 else 97, ctypes.c_int(0x10000000)))
attempt("kernel", "ptrace", lambda: call(101 if X86 else 117, 16, os.getppid(), 0, 0))
attempt("kernel", "io_uring", lambda: call(425, 1, (ctypes.c_char * 120)()))
attempt("kernel", "keyring", lambda: call(250 if X86 else 219, 0, -3, 1))
attempt("kernel", "memfd", lambda: os.memfd_create("probe"))
attempt("memory", "allocation", lambda: bytearray(MEMORY))
print("END")
"""

GROUPS = ("network", "reading", "writing", "attributes", "processes", "signals", "kernel", "memory")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What one isolation let through: `open` holds "group what" for each attack that succeeded;
    `error` says why it could not be tried.
    """

    isolation: Isolation
    open: tuple[str, ...] = ()
    error: str = ""

    @property
    def holds(self) -> bool:
        """Every attack failed, and the harmless control ran."""
        return not self.open and not self.error

    def __str__(self) -> str:
        trouble = self.error or ("lets through " + ", ".join(self.open) if self.open else "holds")
        return f"{self.isolation.level} ({self.isolation}): {trouble}"


def examine(nursery: Nursery, isolation: Isolation, limits: ProgramLimits) -> Examination:
    """Attacks from inside one isolation."""
    try:
        cell = nursery.cell(isolation, scratch_bytes=limits.scratch_bytes)
        try:
            folders: tuple[str, ...] = ("/", "/var/tmp", "/dev/shm", "/run", "/home", "/etc")
            if not isolation.namespaces:  # otherwise its own scratch is there
                folders = (*folders, "/tmp")
            names = {
                "SECRET": __file__, "FOLDERS": folders, "MEMORY": limits.memory_bytes + 2**26,
            }  # fmt: skip
            source = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + _ATTACKS
            result = runner.run(cell, "stdio", {"source": source}, limits)
        finally:
            cell.close()
    except SandboxError as error:
        return Examination(isolation=isolation, error=str(error))
    lines = result.stdout.decode(errors="replace").splitlines()
    if lines[:1] != ["CONTROL 45"] or lines[-1:] != ["END"]:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Examination(
            isolation=isolation,
            error=f"the control program failed ({result.exit.status}): {' '.join(said)[:200]}",
        )
    escapes = tuple(line.removeprefix("OPEN ") for line in lines if line.startswith("OPEN "))
    return Examination(isolation=isolation, open=escapes)


def choose(
    nursery: Nursery, limits: ProgramLimits, *, level: str, allow_unsandboxed: bool
) -> tuple[Examination, list[Examination]]:
    """The strongest isolation that holds here, and what was found out about those before it.

    Args:
      level: `auto`, or the only level to try.
      allow_unsandboxed: fall back to resource limits alone.
    Raises: SandboxError where nothing holds and that isn't allowed.
    """
    failed: list[Examination] = []
    for isolation in candidates() if sys.platform == "linux" else []:
        if level in ("auto", isolation.level):
            examined = examine(nursery, isolation, limits)
            if examined.holds:
                return examined, failed
            failed.append(examined)
    if not allow_unsandboxed:
        tried = "".join(f"\n  {examined}" for examined in failed) or " no layer of it is built in."
        raise SandboxError(
            f"verify.isolation is {level!r}, and no sandbox for model-written programs holds on "
            f"this machine:{tried}\nJudge on another machine (`cipo verify-serve`), or set "
            "verify.allow_unsandboxed to run them with resource limits only: they can then read "
            "and change whatever this user can."
        )
    return Examination(isolation=UNPROTECTED, open=GROUPS[:-1]), failed
