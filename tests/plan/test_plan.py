"""Plans: slices, memory over the cycle, one real plan for a TPU slice that is not there."""

import contextlib
import dataclasses
import gzip
import importlib.util
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from cipo_jax import cli, plan
from cipo_jax.config import configfile
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.plan import cycle, devices, flops, hardware, movement, programs, search
from cipo_jax.plan.compile import Compiled, Memory
from cipo_jax.plan.cycle import Call
from cipo_jax.plan.worker import planned_architecture
from tests import ROOT

pytestmark = pytest.mark.slow

SMOKE = ROOT / "configs" / "smoke.yaml"
# As few programs as a run can have, and small ones: an evaluation in the shapes of training.
SMALL = [
    "--train.prompts-per-step", "8", "--sampling.max-new-tokens", "8",
    "--evaluation.max-new-tokens", "8", "--evaluation.samples-per-problem", "8",
    "--train.row-tokens", "256", "--train.rows-per-microbatch", "4", "--kl.weight", "0.1",
    "--train.steps", "1",
]  # fmt: skip
HAS_TPU_COMPILER = platform.system() == "Linux" and platform.machine() == "x86_64"


# Names of slices


@pytest.mark.parametrize(
    ("name", "topology", "chips", "rented_as"),
    [
        ("v5litepod-16", "v5e:4x4", 16, "v5litepod-16"),
        ("v5e-64", "v5e:8x8", 64, "v5litepod-64"),
        ("v6e-64", "v6e:8x8", 64, "v6e-64"),
        ("v5p-16", "v5p:2x2x2", 8, "v5p-16"),
        ("V4-32", "v4:2x2x4", 16, "v4-32"),
        ("v5e:2x4", "v5e:2x4", 8, "v5litepod-8"),
        ("v5e:32x32", "v5e:32x32", 1024, None),
        ("h100:8", "h100:8", 8, None),
    ],
)
def test_names_of_slices(name, topology, chips, rented_as):
    found = hardware.parse(name)
    assert (found.topology, found.num_chips, found.rented_as) == (topology, chips, rented_as)
    is_warned = any("may not be possible to rent" in remark for remark in found.remarks)
    assert is_warned == (rented_as is None and found.chip.platform == "tpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5litepod-17", "v5litepod-16"),
        ("v5p:4x4", "3 dimensions. Nearest: v5p:4x4x"),
        ("v7x:2x2", "Nearest: v"),
        ("tpu", "write v5e:4x4 or v5litepod-16"),
        ("v6e:0x4", "2 dimensions"),
    ],
)
def test_an_unknown_slice_names_the_nearest(name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        hardware.parse(name)


# Memory over the cycle


def call(name, *, arguments=0, results=0, peak=0, refused=None, **options):
    memory = Memory(
        arguments=arguments, host_arguments=options.pop("host", 0), results=results,
        temporaries=0, peak=peak,
    )  # fmt: skip
    compiled = Compiled(
        memory=None if refused else memory, refused_bytes=refused, compile_cpu_s=0,
        count=flops.Count(flops=0, uncounted=()), movement=movement.NOTHING,
    )  # fmt: skip
    defaults = {"phase": "sample", "at_once": 1, "per_step": 1, "makes": None, "frees": ()}
    return Call(name=name, compiled=compiled, **{**defaults, **options})


def test_the_cycle_adds_up():
    found = cycle.moments(
        {"weights": 100, "optimizer": 200},
        [
            # Reads the weights and 5 from the host, leaves 30, needs 20 more at its worst.
            call("read", arguments=105, host=5, results=30, peak=155, makes="cache"),
            # Takes 3 pieces of 10 out of the cache, each with its own place.
            call(
                "take", arguments=30, results=10, peak=41, at_once=3, makes="pieces",
                frees=("cache",),
            ),
            # Reads the weights and the pieces.
            call("draw", arguments=130, results=2, peak=180, frees=("pieces",)),
            # Takes the place of its arguments, but for 70.
            call("train", arguments=300, peak=370),
        ],
    )  # fmt: skip
    assert [m.total for m in found] == [
        300 + 5 + 50,
        300 + 30 + 2 * 10 + 11,
        300 + 30 + 50,
        300 + 70,
    ]
    assert cycle.fullest(found).label == "sample: draw"
    assert cycle.fits(found, 380)
    assert not cycle.fits(found, 379)


def test_what_is_refused_does_not_fit_whatever_it_said():
    found = cycle.moments({"weights": 100}, [call("read", refused=900)])
    assert found[0].total == 900
    assert not cycle.fits(found, 1000)


# The search


@pytest.mark.parametrize("start", [1, 4, 9, 30, 100])
def test_the_largest_that_fits_is_found_and_nothing_asked_twice(start):
    for threshold in range(35):
        asked = []

        def fits(value, threshold=threshold, asked=asked):
            asked.append(value)
            return value <= 4 * threshold

        found = search.largest(fits, start=4 * start, step=4, most=122)
        assert found == 4 * min(threshold, 30)
        assert len(asked) == len(set(asked)) <= 2 * math.log2(30) + 2
        assert asked[0] == 4 * min(start, 30)


def test_longer_completions_take_their_room_along():
    cfg = configfile.load(ROOT / "configs" / "qwen3_4b_math.yaml")
    ranges = search.ranges(cfg, row_shards=4, max_position=40_960)
    longest = ranges["length"].put(cfg, ranges["length"].most)
    assert 40_950 < longest.longest_sequence <= 40_960
    assert longest.prompts.max_attempt_tokens == longest.sampling.max_new_tokens
    assert ranges["prompts"].most == 32
    with pytest.raises(ValueError, match=r"'row' is none of rows, prompts, length"):
        search.parse_knobs("row")
    assert search.parse_knobs("none") == ()


# The programs of a plan are the programs of a run


def compiled_programs(said: str) -> set[tuple[str, tuple[str, ...]]]:
    """Names and argument types of the programs of a plan that jax reports to compile."""
    return {
        (name, tuple(re.findall(r"ShapedArray\(([^,)]*?\[[\d,]*\])", types)))
        for name, types in re.findall(
            r"Compiling jit\((\w+)\) with global shapes and types \((.*?)\)\. Argument", said
        )
        if name in PROGRAMS
    }


PROGRAMS = {"read_prompts", "layer_of", "cast", "complete", "step"}


def test_a_run_compiles_the_programs_that_are_planned(tmp_path, caplog):
    """JAX itself says what a run compiles, from a process of its own with one device."""
    settings = [*SMALL, "--train.compute-dtype", "bfloat16"]
    ran = subprocess.run(
        [
            sys.executable, "-m", "cipo_jax.cli", "train", str(SMOKE), *settings,
            "--run-dir", str(tmp_path / "run"),
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]

    cfg = configfile.load(SMOKE, settings)
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    phases, results = [], None
    generator = programs.programs(cfg, planned_architecture(cfg), mesh)
    with contextlib.suppress(StopIteration), jax.set_mesh(mesh), jax.log_compiles():
        while True:
            program = generator.send(results)
            phases.append(program.phase)
            lowered = program.function.lower(*program.args, **program.static)
            results = lowered.out_info
    assert compiled_programs(caplog.text) == compiled_programs(ran.stderr)
    assert {name for name, _ in compiled_programs(ran.stderr)} == PROGRAMS
    assert phases == ["sample"] * 5 + ["correct"] * 5 + ["train"] + ["evaluate"] * 15


def test_operations_of_the_train_step_follow_the_formula():
    """6 for each weight of a product and token, 2 more where a layer is computed again, and
    attention's own."""
    cfg = configfile.load(SMOKE, [*SMALL, "--train.rows-per-microbatch", "8", "--kl.weight", "0"])
    arch = planned_architecture(cfg)
    mesh = make_mesh(cfg.mesh)
    (program,) = programs.programs(cfg, arch, mesh, ["train"])
    with jax.set_mesh(mesh):
        found = flops.count(program.function.trace(*program.args).jaxpr, program.trips).flops
    state, _, batch = program.args
    tokens = batch.token_BT.size
    blocks = state.params.blocks
    matrices = sum(x.size for x in jax.tree.leaves(blocks) if x.ndim > 2)
    attention = 4 * arch.num_layers * arch.num_heads * arch.head_dim * cfg.train.row_tokens
    forward = 2 * matrices + attention
    head = 2 * arch.vocab_size * arch.model_dim
    # With remat, forward twice and backward twice forward; so too the head's chunks.
    assert found == pytest.approx(4 * (forward + head) * tokens, rel=0.08)


# A real plan


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def made(answers):
    """A plan for four v5e chips, made by libtpu's compiler."""
    if not HAS_TPU_COMPILER:
        pytest.skip("libtpu is made for Linux x86-64 only")
    cfg = configfile.load(SMOKE, SMALL)
    return plan.make(cfg, hardware.parse("v5litepod-4"), answers=answers)


def test_what_was_compiled_once_is_not_compiled_again(made, answers):
    kept = {path: path.stat().st_mtime_ns for path in answers.iterdir()}
    assert len(kept) >= 9
    cfg = configfile.load(SMOKE, SMALL)
    again = plan.make(cfg, hardware.parse("v5litepod-4"), answers=answers)
    assert {path: path.stat().st_mtime_ns for path in answers.iterdir()} == kept
    # Compilation times come with the answers, so all is the same but the time of planning.
    assert dataclasses.replace(again, seconds=made.seconds) == made
    # Another setting of the loss is another train step, and no other sampler.
    other = configfile.load(SMOKE, [*SMALL, "--objective.clip-high", "0.3"])
    plan.make(other, hardware.parse("v5litepod-4"), answers=answers)
    (added,) = set(answers.iterdir()) - set(kept)
    with gzip.open(added, "rt") as file:
        assert "HloModule jit_step" in json.load(file)["text"]


@pytest.mark.skipif(not HAS_TPU_COMPILER, reason="libtpu is made for Linux x86-64 only")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_plan_that_is_killed_leaves_nothing(how, tmp_path):
    """The compiler's process ends with it, in the middle of a program that takes far longer."""
    config = ROOT / "configs" / "qwen3_4b_math.yaml"
    # What a shell started in the background ignores Ctrl-C, and so would the process below.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        [
            sys.executable, "-m", "cipo_jax.cli", "plan", str(config), "--topology", "v5litepod-4",
            "--answers", str(tmp_path / "answers"),
        ],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    with running:
        assert running.stderr is not None
        assert any("compiling" in line for line in running.stderr)
        (worker,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert "cipo_jax.plan.worker" in Path(f"/proc/{worker}/cmdline").read_text()
        running.send_signal(how)
        running.wait(timeout=120)
    deadline = time.monotonic() + 120
    while is_alive(worker):
        assert time.monotonic() < deadline, "the compiler goes on"
        time.sleep(0.05)
    assert [path for path in tmp_path.iterdir() if path.name != "answers"] == []


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def fast(made, monkeypatch):
    """The command line with the plan that was made already."""

    def use(found):
        monkeypatch.setattr(plan, "make", lambda *args, **options: found)

    use(made)
    return use


def test_a_plan_for_chips_that_are_not_there(made):
    assert made.fits
    assert made.hbm_bytes == int(15.75 * 2**30)
    assert (made.num_devices, made.device_kind) == (4, "TPU v5 lite")
    assert {p.call.label for p in made.programs} >= {
        "sample: prefill",
        "sample: decode",
        "correct: prefill",
        "correct: decode",
        "train: train step",
        "evaluate: greedy decode",
        "evaluate: sampled decode",
        "evaluate: corrected decode",
    }
    for planned in made.programs:
        memory = planned.call.compiled.memory
        assert memory.peak >= memory.arguments + memory.results
        assert planned.moment.total > sum(made.resident.values())
        assert planned.call.compiled.movement.unknown_loops == 0
    trained = {p.call.label: p for p in made.programs}["train: train step"]
    kinds = {c.kind for c in trained.call.compiled.movement.collectives}
    assert kinds & {"all-reduce", "reduce-scatter"}
    assert "all-gather" in kinds
    # AdamW has two moments for each weight, and the KL penalty a copy of the weights.
    weights, moments, frozen = made.resident.values()
    assert weights == frozen
    assert 2 * weights <= moments < 2.1 * weights + 4096
    assert "libtpu" in made.versions


def test_json_is_one_object_and_the_exit_status_says_whether_it_fits(made, fast, capsys, tmp_path):
    arguments = ["plan", str(SMOKE), "--topology", "v5litepod-4"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] is True
    assert said["hbm_bytes"] == made.hbm_bytes
    assert said["peak_bytes"] == max(p["total_bytes"] for p in said["programs"])
    fast(dataclasses.replace(made, hbm_bytes=said["peak_bytes"] - 1))
    assert cli.main([*arguments, "--picture", str(tmp_path / "memory.png")]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_name_every_program(made, fast, capsys):
    cli.main(["plan", str(SMOKE), "--topology", "v5litepod-4"])
    printed = capsys.readouterr().out
    assert "fits" in printed.splitlines()[1]
    for planned in made.programs:
        assert planned.call.label in printed
    assert "no measurement" in printed
    assert made.versions["jax"] in printed


def test_a_run_that_does_not_divide_over_the_slice_is_refused():
    if not HAS_TPU_COMPILER:
        pytest.skip("libtpu is made for Linux x86-64 only")
    cfg = configfile.load(SMOKE, [*SMALL, "--mesh.tensor", "3"])
    with pytest.raises(ValueError, match="does not make 4 devices"):
        plan.make(cfg, hardware.parse("v5litepod-4"))


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="opt-in: the GPU compiler comes with the extra cuda12",
)
def test_a_plan_for_gpus_compares_with_the_stated_memory():
    cfg = configfile.load(SMOKE, SMALL)
    found = plan.make(cfg, hardware.parse("h100:4"), hbm_gib=1.0)
    assert (found.hbm_bytes, found.hbm_source) == (2**30, "as stated")
    assert found.fits
    assert not dataclasses.replace(found, hbm_bytes=found.fullest.total - 1).fits
    assert "H100" in found.device_kind


def test_without_a_compiler_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = hardware.parse("v5e:4x4")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(ImportError, match=r"pip install 'cipo-jax\[tpu\]'"):
        devices.check_compiler(wanted)
    with pytest.raises(ImportError, match=r"pip install 'cipo-jax\[cuda12\]'"):
        devices.check_compiler(hardware.parse("h100:8"))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ImportError, match=r"not made for Darwin arm64"):
        devices.check_compiler(wanted)
