"""The pool: order, deadlines, its own failures, and what is left when it ends or is killed."""

import concurrent.futures
import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cipo_jax.config import Verify
from cipo_jax.verify import (
    AssertsReference,
    CallsReference,
    MathReference,
    NumberReference,
    Status,
    StdioReference,
    VerifierPool,
)
from tests import ROOT
from tests.hostile.answers import ANSWERS

FORTY_TWO = StdioReference(cases=(("", "42"),))
HANG = MathReference(answers=("1",))
# Big-integer and expansion work that takes minutes.
ENDLESS = "\\boxed{(x+1)^{100000}-(y+2)^{99999}+99999999!}"


def program(source: str) -> str:
    return f"```python\n{source}\n```"


def family(trainer: int) -> list[int]:
    """Processes of the trainer's sandboxes: all carry the nursery's command line, with its id."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(") ")[2][0]
            except OSError:
                continue
            is_ours = any(b"verify.sandbox.nursery" in word for word in words)
            if is_ours and str(trainer).encode() in words and state != "Z":
                found.append(int(folder.name))
    return found


def gone(trainer: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while family(trainer) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not family(trainer)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(Verify(workers=2, deadline_s=5.0)) as pool:
        yield pool


def test_importing_the_verifier_does_not_import_jax() -> None:
    script = (
        "import sys, cipo_jax.verify, cipo_jax.config; "
        "heavy = {'jax', 'flax', 'numpy', 'torch', 'sympy', 'math_verify'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_one_of_each(pool: VerifierPool) -> None:
    add = "def add(a, b):\n    return a + b"
    right = [
        ("so it is 42", NumberReference(answer="42")),
        ("\\boxed{\\frac{1}{2}}", MathReference(answers=("0.5",))),
        ("\\boxed{(x+1)^2}", MathReference(answers=("x^2+2x+1",))),
        (program("print(42)"), FORTY_TWO),
        (program(add), CallsReference(function="add", cases=(((1, 2), 3),))),
        (program(add), AssertsReference(function="add", tests="assert add(1, b=2) == 3")),
    ]
    wrong = [
        ("so it is 41", NumberReference(answer="42")),
        ("\\boxed{(x+1)^2}", MathReference(answers=("x^2+2x+2",))),
        (program("print(41)"), FORTY_TWO),
        (program(add), CallsReference(function="add", cases=(((1, 2), 4),))),
        (program(add), AssertsReference(function="add", tests="assert add(1, b=2) == 4")),
    ]
    for verdict in pool.map(right):
        assert (verdict.status, verdict.reward, verdict.reason) == (Status.RIGHT, 1.0, "ok")
    for verdict in pool.map(wrong):
        assert (verdict.status, verdict.reward) == (Status.WRONG, 0.0)
        assert verdict.reason == "wrong_answer"


def test_verify_is_one_call() -> None:
    """From a process that has opened nothing, that forks, and that leaves nothing when it ends."""
    script = (
        "import os, sys; from cipo_jax.verify import *\n"
        "double = CallsReference(function='f', cases=(((2,), 4),))\n"
        "said = '```\\ndef f(x): return 2 * x\\n```'\n"
        "def both(): print(verify(said, double).reward, verify(said[:-8], double).reason,\n"
        "                  verify('so 7', NumberReference(answer='7')).reward, flush=True)\n"
        "both(); pid = os.fork(); both()\n"
        "if pid == 0: os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1], os.getpid())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["1.0 wrong_answer 1.0"] * 3, done.stdout + done.stderr
    status, pid = lines[3].split()
    assert status == "0"
    assert gone(int(pid), within_s=5.0)


def test_order_is_kept(pool: VerifierPool) -> None:
    """Later ones finish first: each sleeps less than the one before."""
    pairs = [
        (program(f"import time\ntime.sleep({(9 - i) / 50})\nprint({i})"),
         StdioReference(cases=(("", str(i if i % 2 else -1)),)))
        for i in range(10)
    ]  # fmt: skip
    assert [verdict.reward for verdict in pool.map(pairs)] == [0.0, 1.0] * 5


def test_a_program_gives_the_same_result_every_time(pool: VerifierPool) -> None:
    source = "import random\nprint(random.random(), hash('x'), list({'a', 'b', 'c', 'd'}))"
    printed = "0.8444218515250481"  # of random.Random(0)
    reference = StdioReference(cases=(("", printed),))
    assert pool.submit(program("import random\nprint(random.random())"), reference).result().reward
    twice = program(source + "\nraise SystemExit(1)")
    seen = {pool.submit(twice, FORTY_TWO).result().reason for _ in range(3)}
    assert seen == {"runtime_error"}


def test_deadlines(pool: VerifierPool) -> None:
    """A program that runs over is wrong; an answer that the grader can't finish is unknown."""
    with VerifierPool(Verify(workers=2, deadline_s=1.0)) as quick:
        started = time.monotonic()
        spins, sleeps, answer = quick.map(
            [
                (program("while True: pass"), FORTY_TWO),
                (program("import time\ntime.sleep(60)"), FORTY_TWO),
                (ENDLESS, HANG),
            ]
        )
        assert (spins.status, spins.reason) == (Status.WRONG, "timeout")
        assert (sleeps.status, sleeps.reason) == (Status.WRONG, "timeout")
        if answer.status is not Status.WRONG:  # the grader may refuse to work on it at all
            assert answer.status is Status.UNKNOWN
            assert answer.reward != answer.reward
        assert max(spins.seconds, sleeps.seconds) < 6.0
        assert time.monotonic() - started < 60.0
        # The pool still works.
        assert quick.submit("\\boxed{x+1}", MathReference(answers=("1+x",))).result().reward == 1.0


