"""The system calls that a judged program may make: an allow-list as a classic BPF program.

The list is by name; `NUMBERS` holds the two architectures that accelerators' hosts have. Anything
else is refused with EPERM, a call of a foreign architecture (int 0x80, x32) kills the program.
No process can be made (clone is for threads only), no socket, no signal to others, no attribute of
a file changed, and no kernel subsystem entered that a program with no network needs not.

`strict` refuses every call that takes a path with EACCES: for machines that offer neither
namespaces nor Landlock, where what the program may import must have been imported before.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

from cipo_jax.verify.sandbox import kernel

# Names, then the number on x86-64 and on aarch64 (None: the architecture lacks the call).
_FREE = """
read 0 63|write 1 64|close 3 57|fstat 5 80|poll 7 -|ppoll 271 73|lseek 8 62|mmap 9 222
mprotect 10 226|munmap 11 215|brk 12 214|rt_sigaction 13 134|rt_sigprocmask 14 135
rt_sigreturn 15 139|rt_sigpending 127 136|rt_sigtimedwait 128 137|rt_sigsuspend 130 133
pread64 17 67|pwrite64 18 68|readv 19 65|writev 20 66|preadv 295 69|pwritev 296 70
preadv2 327 286|pwritev2 328 287|pipe 22 -|pipe2 293 59|select 23 -|pselect6 270 72
sched_yield 24 124|mremap 25 216|msync 26 227|mincore 27 232|madvise 28 233
dup 32 23|dup2 33 -|dup3 292 24|pause 34 -|nanosleep 35 101|clock_nanosleep 230 115
getitimer 36 102|setitimer 38 103|alarm 37 -|getpid 39 172|getppid 110 173|gettid 186 178
getuid 102 174|geteuid 107 175|getgid 104 176|getegid 108 177|getresuid 118 148
getresgid 120 150|getgroups 115 158|getpgrp 111 -|getpgid 121 155|getsid 124 156
uname 63 160|flock 73 32|fsync 74 82|fdatasync 75 83|ftruncate 77 46
sysinfo 99 179|times 100 153|getrusage 98 165|gettimeofday 96 169|time 201 -
clock_gettime 228 113|clock_getres 229 114|futex 202 98|futex_waitv 449 449
set_tid_address 218 96|set_robust_list 273 99|get_robust_list 274 100|rseq 334 293
exit 60 93|exit_group 231 94|getrandom 318 278|restart_syscall 219 128|sigaltstack 131 132
arch_prctl 158 -|sched_getaffinity 204 123|sched_getparam 143 121|sched_getscheduler 145 120
sched_get_priority_max 146 125|sched_get_priority_min 147 126|getpriority 140 141|getcpu 309 168
getrlimit 97 163|epoll_create 213 -|epoll_create1 291 20|epoll_ctl 233 21|epoll_wait 232 -
epoll_pwait 281 22|eventfd 284 -|eventfd2 290 19|timerfd_create 283 85|timerfd_settime 286 86
timerfd_gettime 287 87|membarrier 324 283|sendfile 40 71|copy_file_range 326 285|fadvise64 221 223
close_range 436 436|umask 95 166|getcwd 79 17|fallocate 285 47
"""

_PATHS = """
open 2 -|openat 257 56|stat 4 -|lstat 6 -|statx 332 291|access 21 -|faccessat 269 48
faccessat2 439 439|readlink 89 -|readlinkat 267 78|chdir 80 49|fchdir 81 50|getdents 78 -
getdents64 217 61|mkdir 83 -|mkdirat 258 34|rmdir 84 -|unlink 87 -|unlinkat 263 35|rename 82 -
renameat 264 38|renameat2 316 276|statfs 137 43|fstatfs 138 44
"""

# Allowed for some arguments only; see `_fates`.
_CHECKED = """
clone 56 220|clone3 435 435|tgkill 234 131|prlimit64 302 261|prctl 157 167|ioctl 16 29
newfstatat 262 79|fcntl 72 25
"""


def _table(text: str) -> dict[str, tuple[int | None, int | None]]:
    rows = [row.split() for line in text.split("\n") for row in line.split("|") if row]
    return {name: (int(x86), None if arm == "-" else int(arm)) for name, x86, arm in rows}


FREE, PATHS, CHECKED = _table(_FREE), _table(_PATHS), _table(_CHECKED)
NUMBERS: dict[str, dict[str, int]] = {
    machine: {
        name: number
        for name, numbers in (FREE | PATHS | CHECKED).items()
        if (number := numbers[column]) is not None
    }
    for column, machine in enumerate(("x86_64", "aarch64"))
}
"""Number of every call named here, by architecture."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# Offsets in struct seccomp_data (both architectures are little-endian).
_NR, _ARCH = 0, 4
_ARG = [16 + 8 * index for index in range(6)]

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06

_PID = 0x7ADECADE  # stands for the process in the template; no process id is that large

_CLONE_THREAD = 0x00010000
_AT_EMPTY_PATH = 0x1000
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_SIGKILL, _RLIMIT_STACK = 9, 3
# TCGETS, TIOCGWINSZ, FIONREAD, FIOCLEX, FIONCLEX, FIONBIO: asked for by Python's own file objects.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5451, 0x5450, 0x5421)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC. Not
# F_SETOWN and F_SETSIG, which make the kernel send a signal of the caller's choice to a process.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)

