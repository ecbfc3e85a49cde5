"""The sandbox against the hostile collection, in every configuration that can be built here."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from cipo_jax.verify.sandbox import kernel, layers, seccomp
from tests.hostile import elsewhere

UNSHARE, SECCOMP = ("272", "317") if kernel.MACHINE == "x86_64" else ("97", "277")
LANDLOCK_CREATE, LANDLOCK_RESTRICT = "444", "446"


def run(command: list[str], timeout: float = 240.0) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def hold(result: dict, level: str) -> None:
    if "refused" in result:
        pytest.skip(f"can't be built here: {result['refused'][:400]}")
    assert result["level"] == level
    assert not result["problems"], "\n".join(result["problems"])
    assert result["judged"] >= 500


def test_whole_collection_in_the_strongest_isolation() -> None:
    result = run(elsewhere.as_this_user("-m", "tests.hostile.run", "auto", "--deadline", "2"))
    print(result.get("report"))
    hold(result, result.get("level", ""))


LEVELS = ["user-namespaces", "landlock", "strict"]


@pytest.mark.parametrize("level", LEVELS)
def test_collection_as_this_user(level: str) -> None:
    hold(run(elsewhere.as_this_user("-m", "tests.hostile.run", level, "--skip-timeouts")), level)


@pytest.mark.parametrize("level", LEVELS)
def test_collection_as_a_user_without_rights(level: str) -> None:
    if reason := elsewhere.why_not_nobody():
        pytest.skip(reason)
    hold(run(elsewhere.as_nobody("-m", "tests.hostile.run", level, "--skip-timeouts")), level)


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ([UNSHARE], "landlock"),
        ([UNSHARE, LANDLOCK_CREATE], "strict"),
        ([LANDLOCK_CREATE], "namespaces" if os.geteuid() == 0 else "user-namespaces"),
    ],
)
def test_choice_on_a_kernel_that_lacks_layers(missing: list[str], level: str) -> None:
    command = ["-m", "tests.hostile.crippled", ",".join(missing), "tests.hostile.report"]
    result = run(elsewhere.as_this_user(*command))
    assert result["level"] == level
    assert result["verdict"] == "right"


def test_refuses_where_nothing_holds_and_says_the_way_out() -> None:
    command = ["-m", "tests.hostile.crippled", SECCOMP, "tests.hostile.report"]
    refused = run(elsewhere.as_this_user(*command))["refused"]
    assert "verify.allow_unsandboxed" in refused
    assert "verify-serve" in refused
    allowed = run(elsewhere.as_this_user(*command, "--allow-unsandboxed"))
    assert allowed["level"] == "none"
    assert not allowed["is_sandboxed"]
    assert "writing OPEN" in allowed["report"]
    assert allowed["verdict"] == "right"


def test_a_level_that_is_asked_for_and_does_not_hold_is_refused_by_name() -> None:
    command = ["-m", "tests.hostile.crippled", LANDLOCK_CREATE, "tests.hostile.run", "landlock"]
    refused = run(elsewhere.as_this_user(*command))["refused"]
    assert "verify.isolation is 'landlock'" in refused


def test_a_program_is_never_run_when_the_lock_down_fails() -> None:
    """The cell starts, but the kernel refuses the last step. The control differs in that only."""
    command = ["tests.hostile.lockdown"]
    control = run(elsewhere.as_this_user("-m", *command))
    assert control == {"is_ready": True, "printed": "I ran\n"}
    failed = run(
        elsewhere.as_this_user("-m", "tests.hostile.crippled", LANDLOCK_RESTRICT, *command)
    )
    assert failed == {"is_ready": False, "printed": ""}


def test_the_probe_notices_an_isolation_that_does_not_hold() -> None:
    """Control of the probes themselves: resource limits alone must let attacks through."""
    from cipo_jax.verify.protocol import ProgramLimits
    from cipo_jax.verify.sandbox import probe
    from cipo_jax.verify.sandbox.host import Nursery

    nursery = Nursery("code")
    limits = ProgramLimits(wall_s=10.0, memory_bytes=2**29, output_bytes=2**20)
    # Under a user id of its own where there is one: the attacks then hit nothing that matters.
    bare = layers.Isolation(level="none", uid=os.geteuid() == 0, seccomp="")
    examined = probe.examine(nursery, bare, limits)
    nursery.close()
    groups = {entry.split()[0] for entry in examined.open}
    assert {"network", "reading", "processes", "kernel"} <= groups
    assert "memory" not in groups  # which a resource limit does hold


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_system_call_numbers_are_those_of_the_headers(machine: str) -> None:
    path, pattern = HEADERS[machine]
    if not Path(path).exists():
        pytest.skip(f"{path} is not installed")
    numbers = {name: int(number) for name, number in re.findall(pattern, Path(path).read_text())}
    if machine == "aarch64":
        numbers["newfstatat"] = numbers["fstatat"]
    mine = seccomp.NUMBERS[machine]
    assert mine == {name: numbers[name] for name in mine}
    own = kernel._NUMBERS[machine]
    assert own == {name: numbers[name] for name in own}


KNOWN = {  # from the manuals, for machines without the headers
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "clone": 56, "prctl": 157, "exit_group": 231,
               "tgkill": 234, "openat": 257, "newfstatat": 262, "prlimit64": 302, "clone3": 435},
    "aarch64": {"fcntl": 25, "ioctl": 29, "openat": 56, "read": 63, "write": 64, "newfstatat": 79,
                "exit_group": 94, "futex": 98, "tgkill": 131, "rt_sigreturn": 139, "prctl": 167,
                "clone": 220, "mmap": 222, "prlimit64": 261, "getrandom": 278, "clone3": 435},
}  # fmt: skip


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_system_call_numbers_that_everybody_knows(machine: str) -> None:
    known = KNOWN[machine]
    assert {name: seccomp.NUMBERS[machine][name] for name in known} == known
    # Calls of one machine only: aarch64 never had those that take a path without a folder.
    assert ("open" in seccomp.NUMBERS[machine]) == (machine == "x86_64")


# --- the filter, run by an interpreter of its own: both machines, every call, every argument ------

ALLOW, EPERM, EACCES, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x5000D, 0x50026, 0x80000000
GRANTED = 0x50000  # refused with no error: the caller believes that it was done
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(code: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = 0) -> int:
    """What the kernel would do: classic BPF over struct seccomp_data."""
    import struct

    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x05:
            at += value
        elif operation == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value,
                     0x45: accumulator & value != 0}[operation]  # fmt: skip
            at += if_true if taken else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("strict", [False, True])
def test_the_filter_decides_every_call_by_the_list(machine: str, strict: bool) -> None:
    code = seccomp.program(machine, pid=77, strict=strict)
    names = {number: name for name, number in seccomp.NUMBERS[machine].items()}
    for number in range(1024):
        name = names.get(number)
        verdict = decide(code, number, (0,) * 6, ARCH[machine])
        if name in seccomp.FREE:
            assert verdict == ALLOW, name
        elif name in seccomp.PATHS:
            assert verdict == (EACCES if strict else ALLOW), name
        elif name is None:
            assert verdict == EPERM, number

    def call(name: str, *arguments: int) -> int:
        return decide(code, seccomp.NUMBERS[machine][name], arguments, ARCH[machine])

    assert call("clone", 0x10000 | 0x3D0F00) == ALLOW
    assert call("clone", 17) == EPERM
    assert call("clone3", 0, 88) == ENOSYS
    assert call("tgkill", 77, 77, 6) == ALLOW
    assert call("tgkill", 78, 78, 6) == EPERM
    assert call("tgkill", 77, 77, 9) == EPERM
    stack, cpu, pointer = 3, 0, 0x7FFF12345678
    for pid in (0, 77):
        assert call("prlimit64", pid, cpu, 0) == ALLOW
        assert call("prlimit64", pid, cpu, pointer) == EPERM
        assert call("prlimit64", pid, cpu, pointer & ~0xFFFFFFFF) == EPERM
        assert call("prlimit64", pid, stack, pointer) == GRANTED
    assert call("prlimit64", 1, cpu, 0) == EPERM
    assert call("prlimit64", 1, stack, pointer) == EPERM
    assert call("prctl", 15) == ALLOW
    assert call("prctl", 1) == EPERM
    assert call("fcntl", 3, 1) == ALLOW
    assert call("fcntl", 3, 8) == EPERM
    assert call("ioctl", 0, 0x5401) == ALLOW
    assert call("ioctl", 0, 0x5412) == EPERM
    assert call("newfstatat", 0, 0, 0, 0x1000) == ALLOW
    assert call("newfstatat", 0, 0, 0, 0) == (EACCES if strict else ALLOW)
    assert decide(code, 0, (), 0x40000003) == KILL
    if machine == "x86_64":
        assert decide(code, 0x40000027, (), ARCH[machine]) == KILL


@pytest.mark.parametrize("strict", [False, True])
def test_the_kernel_takes_the_filter_of_the_other_machine(strict: bool) -> None:
    """It checks every jump and the length, and then kills, since no call comes from that machine.
    The control: a filter with a jump too far is refused.
    """
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[kernel.MACHINE]
    code = seccomp.program(other, pid=1, strict=strict)
    fates = []
    for each in (code, code[: 8 * 20]):
        pid = os.fork()
        if pid == 0:
            try:
                kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
                seccomp.install(each)
            finally:
                os._exit(7)
        fates.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert fates == [-signal.SIGSYS, 7]


@pytest.mark.parametrize("name", ["socket", "ptrace", "kill", "execve", "mount", "bpf", "unshare"])
def test_no_dangerous_call_is_on_the_list(name: str) -> None:
    assert name not in seccomp.NUMBERS["x86_64"] | seccomp.NUMBERS["aarch64"]


def test_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64", pid=1, strict=False)