@pytest.mark.parametrize("integers", ["python", "gmpy"])
def test_hostile_answers_end_in_time_off_the_main_thread(
    integers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """math-verify's own alarm is void there, and gmpy2 does not heed it: the worker is killed."""
    monkeypatch.setenv("SYMPY_GROUND_TYPES", integers)
    assert importlib.util.find_spec("gmpy2"), "gmpy2 is among the test tools"
    deadline_s = 1.0
    with VerifierPool(Verify(workers=2, deadline_s=deadline_s)) as pool:
        pool.submit("\\boxed{x}", HANG).result()  # start the algebra
        judged: list = []
        pairs = [(f"\\boxed{{{text}}}", HANG) for text in ANSWERS]
        thread = threading.Thread(target=lambda: judged.extend(pool.map(pairs)))
        thread.start()
        thread.join(timeout=len(ANSWERS) * (deadline_s + 5.0))
        assert not thread.is_alive()
        slowest = max(verdict.seconds for verdict in judged)
        assert slowest < deadline_s + 8.0, slowest
        assert Status.RIGHT not in [verdict.status for verdict in judged]
        assert "infra" not in [verdict.reason for verdict in judged]
        assert pool.submit("\\boxed{x+1}", MathReference(answers=("1+x",))).result().reward == 1.0


def test_cases_share_one_deadline() -> None:
    with VerifierPool(Verify(workers=1, deadline_s=1.0)) as pool:
        reference = StdioReference(cases=(("", "1"),) * 20)
        verdict = pool.submit(program("import time\ntime.sleep(0.4)\nprint(1)"), reference).result()
    assert (verdict.reason, verdict.status) == ("timeout", Status.WRONG)
    assert verdict.seconds < 6.0  # 20 cases of 0.4 s would take 8


def runs_a_program(pid: int) -> bool:
    """Whether the filter is on: of the family, only programs have it."""
    try:
        return "Seccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_limit_on_output_is_the_setting() -> None:
    """100,000 characters where 2 are expected: too many for 1 KiB, a wrong answer for 128."""
    talkative = program("print('x' * 100_000)")
    for output_kb, reason in ((1, "output_limit"), (128, "wrong_answer")):
        with VerifierPool(Verify(workers=1, output_kb=output_kb)) as pool:
            assert pool.submit(talkative, FORTY_TWO).result().reason == reason
            assert f"{output_kb} KiB output" in str(pool.report)


def test_the_system_would_rather_kill_a_program_than_the_trainer(pool: VerifierPool) -> None:
    """Every process of the sandbox, down to the running program; the control is this one."""
    slow = program("import time\ntime.sleep(0.5)\nprint(42)")
    future = pool.submit(slow, FORTY_TWO)
    wait_until(lambda: any(map(runs_a_program, family(os.getpid()))))
    adjustments = {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in family(os.getpid())}
    assert adjustments == {"1000\n"}
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 1000
    assert future.result().reward == 1.0


@pytest.mark.parametrize("victims", ["all", "program"])
def test_survives_the_death_of_its_processes(victims: str) -> None:
    """All cells, or the program alone (as the system does for want of memory), are killed while it
    runs: it is run again. Then the nursery is killed."""
    me = os.getpid()
    with VerifierPool(Verify(workers=1)) as pool:
        nursery = pool._nurseries["code"].pid
        slow = program("import time\ntime.sleep(1.0)\nprint(42)")
        future = pool.submit(slow, FORTY_TWO)
        wait_until(lambda: any(map(runs_a_program, family(me))))
        for pid in family(me):
            if pid != nursery and (victims == "all" or runs_a_program(pid)):
                os.kill(pid, signal.SIGKILL)
        assert future.result().reward == 1.0
        os.kill(nursery, signal.SIGKILL)
        assert pool.submit(slow, FORTY_TWO).result().reward == 1.0
        assert pool._nurseries["code"].pid != nursery


def test_what_keeps_failing_is_unknown_not_wrong() -> None:
    with VerifierPool(Verify(workers=1)) as pool:
        nursery = pool._nurseries["code"].pid
        future = pool.submit(program("import time\ntime.sleep(3)\nprint(42)"), FORTY_TWO)
        while not future.done():
            for pid in family(os.getpid()):
                if pid != nursery:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        verdict = future.result()
        assert (verdict.status, verdict.reason) == (Status.UNKNOWN, "infra")
        assert verdict.reward != verdict.reward
        assert pool.submit(program("print(42)"), FORTY_TWO).result().reward == 1.0
        assert pool.counts == {"infra": 1, "ok": 1}


def test_use_from_many_threads(pool: VerifierPool) -> None:
    """Also: answers are judged with their deadline off the main thread."""
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        pairs = [(f"\\boxed{{x+{i}}}", MathReference(answers=(f"{i % 7}+x",))) for i in range(24)]
        rewards = list(threads.map(lambda pair: pool.submit(*pair).result().reward, pairs))
    assert rewards == [float(i < 7) for i in range(24)]


def test_want_of_descriptors_is_no_fault_of_the_program() -> None:
    """Nor is one lost on the way; with enough of them the verdicts are right again."""
    add = program("def f(a, b):\n    return a + b")
    pairs = [
        (program("print(42)"), FORTY_TWO),
        (add, CallsReference(function="f", cases=(((1, 2), 3),))),
        (add, AssertsReference(function="f", tests="assert f(1, 2) == 3")),
    ]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with VerifierPool(Verify(workers=1)) as pool:
        pool.map(pairs)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        fillers = [os.dup(0)]  # of the gaps, so that the limit is what counts
        while fillers[-1] < highest:
            fillers.append(os.dup(0))
        before = os.listdir("/proc/self/fd")
        statuses = set()
        for most in range(fillers[-1], fillers[-1] + 16):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
            futures = [pool.submit(*pair) for pair in pairs]
            concurrent.futures.wait(futures)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            statuses |= {future.result().status for future in futures}
        assert statuses == {Status.UNKNOWN, Status.RIGHT}
        assert {verdict.reward for verdict in pool.map(pairs)} == {1.0}
        assert len(os.listdir("/proc/self/fd")) == len(before)
        for descriptor in fillers:
            os.close(descriptor)


def test_descriptors_and_threads_do_not_grow(pool: VerifierPool) -> None:
    pairs = [(program("print(42)"), FORTY_TWO), (program("x"), FORTY_TWO)] * 5
    asserts = AssertsReference(function="f", tests="assert f() == 1")
    pairs += [(program("def f(): return 1"), asserts)] * 4
    pool.map(pairs)
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), len(family(os.getpid()))
    pool.map(pairs * 8)
    after = len(os.listdir("/proc/self/fd")), threading.active_count(), len(family(os.getpid()))
    assert after == before