Fate = list[bytes]
"""Instructions that decide about a call; every way through them ends in a return."""


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; a jump goes over so many of those that follow it."""
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _errno(number: int) -> Fate:
    return [_op(_RETURN, 0x00050000 | number)]


_ALLOW, _KILL = [_op(_RETURN, 0x7FFF0000)], [_op(_RETURN, 0x80000000)]
_PRETEND, _EPERM, _EACCES, _ENOSYS = _errno(0), _errno(1), _errno(13), _errno(38)


def _if(offset: int, test: int, values: Sequence[int], then: Fate, otherwise: Fate) -> Fate:
    """`then`, where the 32 bits at this offset pass the test with one of the values."""
    last = len(values) - 1
    jumps = [
        _op(test, value, last - place, len(then) if place == last else 0)
        for place, value in enumerate(values)
    ]
    return [_op(_LOAD, offset), *jumps, *then, *otherwise]


def _fates(strict: bool) -> dict[str, Fate]:
    """By the name of the call; any other is refused. The upper half of an argument is looked at
    only where it is a pointer.
    """
    to_itself = _if(_ARG[2], _EQUAL, [_SIGKILL], _EPERM, _ALLOW)
    new_limit = _if(_ARG[1], _EQUAL, [_RLIMIT_STACK], _PRETEND, _EPERM)
    if_no_new_limit = _if(
        _ARG[2], _EQUAL, [0], _if(_ARG[2] + 4, _EQUAL, [0], _ALLOW, new_limit), new_limit
    )
    return {
        **dict.fromkeys(FREE, _ALLOW),
        **dict.fromkeys(PATHS, _EACCES if strict else _ALLOW),
        "clone": _if(_ARG[0], _ANY_BIT, [_CLONE_THREAD], _ALLOW, _EPERM),
        # glibc falls back to clone, whose flags a filter can see.
        "clone3": _ENOSYS,
        # To itself, and not SIGKILL: what is killed so was killed from outside.
        "tgkill": _if(_ARG[0], _EQUAL, [_PID], to_itself, _EPERM),
        # Its own limits may be read, and none be changed: a lower one of CPU time would be a way
        # to be killed. Scripts ask for a larger stack: they have one, and hear that all is well.
        "prlimit64": _if(_ARG[0], _EQUAL, [0, _PID], if_no_new_limit, _EPERM),
        "prctl": _if(_ARG[0], _EQUAL, [_PR_SET_NAME, _PR_GET_NAME], _ALLOW, _EPERM),
        "ioctl": _if(_ARG[1], _EQUAL, _IOCTLS, _ALLOW, _EPERM),
        "fcntl": _if(_ARG[1], _EQUAL, _FCNTLS, _ALLOW, _EPERM),
        # glibc's fstat is newfstatat with an empty path.
        "newfstatat": _if(_ARG[3], _ANY_BIT, [_AT_EMPTY_PATH], _ALLOW, _EACCES)
        if strict
        else _ALLOW,
    }


def program(machine: str, *, pid: int, strict: bool) -> bytes:
    """The filter, as an array of `struct sock_filter`.

    Args:
      machine: `x86_64` or `aarch64`.
      pid: the process that installs it; it may send signals to itself (abort does).
      strict: refuse calls that take a path.
    Raises: ValueError for another machine.
    """
    template = _template(machine, strict)
    return template.replace(struct.pack("<I", _PID), struct.pack("<I", pid))


@functools.cache
def _template(machine: str, strict: bool) -> bytes:
    """The filter for the process `_PID`; made once, since a process is locked down in less time
    than the making takes.
    """
    if machine not in _AUDIT_ARCH:
        raise ValueError(f"no system-call table for {machine}: x86_64 and aarch64 are known.")
    start = [
        *(_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), *_KILL),
        _op(_LOAD, _NR),
    ]
    if machine == "x86_64":
        start += [_op(_AT_LEAST, _X32_BIT, 0, 1), *_KILL]
    by_name = _fates(strict)
    fates = {number: by_name[name] for name, number in NUMBERS[machine].items()}
    # Neighbours of one fate are one interval, named by the number that it starts with.
    intervals = [(0, fates.get(0, _EPERM))]
    for number in range(1, max(fates) + 2):
        fate = fates.get(number, _EPERM)
        if fate != intervals[-1][1]:
            intervals.append((number, fate))
    return b"".join(start + _search(intervals))


def _search(intervals: list[tuple[int, Fate]]) -> Fate:
    """A binary search for the number's interval: the kernel compiles the filter, and walks it once
    for every call there is, each time it is installed, so that a plain list of comparisons would
    cost more than the program's fork.
    """
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    low, high = _search(intervals[:middle]), _search(intervals[middle:])
    if len(low) < 256:
        return [_op(_AT_LEAST, intervals[middle][0], len(low), 0), *low, *high]
    return [_op(_AT_LEAST, intervals[middle][0], 0, 1), _op(_JUMP, len(low)), *low, *high]


def install(code: bytes) -> None:
    """Puts the filter on this thread, for good. Needs no_new_privs to be set.

    Raises: OSError where the kernel has no seccomp filters.
    """
    set_mode_filter, no_flags = 1, 0
    program = _FilterProgram(len(code) // 8, code)
    kernel.syscall(kernel.number("seccomp"), set_mode_filter, no_flags, ctypes.addressof(program))


class _FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
