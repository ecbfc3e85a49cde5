"""A plan as data and as JSON: every program with its needs, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cipo_jax.config import Config
from cipo_jax.plan import cycle
from cipo_jax.plan.cycle import Call, Moment
from cipo_jax.plan.hardware import Slice


@dataclass(frozen=True, kw_only=True)
class Work:
    """Lower bounds on the time of one run of a program, one for each resource by itself."""

    compute_s: float
    memory_s: float
    link_s: float

    @property
    def seconds(self) -> float:
        """The lower bound if the three overlap perfectly."""
        return max(self.compute_s, self.memory_s, self.link_s)

    @property
    def bound(self) -> str:
        """The resource that the program waits for."""
        by_time = {"compute": self.compute_s, "memory": self.memory_s, "links": self.link_s}
        return max(by_time, key=lambda name: by_time[name])


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One program: its place in the cycle, its memory and its work."""

    call: Call
    moment: Moment
    work: Work

    @property
    def seconds(self) -> float:
        """Lower bound on its time in a step, or in an evaluation for a program of an evaluation."""
        return self.call.per_step * self.call.at_once * self.work.seconds


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest value of one setting that fits."""

    name: str
    configured: int
    value: int
    """0 if no value fits."""
    step: int
    """Only multiples of this were tried."""
    is_capped: bool
    """A larger value would be of no use, or the model lacks positions for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The needs of a run of one configuration on one slice."""

    cfg: Config
    slice: Slice
    device_kind: str
    num_devices: int
    mesh: dict[str, int]
    hbm_bytes: int
    hbm_source: str
    resident: dict[str, int]
    programs: tuple[Planned, ...]
    missing: tuple[str, ...]
    """Programs that were not compiled, as their arguments come from a refused one."""
    largest: tuple[Largest, ...]
    versions: dict[str, str]
    seconds: float
    """Time that the planning itself took."""

    @property
    def moments(self) -> list[Moment]:
        return [p.moment for p in self.programs]

    @property
    def fits(self) -> bool:
        """Whether every program was compiled, and stays within a device's memory together with all
        that is kept beside it."""
        return not self.missing and cycle.fits(self.moments, self.hbm_bytes)

    @property
    def fullest(self) -> Moment:
        """The moment that needs most memory."""
        return cycle.fullest(self.moments)

    @property
    def step_s(self) -> float:
        """Lower bound on the devices' time for a step, without evaluations."""
        return sum(p.seconds for p in self.programs if p.call.phase != "evaluate")

    @property
    def tokens_per_step(self) -> int:
        """Tokens sampled in a step in which every completion has its full length."""
        completions = self.cfg.train.prompts_per_step + self.cfg.num_anchors
        completions *= self.cfg.sampling.samples_per_prompt
        return completions * self.cfg.sampling.max_new_tokens

    def to_json(self) -> dict[str, Any]:
        """For scripts: `fits`, `hbm_bytes`, `peak_bytes`, `programs` and the rest."""
        return {
            "config": self.cfg.name,
            "asked": self.slice.asked,
            "topology": self.slice.topology,
            "rented_as": self.slice.rented_as,
            "chips": self.slice.num_chips,
            "devices": self.num_devices,
            "device_kind": self.device_kind,
            "mesh": self.mesh,
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_source": self.hbm_source,
            "peak_bytes": self.fullest.total,
            "peak_at": self.fullest.label,
            "resident": self.resident,
            "programs": [_program_json(p) for p in self.programs],
            "missing": list(self.missing),
            "largest": {entry.name: asdict(entry) for entry in self.largest},
            "estimate": {
                "is_lower_bound": True,
                "peak_numbers": asdict(self.slice.chip),
                "step_s": self.step_s,
                "tokens_per_step": self.tokens_per_step,
                "tokens_per_s": self.tokens_per_step / self.step_s if self.step_s else None,
            },
            "settings": asdict(self.cfg),
            "remarks": list(self.slice.remarks),
            "versions": self.versions,
            "planning_s": self.seconds,
        }


def _program_json(planned: Planned) -> dict[str, Any]:
    call, compiled = planned.call, planned.call.compiled
    moved = compiled.movement
    return {
        "phase": call.phase,
        "name": call.name,
        "per_step": call.per_step,
        "at_once": call.at_once,
        "is_refused": planned.moment.is_refused,
        "refused_bytes": compiled.refused_bytes,
        "memory": None if compiled.memory is None else asdict(compiled.memory),
        "kept": planned.moment.kept,
        "growth_bytes": planned.moment.growth,
        "total_bytes": planned.moment.total,
        "flops": compiled.count.flops,
        "uncounted": list(compiled.count.uncounted),
        "traffic_bytes": moved.traffic_bytes,
        "unknown_loops": moved.unknown_loops,
        "collectives": [{**asdict(c), "sent_bytes": c.sent_bytes} for c in moved.collectives],
        "kernels": list(moved.kernels),
        "estimate": {**asdict(planned.work), "bound": planned.work.bound},
        "compile_cpu_s": compiled.compile_cpu_s,
    }
