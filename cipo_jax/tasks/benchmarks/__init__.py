"""The eleven benchmarks, each read from the form in which its authors published it."""

from cipo_jax.tasks.benchmarks import (
    code,
    criticbench,
    debugbench,
    livecodebench,
    maths,
)
from cipo_jax.tasks.benchmarks.benchmark import Benchmark, Item, Loaded, Response, load

__all__ = ["ELEVEN", "PLUS", "Benchmark", "Item", "Loaded", "Response", "load", "named"]

ELEVEN: tuple[Benchmark, ...] = (
    *maths.BENCHMARKS,
    *livecodebench.BENCHMARKS,
    *code.BENCHMARKS,
    *debugbench.BENCHMARKS,
    *criticbench.BENCHMARKS,
)

PLUS: tuple[Benchmark, ...] = code.PLUS
"""HumanEval+ and MBPP+: the same problems with more tests."""


def named(names: str) -> tuple[Benchmark, ...]:
    """The benchmarks of a list such as `aime24,math500`, each once; `all` means the eleven, and
    `maths`, `code` and `critique` those of an area.

    Raises: ValueError that names what is unknown, and what there is.
    """
    known = {benchmark.name: benchmark for benchmark in (*ELEVEN, *PLUS)}
    chosen: dict[str, Benchmark] = {}
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        group = [b for b in ELEVEN if name in ("all", b.area)]
        if not group and name not in known:
            raise ValueError(
                f"There is no benchmark '{name}'; there are {', '.join(known)}, and all, maths, "
                "code, critique for several."
            )
        chosen |= {b.name: b for b in group or [known[name]]}
    if not chosen:
        raise ValueError(f"--benchmarks names none; there are {', '.join(known)}.")
    return tuple(chosen.values())
