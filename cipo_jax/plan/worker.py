"""The process that compiles: `python -m cipo_jax.plan.worker`.

It is a process of its own, since the compilers read their settings from the environment when they
are loaded, print as they please, and may end the process. It reads a pickled `Request` from
standard input and writes a pickled `Plan`, or the error that ended it, to standard output. Its
progress goes to standard error, each line behind `PROGRESS`. When standard input closes, it ends.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import platform
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cipo_jax import __version__
from cipo_jax.config import Config, PretrainedModel
from cipo_jax.mesh.sharding import make_mesh, num_row_shards
from cipo_jax.model.files.load import load_architecture
from cipo_jax.model.presets import PRESETS, Architecture
from cipo_jax.plan import cycle, programs, search
from cipo_jax.plan.compile import Compiled, available_bytes, bytes_of, compile_program
from cipo_jax.plan.cycle import Call
from cipo_jax.plan.devices import devices_of
from cipo_jax.plan.hardware import GIB, Slice
from cipo_jax.plan.programs import Phase, Program
from cipo_jax.plan.record import Largest, Plan, Planned, Work

PROGRESS = "cipo plan: "


@dataclass(frozen=True, kw_only=True)
class Request:
    """The configuration and the slice that a plan is made for."""

    cfg: Config
    slice: Slice
    hbm_gib: float | None
    """Memory of a device; None takes the compiler's or the data sheet's."""
    knobs: tuple[search.Knob, ...]
    answers: Path | None
    """Folder of the compiler's answers; None keeps none."""


def main() -> None:
    """Answers one request."""
    request = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    result_file = os.dup(1)
    os.dup2(2, 1)  # The compilers print to standard output too.
    result: Plan | Exception
    try:
        result = make_plan(request)
    except (ValueError, ImportError, RuntimeError) as error:
        result = type(error)(str(error))
    with os.fdopen(result_file, "wb") as file:
        pickle.dump(result, file)


def _end_with_input() -> None:
    """A parent that is killed can't say so, and a compilation takes minutes."""
    # Not through `sys.stdin`, whose lock this thread would hold to the end.
    while os.read(0, 1):
        pass
    os._exit(1)


def make_plan(request: Request) -> Plan:
    """Compiles every program, and searches for the largest settings that are asked for."""
    start = time.perf_counter()
    cfg = request.cfg
    devices = devices_of(request.slice)
    workshop = Workshop(
        arch=planned_architecture(cfg),
        mesh=make_mesh(cfg.mesh, devices),
        folder=request.answers,
        compiled={},
    )
    hbm_bytes, source = _hbm(request, workshop.mesh)
    held = programs.resident(cfg, workshop.arch, workshop.mesh)
    resident = {name: bytes_of(tree) for name, tree in held.items()}
    calls = list(workshop.calls(cfg))
    moments = cycle.moments(resident, calls)
    per_device = request.slice.num_chips / len(devices)
    plan = Plan(
        cfg=cfg,
        slice=request.slice,
        device_kind=devices[0].device_kind,
        num_devices=len(devices),
        mesh=dict(workshop.mesh.shape),
        hbm_bytes=hbm_bytes,
        hbm_source=source,
        resident=resident,
        programs=tuple(
            Planned(
                call=call,
                moment=moment,
                work=_work(call.compiled, request.slice, len(devices), per_device),
            )
            for call, moment in zip(calls, moments, strict=True)
        ),
        missing=tuple(
            f"{call.phase}: what comes after {call.name}"
            for call in calls
            if call.compiled.memory is None and call.phase != "train"
        ),
        largest=(),
        versions=_versions(),
        seconds=0.0,
    )
    found = tuple(_search(request, workshop, resident, hbm_bytes))
    return replace(plan, largest=found, seconds=time.perf_counter() - start)