def test_nothing_is_left_after_close() -> None:
    script = (
        "import os, sys; from cipo_jax.config import Verify; from cipo_jax.verify import *\n"
        "pool = VerifierPool(Verify(workers=2))\n"
        "pool.submit('```\\nprint(1)\\n```', StdioReference(cases=(('', '1'),))).result()\n"
        "pool.close(); pool.close()\n"
        "from tests.verify.test_pool import family\n"
        "print(family(os.getpid()), len(os.listdir('/proc/self/fd')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("[] "), done.stdout + done.stderr


TRAINER = """
import os, sys, time
sys.path.insert(0, {repository!r})
from cipo_jax.config import Verify
from cipo_jax.verify import *
pool = VerifierPool(Verify(workers=3, deadline_s=300.0, isolation={level!r}))
spin = "```python\\nwhile True: pass\\n```"
pool.submit(spin, StdioReference(cases=(("", "1"),)))
pool.submit("```python\\ndef f():\\n    while True: pass\\n```",
            AssertsReference(function="f", tests="f()"))
pool.submit({endless!r}, MathReference(answers=("1",)))
if {forks}:
    if os.fork() == 0:   # as data loaders do: it inherits every descriptor, and lives on
        time.sleep(30)
        os._exit(0)
print("ready", flush=True)
time.sleep(600)
"""


def left_behind() -> set[str]:
    """Mounts and files where a sandbox might leave some. Without the folders of a hostile
    collection that somebody else runs at the same time."""
    files = {f"{folder}/{name}" for folder in ("/dev/shm", "/var/tmp") for name in
             os.listdir(folder) if not name.startswith("cipo-canary-")}  # fmt: skip
    return files | set(Path("/proc/mounts").read_text().splitlines())


@pytest.mark.parametrize(
    ("level", "forks"), [("auto", False), ("auto", True), ("landlock", True), ("strict", False)]
)
def test_nothing_is_left_when_the_trainer_is_killed(level: str, forks: bool) -> None:
    before = left_behind()
    script = TRAINER.format(repository=str(ROOT), level=level, endless=ENDLESS, forks=forks)
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert trainer.stdout.readline() == b"ready\n"
        # The control: two nurseries, four cells, and a program in each.
        deadline = time.monotonic() + 30.0
        while len(family(trainer.pid)) < 10:
            assert time.monotonic() < deadline, family(trainer.pid)
            time.sleep(0.1)
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait()
        assert gone(trainer.pid, within_s=20.0), family(trainer.pid)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL) if forks else trainer.kill()
        trainer.stdout.close()
    assert left_behind() <= before


