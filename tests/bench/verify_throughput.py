"""Figures of the verifier pool: `python tests/bench/verify_throughput.py [--items 10000]`.

Prints each figure beside its bar, with the machine and its load: on a busy machine believe the CPU
times and the ratios, not the rates. Takes about four minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Sequence

from cipo_jax.config import Verify
from cipo_jax.verify import CallsReference, MathReference, Reference, StdioReference, VerifierPool

Pair = tuple[str, Reference]

TRIVIAL: Pair = ("```python\nprint(7)\n```", StdioReference(cases=(("", "7"),)))
TEN_CALLS: Pair = (
    "```python\ndef f(x): return x * x\n```",
    CallsReference(function="f", cases=tuple(((i,), i * i) for i in range(10))),
)
HANGS: Pair = ("\\boxed{9^{9^{9^{9}}}}", MathReference(answers=("x",)))
SPINS: Pair = ("```python\nwhile True: pass\n```", StdioReference(cases=(("", "7"),)))


def show(what: str, value: float, unit: str, *, least: float = 0.0, most: float = 0.0) -> None:
    """One figure, and whether it is at least or at most what it must be."""
    bound = f"at least {least:g}" if least else f"at most {most:g}" if most else ""
    is_met = value >= least if least else value <= most
    verdict = f"  ({bound}: {'holds' if is_met else 'MISSED'})" if bound else ""
    print(f"{what:<58}{value:>8.2f} {unit}{verdict}", flush=True)


def cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def ordinary_answers(count: int) -> list[Pair]:
    """Half plain right numbers; the others need algebra (right and wrong in turn)."""
    shapes = (
        ("\\boxed{%d}", "%d"),
        ("so the answer is \\boxed{\\frac{%d}{7}}", "\\frac{%d}{7}"),
        ("\\boxed{x^2 + %dx}", "x(x+%d)"),
        ("\\boxed{\\sqrt{%d}}", "%d^{1/2}"),
    )
    pairs = []
    for index in range(count):
        said, gold = shapes[index % 4]
        number = 2 + index % 97
        is_off = index % 8 >= 6
        pairs.append((said % number, MathReference(answers=(gold % (number + is_off),))))
    return pairs


def timed(pool: VerifierPool, pairs: Sequence[Pair]) -> tuple[float, list[float]]:
    """Seconds for all, and of each."""
    started = time.perf_counter()
    verdicts = pool.map(pairs)
    return time.perf_counter() - started, [verdict.seconds for verdict in verdicts]


def rate(
    name: str, pairs: Sequence[Pair], settings: Verify, warm: Sequence[Pair], *,
    least: float = 0.0, most_ms: float = 0.0,
) -> None:  # fmt: skip
    """Items per second and CPU per item, without the start of the pool."""
    costs = []
    for batch in (list(warm), [*warm, *pairs]):
        children, own = cpu_s(resource.RUSAGE_CHILDREN), cpu_s(resource.RUSAGE_SELF)
        with VerifierPool(settings) as pool:
            pool.map(warm)
            seconds, _ = timed(pool, batch[len(warm) :])
        children = cpu_s(resource.RUSAGE_CHILDREN) - children
        costs.append((children, cpu_s(resource.RUSAGE_SELF) - own))
    child_ms, own_ms = (1e3 * (costs[1][i] - costs[0][i]) / len(pairs) for i in (0, 1))
    show(name, len(pairs) / seconds, "a second", least=least)
    show("  CPU of each, in cells and programs", child_ms, "ms")
    show("  CPU of each, in the caller", own_ms, "ms")
    show("  CPU of each", child_ms + own_ms, "ms", most=most_ms)


def latency(settings: Verify) -> None:
    """What the pool adds to a program that does nothing, one at a time."""
    with VerifierPool(settings) as pool:
        pool.map([TRIVIAL] * 20)
        seconds = sorted(pool.submit(*TRIVIAL).result().seconds for _ in range(1000))
    show("latency of a trivial program, median", 1e3 * seconds[500], "ms")
    show("latency of a trivial program, p99", 1e3 * seconds[990], "ms", most=20.0)


def hostile_share(name: str, ordinary: Sequence[Pair], hostile: Pair) -> None:
    """2,000 completions of which 1 % run into their limit: the time taken, over these limits and
    the time that the honest ones take alone."""
    settings = Verify(workers=2, deadline_s=2.0)
    mixed = [hostile if index % 100 == 50 else pair for index, pair in enumerate(ordinary)]
    honest = [pair for pair in mixed if pair is not hostile]
    with VerifierPool(settings) as pool:
        pool.map(ordinary[:20])
        alone, _ = timed(pool, honest)
        together, _ = timed(pool, mixed)
    limits = (len(mixed) - len(honest)) * settings.deadline_s / settings.workers
    show(f"2,000 {name}, 1 % hostile, time", together, "s")
    show("  over their limits and the honest work", together / (alone + limits), "x", most=1.2)


def flat(items: int) -> None:
    """Memory and descriptors of the caller and of the cells over many items."""
    with VerifierPool(Verify(workers=2)) as pool:
        answers = ordinary_answers(400)
        sizes = []
        for done in range(0, items + 1, max(items // 4, 1)):
            size = {
                name: sum(
                    _resident_mb(pid) for pid in _descendants() if f" {name} " in _command(pid)
                )
                for name in ("code", "math")
            }
            caller, files = _resident_mb(os.getpid()), len(os.listdir("/proc/self/fd"))
            sizes.append((caller, files, size["code"], size["math"]))
            print(f"after {done} items: caller {caller:.0f} MB, {files} descriptors; cells code "
                  f"{size['code']:.0f} MB, math {size['math']:.0f} MB", flush=True)  # fmt: skip
            batch = [TRIVIAL, TEN_CALLS, *answers[2:4]] * (items // 16)
            pool.map(batch)
    # The first row is before anything was judged, when half of the processes don't exist.
    first, last = sizes[1], sizes[-1]
    show("growth of the caller from then on", last[0] - first[0], "MB", most=4.0)
    show("growth in descriptors", last[1] - first[1], "", most=0.5)
    show("growth of all cells", sum(last[2:]) - sum(first[2:]), "MB", most=40.0)


def _descendants() -> list[int]:
    """Processes of the nurseries: their command line names this process."""
    me = str(os.getpid()).encode()
    return [
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit() and me in _command(int(name)).encode().split(b" ")
    ]


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _resident_mb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--isolation", default="auto")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.1f}, {time.strftime('%d %B %Y')}")  # fmt: skip
    settings = Verify(workers=2, isolation=arguments.isolation)
    with VerifierPool(settings) as pool:
        print(pool.report)
    trivial, ten_calls = [TRIVIAL] * 2000, [TEN_CALLS] * 1000
    rate("trivial programs", trivial, settings, trivial[:20], least=200.0, most_ms=5.0)
    rate("functions of ten calls", ten_calls, settings, ten_calls[:20])
    answers = ordinary_answers(2000)
    rate("answers, half of them plain", answers, settings, answers[:8], least=100.0)
    slow = [pair for index, pair in enumerate(answers) if index % 4 >= 2][:600]
    rate("answers that all need algebra", slow, settings, slow[:8], least=30.0)
    latency(settings)
    hostile_share("programs", trivial, SPINS)
    hostile_share("maths answers", answers, HANGS)
    flat(arguments.items)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