def planned_architecture(cfg: Config) -> Architecture:
    """The constants of the model; for a known public model, without asking the hub."""
    if isinstance(cfg.model, PretrainedModel) and cfg.model.path in PRESETS:
        return PRESETS[cfg.model.path]
    return load_architecture(cfg.model)


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Compiles for one model on one mesh, and nothing twice."""

    arch: Architecture
    mesh: Mesh
    folder: Path | None
    """Folder of the compiler's answers; None keeps none."""
    compiled: dict[Hashable, tuple[Compiled, Any]]

    def calls(self, cfg: Config, phases: Sequence[Phase] | None = None) -> Iterator[Call]:
        """The calls of a step and of an evaluation, one by one as they are compiled."""
        generator = programs.programs(cfg, self.arch, self.mesh, phases)
        results = None
        while True:
            try:
                program = generator.send(results)
            except StopIteration:
                return
            compiled, results = self._compile(program)
            yield Call(
                phase=program.phase,
                name=program.name,
                at_once=program.at_once,
                per_step=program.per_step,
                makes=program.makes,
                frees=program.frees,
                compiled=compiled,
            )

    def _compile(self, program: Program) -> tuple[Compiled, Any]:
        if program.key not in self.compiled:
            _say(f"compiling {program.phase}: {program.name}")
            compiled, results = compile_program(program, self.mesh, self.folder)
            # Traces and executables are not needed again, and those of one program take gigabytes.
            jax.clear_caches()
            if compiled.memory is None:
                _say(f"  refused: it needs {(compiled.refused_bytes or 0) / GIB:.2f} GiB")
            else:
                peak = compiled.memory.peak / GIB
                _say(f"  {peak:.2f} GiB at its peak, {compiled.compile_cpu_s:.0f} CPU s")
            self.compiled[program.key] = compiled, results
        return self.compiled[program.key]


def _search(
    request: Request, workshop: Workshop, resident: dict[str, int], hbm_bytes: int
) -> Iterator[Largest]:
    cfg = request.cfg
    ranges = search.ranges(cfg, num_row_shards(workshop.mesh), workshop.arch.max_position)
    for knob in request.knobs:
        where = ranges[knob]

        def fits(value: int, where: search.Range = where) -> bool:
            _say(f"trying {where.name} {value}")
            calls: list[Call] = []
            for call in workshop.calls(where.put(cfg, value), where.phases):
                calls.append(call)
                if not cycle.fits(cycle.moments(resident, calls), hbm_bytes):
                    return False
            return True

        value = search.largest(fits, start=where.start, step=where.step, most=where.most)
        yield Largest(
            name=where.name,
            configured=where.start,
            value=value,
            step=where.step,
            is_capped=value + where.step > where.most,
        )


def _hbm(request: Request, mesh: Mesh) -> tuple[int, str]:
    if request.hbm_gib is not None:
        return int(request.hbm_gib * GIB), "as stated"
    known = available_bytes(mesh) if request.slice.chip.platform == "tpu" else None
    if known is not None:
        return known, "what the compiler leaves to programs"
    if request.slice.chip.hbm_gib is None:
        raise ValueError(
            f"The compiler does not say how much memory a {request.slice.chip.name} has: state it "
            "with --hbm-gib."
        )
    return int(request.slice.chip.hbm_gib * GIB), request.slice.chip.source


def _work(compiled: Compiled, wanted: Slice, num_devices: int, chips_per_device: float) -> Work:
    chip, moved = wanted.chip, compiled.movement
    return Work(
        compute_s=compiled.count.flops / num_devices / (chip.flops * chips_per_device),
        memory_s=moved.traffic_bytes / (chip.hbm_bandwidth * chips_per_device),
        link_s=moved.sent_bytes / (chip.link_bandwidth * chips_per_device),
    )


def _versions() -> dict[str, str]:
    found = {"cipo_jax": __version__, "python": platform.python_version(), "jax": jax.__version__}
    for name in ("jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _say(line: str) -> None:
    print(PROGRESS + line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
