"""The plans of docs/plans, as their tables say it, against the settings and the code of today."""

import dataclasses
import math
import re

import jax
import pytest

from cipo_jax import config
from cipo_jax.config import Config, configfile
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.plan import programs
from cipo_jax.plan.report import settings
from cipo_jax.plan.worker import planned_architecture
from tests import ROOT

FOLDER = ROOT / "docs" / "plans"
PLANS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.txt"))}
GIB = 2**30
ROUNDING = 0.005
"""GiB, MB and GB have two decimals in the tables."""


def made_for(name: str, *others: str) -> Config:
    """The configuration that a plan was made for, as the script that makes it says; with others."""
    lines = (FOLDER / "make.sh").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    ((_, file, _, overrides),) = (row for row in rows if len(row) == 4 and row[0] == name)
    return configfile.load(ROOT / "configs" / f"{file}.yaml", [*overrides.split(), *others])


def words(text: str) -> str:
    """Lines are broken where the terminal ends."""
    return " ".join(text.split())


def table(name: str, title: str) -> list[list[str]]:
    """The cells of a plan's table, row by row."""
    _, _, below = PLANS[name].partition(f"\n{title}")
    rows = below[below.index(" ───") :].splitlines()[1:]
    count = next(i for i, row in enumerate(rows) if not row.strip())
    return [re.split(r" {2,}", row.strip()) for row in rows[:count]]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def kept(name: str) -> dict[str, float]:
    """GiB of a device that a run keeps throughout."""
    label = "kept throughout: "
    rows = table(name, "Memory of a device")
    return {row[0].removeprefix(label): float(row[1]) for row in rows if row[0].startswith(label)}


def mesh_size(name: str) -> int:
    (sizes,) = re.findall(r", mesh (data .*?)\)", words(PLANS[name]))
    return math.prod(map(int, sizes.split()[1::2]))


def changed_settings(name: str, cfg: Config) -> list[str]:
    """Sections in which a configuration is not the one that the plan was made for."""
    text = words(PLANS[name])
    return [s for s, values in settings(cfg).items() if words(f" {s}: {values};") not in text]


def changed_memory(name: str, cfg: Config) -> list[str]:
    """What a run of a configuration keeps in memory, and the plan has not or in another size."""
    one = dataclasses.replace(cfg, mesh=config.MeshShape(data=1, fsdp=1, tensor=1))
    mesh = make_mesh(one.mesh, jax.devices()[:1])
    resident = programs.resident(one, planned_architecture(cfg), mesh)
    planned = kept(name)
    is_factored = isinstance(cfg.adapter, config.Lora) or isinstance(
        cfg.optimizer, config.Adafactor
    )
    found = sorted(planned.keys() ^ resident.keys())
    for what in (what for what in planned if what in resident):
        share = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(resident[what]))
        share /= GIB * mesh_size(name)
        # A little more where tiles are filled up and small arrays are on several devices; for the
        # narrow factors of an adapter or of moments, several times as much.
        most = 16 if is_factored and what != programs.FROZEN else 1.2
        if not share <= planned[what] + ROUNDING or not planned[what] - ROUNDING < most * share:
            found.append(what)
    return found


@pytest.mark.parametrize("name", PLANS)
def test_kept_plans_are_made_for_the_shipped_settings(name):
    """If not: make the plan again, by docs/plans/make.sh."""
    assert changed_settings(name, made_for(name)) == []
    assert changed_memory(name, made_for(name)) == []


def test_a_stale_plan_is_found():
    """The control of the test above."""
    name, lora = "qwen3_4b_math.v5p-16", "qwen3_4b_math_lora.v5p-16"
    rows = made_for(name, "--train.rows-per-microbatch", "16")
    assert changed_settings(name, rows) == ["train"]
    longer = made_for(name, "--evaluation.max-new-tokens", "4096")
    assert changed_settings(name, longer) == ["evaluation"]
    narrower = made_for(lora, "--adapter.projections", "[q, v]")
    assert changed_settings(lora, narrower) == ["adapter"]
    factored = made_for(name, "--optimizer.kind", "adafactor")
    assert changed_settings(name, factored) == ["optimizer"]
    assert changed_memory(name, factored) == ["optimizer state"]
    halved = made_for(name, "--optimizer.first-moment-dtype", "bfloat16")
    assert changed_memory(name, halved) == ["optimizer state"]
    alone = made_for(name, "--kl.weight", "0")
    assert changed_memory(name, alone) == ["frozen parameters"]
    smaller = made_for(name, "--model.path", "Qwen/Qwen3-1.7B")
    assert changed_memory(name, smaller) == list(kept(name))


@pytest.mark.parametrize("name", ["qwen3_4b_math", "qwen3_4b_math_lora", "seed_coder_8b_code"])
def test_each_shipped_setting_fits_the_slice_that_it_is_written_for(name):
    """Eight devices, as the configs say of themselves: v5p-16 with nothing set beside them."""
    plan = f"{name}.v5p-16"
    (fits,) = re.findall(r" fits: ([\d.]+) GiB of ([\d.]+) GiB ", words(PLANS[plan]))
    peak, available = map(float, fits)
    whole = [float(row[7]) for row in table(plan, "Memory of a device") if len(row) == 9]
    assert peak == max(whole)
    assert peak < available
    assert made_for(plan) == configfile.load(ROOT / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("name", ["qwen3_4b_math", "seed_coder_8b_code"])
def test_over_fsdp_alone_no_gradient_of_the_large_models_is_summed_whole(name):
    """In the kept plans of eight chips: the layers' matrices are scattered in pieces, the head by
    halving, once a microbatch."""
    plan = f"{name}.v5p-16"
    assert "mesh data 1 fsdp 8 expert 1 tensor 1)" in words(PLANS[plan])
    exchanged = [
        (kind, number(each), number(runs), 1e9 * number(sent))
        for program, kind, _, each, _, runs, sent in table(plan, "Collectives")
        if program == "train: train step"
    ]
    assert max((each for kind, each, *_ in exchanged if kind == "all-reduce"), default=0) < 0.1
    arch = planned_architecture(made_for(plan))
    head = 4e-6 * arch.vocab_size * arch.model_dim  # MB
    halves = [
        (each, runs)
        for kind, each, runs, _ in exchanged
        if kind == "collective-permute" and each > head / 8 - ROUNDING
    ]
    sizes = [head / 2, head / 4, head / 8]
    assert [each for each, _ in halves] == pytest.approx(sizes, abs=2 * ROUNDING)
    (microbatches,) = {runs for _, runs in halves}
    heads = 2 * arch.num_heads + 2 * arch.num_kv_heads
    layer = 2 * arch.model_dim * (heads * arch.head_dim + 3 * arch.mlp_dim)
    pieces = sum(sent for kind, *_, sent in exchanged if kind == "reduce-scatter in pieces")
    assert pieces >= 7 / 8 * layer * arch.num_layers * microbatches