def test_cancelled_when_the_block_is_left_by_an_error() -> None:
    started = time.monotonic()
    futures = []

    def fail() -> None:
        with VerifierPool(Verify(workers=1, deadline_s=1.0)) as pool:
            futures.extend(pool.submit(program("while True: pass"), FORTY_TWO) for _ in range(50))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert time.monotonic() - started < 30.0  # all of them would take 50
    assert sum(future.cancelled() for future in futures) >= 48


def test_every_future_ends_when_the_pool_is_closed_meanwhile() -> None:
    """Threads submit, and cancel, until they are told that the pool is closed."""
    pool = VerifierPool(Verify(workers=2))
    futures: list[list[concurrent.futures.Future]] = [[] for _ in range(4)]

    def submit(mine: list[concurrent.futures.Future]) -> None:
        with contextlib.suppress(ValueError):
            while True:
                mine.append(pool.submit(program("print(42)"), FORTY_TWO))
                if len(mine) % 3 == 0:
                    mine[-2].cancel()
                time.sleep(0.005)

    threads = [threading.Thread(target=submit, args=(mine,)) for mine in futures]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    closers = [threading.Thread(target=pool.close) for _ in range(2)]
    for thread in closers:
        thread.start()
    for thread in [*threads, *closers]:
        thread.join(timeout=60.0)
        assert not thread.is_alive()
    everything = [future for mine in futures for future in mine]
    assert len(everything) > 8
    assert all(future.done() for future in everything)
    assert {future.result().reason for future in everything if not future.cancelled()} == {"ok"}
    assert any(future.cancelled() for future in everything)


def test_a_fork_is_told_that_the_pool_is_not_its_own(pool: VerifierPool) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            pool.submit(program("print(42)"), FORTY_TWO)
        except ValueError as error:
            pool.close()
            os._exit("needs its own" in str(error))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert pool.submit(program("print(42)"), FORTY_TWO).result().reward == 1.0


def test_misuse() -> None:
    pool = VerifierPool(Verify(workers=1))
    with pytest.raises(TypeError, match="str is no reference"):
        pool.submit("x", "42")
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.submit("x", FORTY_TWO)
