"""A plan as tables, for a terminal or a text file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cipo_jax.config import Config
from cipo_jax.plan.hardware import GIB
from cipo_jax.plan.record import Plan, Planned

_NOT_PROVEN = (
    "Not proven: speed, links under load, kernels' numbers, what the runtime itself keeps of the "
    "memory, fragmentation, and that the machine's own compiler has this version. Evaluations and "
    "checkpoints are not in the time of a step, nor is the judging of answers on the hosts."
)
_GPU_NOT_PROVEN = (
    "For GPUs the compiler refuses nothing: sizes are compared with the stated memory here. It "
    "tuned no kernel, as it has no card to try them on, and memory that libraries take (cuDNN, "
    "NCCL, the CUDA context) is not in the sums."
)

_WHOLE = ("model", "adapter", "mesh", "optimizer", "kl")
_PARTS = {
    "prompts": ("max_prompt_tokens", "max_correction_prompt_tokens"),
    "sampling": ("samples_per_prompt", "max_new_tokens", "prompts_per_call"),
    "correction": ("prompts_per_base_prompt", "weight"),
    "train": (
        "prompts_per_step", "updates_per_step", "row_tokens", "rows_per_microbatch",
        "share_prompts", "logprob_chunk", "remat", "compute_dtype",
    ),
    "evaluation": ("samples_per_problem", "max_new_tokens", "prompts_per_call"),
}  # fmt: skip
"""Sections of the configuration that decide about memory, and fields of other sections that do."""


def print_plan(plan: Plan, console: Console) -> None:
    """Prints the verdict, memory, work, collectives, the largest settings that fit, the settings of
    the run, and what the plan does not prove."""
    where = plan.slice
    rented = f", rented as {where.rented_as}" if where.rented_as else ""
    mesh = " ".join(f"{name} {size}" for name, size in plan.mesh.items())
    console.print(
        f"[bold]{plan.cfg.name} on {where.topology}[/] ({where.num_chips} chips{rented}; "
        f"{plan.num_devices} devices '{plan.device_kind}', mesh {mesh})"
    )
    console.print(_verdict(plan))
    for remark in where.remarks:
        console.print(f"note: {remark}")
    console.print(_memory(plan))
    console.print(_work(plan))
    console.print(_collectives(plan))
    if plan.largest:
        console.print(_largest(plan))
    console.print(_estimate(plan))
    for name in sorted({name for p in plan.programs for name in p.call.compiled.count.uncounted}):
        console.print(f"note: the operations of the kernel {name} are not counted: it states none.")
    if any(p.call.compiled.movement.unknown_loops for p in plan.programs):
        console.print("note: loops of unknown length were counted as running once.")
    console.print("Settings that decide about memory:")
    for name, values in settings(plan.cfg).items():
        console.print(f"{name}: {values};", markup=False)
    console.print(_NOT_PROVEN)
    if where.chip.platform == "cuda":
        console.print(_GPU_NOT_PROVEN)
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    compiled = sum(p.call.compiled.compile_cpu_s for p in _distinct(plan.programs))
    console.print(
        f"Compiled with {versions}; {compiled:.0f} s for the programs above, "
        f"{plan.seconds:.0f} s in all."
    )


def settings(cfg: Config) -> dict[str, str]:
    """The settings that decide about memory, a line for each section. A plan that was made for
    others is stale."""
    found = {}
    for section in (*_WHOLE, *_PARTS):
        values = dataclasses.asdict(getattr(cfg, section))
        names = _PARTS.get(section, values)
        found[section] = ", ".join(f"{name} {_shown(values[name])}" for name in names)
    return found


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


def _verdict(plan: Plan) -> str:
    worst, available = plan.fullest, f"{plan.hbm_bytes / GIB:.2f} GiB ({plan.hbm_source})"
    if plan.fits:
        return (
            f"[bold]fits[/]: {worst.total / GIB:.2f} GiB of {available} on each device at the "
            f"fullest moment, {worst.label}"
        )
    refused = [p.moment.label for p in plan.programs if p.moment.is_refused]
    if refused:
        return (
            f"[bold]does not fit[/] into {available}: refused {', '.join(dict.fromkeys(refused))}"
        )
    return (
        f"[bold]does not fit[/]: {worst.total / GIB:.2f} GiB, where {available} are there, at "
        f"{worst.label}"
    )


def _memory(plan: Plan) -> Table:
    table = _table(
        "Memory of a device, GiB. The whole = what is kept meanwhile + the program's own"
    )
    for name in ("program", "arguments", "temporaries", "results", "peak", "kept", "own", "whole"):
        _column(table, name)
    _column(table, "compile CPU s")
    for p in plan.programs:
        memory, times = p.call.compiled.memory, p.call.at_once
        label = f"{p.call.label}{f' × {times}' if times > 1 else ''}"
        kept = sum(p.moment.kept.values())
        if memory is None:
            needed = p.call.compiled.refused_bytes or 0
            cells = ["-", "-", "-", f"> {needed / GIB:.2f}", _gib(kept), "-", "refused"]
        else:
            is_over = p.moment.total > plan.hbm_bytes
            cells = [
                _gib(memory.arguments),
                _gib(memory.temporaries),
                _gib(memory.results * times),
                _gib(memory.peak),
                _gib(kept),
                _gib(p.moment.growth),
                f"{p.moment.total / GIB:.2f}{' !' if is_over else ''}",
            ]
        table.add_row(label, *cells, f"{p.call.compiled.compile_cpu_s:.1f}")
    for name, size in plan.resident.items():
        table.add_row(f"kept throughout: {name}", "", "", "", "", _gib(size), "", "", "")
    for name in plan.missing:
        table.add_row(f"not compiled: {name}", *[""] * 8)
    return table


def _work(plan: Plan) -> Table:
    table = _table(
        "Work in a step (of an evaluation: in all of it), every completion at its full length"
    )
    for name in ("program", "runs", "FLOPs, all devices", "memory, GB/device", "sent, GB/device"):
        _column(table, name)
    for name in ("compute s", "memory s", "links s", "bound by"):
        _column(table, name)
    for p in plan.programs:
        runs, compiled = p.call.per_step * p.call.at_once, p.call.compiled
        if compiled.memory is None or (not compiled.count.flops and p.seconds < 0.01 * plan.step_s):
            continue  # taking layers apart
        moved = compiled.movement
        table.add_row(
            p.call.label,
            str(runs),
            f"{runs * compiled.count.flops:.2e}",
            f"{runs * moved.traffic_bytes / 1e9:,.1f}",
            f"{runs * moved.sent_bytes / 1e9:,.1f}",
            f"{runs * p.work.compute_s:.2f}",
            f"{runs * p.work.memory_s:.2f}",
            f"{runs * p.work.link_s:.2f}",
            p.work.bound,
        )
    return table


def _collectives(plan: Plan) -> Table:
    table = _table("Collectives: those of each program that send 1 MB or more, in one run of it")
    for name in ("program", "kind", "devices", "MB each", "in the text", "runs", "sent, GB/device"):
        _column(table, name)
    for p in _distinct(plan.programs):
        for c in p.call.compiled.movement.collectives:
            if c.sent_bytes < 1e6:
                continue
            table.add_row(
                p.call.label,
                c.kind,
                str(c.group or "?"),
                f"{c.result_bytes / 1e6:,.2f}",
                str(c.static),
                f"{c.runs:,.0f}",
                f"{c.sent_bytes / 1e9:,.2f}",
            )
    return table


def _largest(plan: Plan) -> Table:
    table = _table("The largest that fits, other settings as they are")
    for name in ("setting", "configured", "largest", "in steps of", ""):
        _column(table, name)
    for entry in plan.largest:
        table.add_row(
            entry.name,
            f"{entry.configured:,}",
            f"{entry.value:,}" if entry.value else "none",
            f"{entry.step:,}",
            "more is of no use" if entry.is_capped and entry.value else "",
        )
    return table


def _estimate(plan: Plan) -> str:
    if not plan.step_s or not plan.fits:
        return "No estimate of time: not every program was compiled, or not all fits."
    chip = plan.slice.chip
    return (
        f"Estimate, a lower bound and no measurement: {plan.step_s:,.1f} s a step and "
        f"{plan.tokens_per_step / plan.step_s:,.0f} sampled tokens/s, if every program ran at the "
        f"peak numbers of {chip.source}: {chip.flops / 1e12:.0f} TFLOP/s, "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s memory, {chip.link_bandwidth / 1e9:.0f} GB/s links."
    )


def _distinct(planned: Iterable[Planned]) -> list[Planned]:
    """The programs, but of several that were compiled as one only the first."""
    seen: dict[int, Planned] = {}
    for p in planned:
        seen.setdefault(id(p.call.compiled), p)
    return list(seen.values())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _column(table: Table, name: str) -> None:
    is_text = name in ("program", "kind", "setting", "bound by", "")
    table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
