"""Checkpoints: bit-equal, atomic under SIGKILL, restored onto another mesh and in a new process."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax import config
from cipo_jax.config import Config
from cipo_jax.mesh.sharding import PARAM_RULES, abstract_on, make_mesh
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import abstract, init
from cipo_jax.update import checksums
from cipo_jax.update.checkpoint import Checkpoints, restore_params
from cipo_jax.update.checksums import DamagedError
from cipo_jax.update.train_step import TrainState, abstract_state, init_state, make_train_step
from tests.batches import random_batch

# A reader that fails on a damaged file leaves coroutines behind that were never awaited.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOST = {"cursor": {"epoch": 1, "index": [3, 1, 2]}, "ratio": 0.1 + 0.2, "buffer": ["ü\n", ""]}


def make_config(preset="tiny-llama", **optimizer) -> Config:
    return Config(
        name="test",
        model=config.RandomModel(preset=preset),
        tasks=config.GeneratedTask(),
        prompts=config.Prompts(max_prompt_tokens=8, max_correction_prompt_tokens=16),
        sampling=config.Sampling(max_new_tokens=16),
        optimizer=config.AdamW(learning_rate=1e-2, schedule="cosine", **optimizer),
        train=config.Train(steps=4, row_tokens=32, rows_per_microbatch=2, compute_dtype="float32"),
    )


def mesh_of(data, fsdp, tensor):
    sizes = config.MeshShape(data=data, fsdp=fsdp, tensor=tensor)
    return make_mesh(sizes, jax.devices()[: data * fsdp * tensor])


def random_state(mesh, seed=0, preset="tiny-llama") -> TrainState:
    """A state with a different random number everywhere, moments included."""
    state = abstract_state(make_config(preset), PRESETS[preset], mesh)
    leaves, treedef = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=x.shape) * 100 for x in leaves]
    return treedef.unflatten(
        jax.device_put(np.asarray(v, x.dtype), x.sharding)
        for v, x in zip(values, leaves, strict=True)
    )


def assert_equal(actual, expected):
    def check(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    jax.tree.map(check, actual, expected)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def saved(folder, steps=(2,), mesh=None, keep=5):
    """A closed folder of checkpoints of `random_state(seed=step)`."""
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        state = random_state(mesh or mesh_of(1, 1, 1), seed=step)
        checkpoints.save(step, state, HOST | {"step": step})
    checkpoints.close()


def target(mesh=None, preset="tiny-llama"):
    return abstract_state(make_config(preset), PRESETS[preset], mesh or mesh_of(1, 1, 1))


def test_empty_folder(folder):
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest_step() is None
    assert checkpoints.restore_latest(target()) is None
    checkpoints.close()
    with pytest.raises(ValueError, match="it has steps \\[\\]"):
        restore_params(folder, target().params)


def test_round_trip_and_keep(folder):
    saved(folder, steps=(1, 2, 3), keep=2)
    checkpoints = Checkpoints(folder, keep=2)
    state, host = checkpoints.restore_latest(target())
    assert_equal(state, random_state(mesh_of(1, 1, 1), seed=3))
    assert host == HOST | {"step": 3}
    assert checkpoints.latest_step() == 3
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    # Control for the comparison: another seed is another state.
    with pytest.raises(AssertionError):
        assert_equal(state, random_state(mesh_of(1, 1, 1), seed=2))


def test_onto_another_mesh(folder):
    saved(folder, mesh=mesh_of(8, 1, 1))
    other = mesh_of(1, 4, 2)
    checkpoints = Checkpoints(folder, keep=1)
    state, _ = checkpoints.restore_latest(target(other))
    checkpoints.close()
    assert_equal(state, random_state(mesh_of(8, 1, 1), seed=2))
    for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target(other)), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    gate = state.params.blocks.gate
    assert gate.addressable_shards[0].data.size * 8 == gate.size


def test_parameters_alone(folder):
    saved(folder, steps=(1, 2))
    wanted = abstract_on(abstract(PRESETS["tiny-llama"]), mesh_of(2, 2, 2), PARAM_RULES)
    for step in (1, 2, None):
        restored, found = restore_params(folder, wanted, step=step)
        assert found == (step or 2)
        assert_equal(restored, random_state(mesh_of(1, 1, 1), seed=found).params)
    with pytest.raises(ValueError, match=r"has not step 7; it has steps \[1, 2\]"):
        restore_params(folder, wanted, step=7)


def test_state_may_be_overwritten_while_it_is_saved(folder):
    """The train step donates the state at once after `save`; on CPUs the saver would otherwise see
    the same memory."""
    add = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    state = {"params": jnp.arange(2.0**22)}
    expected, abstract_state = np.array(state["params"]), jax.eval_shape(lambda: state)
    host = {"list": [1]}
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, state, host)
    host["list"].append(2)
    for _ in range(20):
        state = add(state)
    jax.block_until_ready(state)
    restored, restored_host = checkpoints.restore_latest(abstract_state)
    checkpoints.close()
    np.testing.assert_array_equal(restored["params"], expected)
    assert restored_host == {"list": [1]}


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut_off(step: Path):
    os.truncate(largest_file(step), largest_file(step).stat().st_size // 2)


def other_arrays(step: Path):
    """Whole files with other numbers, as after a copy that mixed two checkpoints up."""
    shutil.rmtree(step / "state")
    shutil.copytree(step.parent / "1" / "state", step / "state")


def flip_bit(path: Path, offset: int, bit: int = 3):
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def another_number(step: Path):
    """JSON that still parses, with one digit changed."""
    path = step / "host" / "metadata"
    text = path.read_text()
    assert text.count('"epoch": 1') == 1
    path.write_text(text.replace('"epoch": 1', '"epoch": 3'))


DAMAGES = {
    "empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "no host state": lambda step: shutil.rmtree(step / "host"),
    "no tree": lambda step: (step / "state" / "_METADATA").unlink(),
    "array cut off": cut_off,
    "host state cut off": lambda step: os.truncate(step / "host" / "metadata", 3),
    "bit of an array": lambda step: flip_bit(
        largest_file(step / "state"), largest_file(step / "state").stat().st_size // 2
    ),
    "other arrays": other_arrays,
    "digit of the host state": another_number,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_passed_over(folder, damage):
    saved(folder, steps=(1, 2))
    damage(folder / "2")
    checkpoints = Checkpoints(folder, keep=2)
    state, host = checkpoints.restore_latest(target())
    assert host["step"] == 1
    assert_equal(state, random_state(mesh_of(1, 1, 1), seed=1))
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2.damaged"]
    # Step 2 is made again and saved. orbax skips a save silently if it believes to have the step.
    checkpoints.save(2, state, HOST | {"step": 22})
    checkpoints.wait()
    _, host = checkpoints.restore_latest(target())
    assert host["step"] == 22
    checkpoints.close()


def test_no_flipped_bit_is_restored(folder):
    """Wherever it falls in the file of the arrays: the checkpoint is passed over, or the bit is one
    that no array depends on."""
    saved(folder, steps=(1, 2))
    path, expected = largest_file(folder / "2" / "state"), random_state(mesh_of(1, 1, 1), seed=2)
    pristine, passed_over = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(0, len(pristine), 12):
        flip_bit(path, int(place), bit=int(place) % 8)
        checkpoints = Checkpoints(folder, keep=2)
        state, host = checkpoints.restore_latest(target())
        checkpoints.close()
        if host["step"] == 1:
            passed_over += 1
            (folder / "2.damaged").rename(folder / "2")
        else:
            assert_equal(state, expected)
        path.write_bytes(pristine)
    assert passed_over >= 10


def test_parameters_alone_are_checked_too(folder):
    saved(folder, steps=(1, 2))
    restore_params(folder, target().params)
    other_arrays(folder / "2")
    with pytest.raises(DamagedError, match=r"params/.* is not what was saved"):
        restore_params(folder, target().params)


def test_a_checksum_is_of_bits_and_of_their_places():
    x = jnp.arange(24.0).reshape(2, 3, 4)

    def sums(*arrays):
        return list(checksums.of_arrays(list(arrays)).values())

    one, same = sums(x, x + 0)
    assert one == same
    mesh = jax.sharding.NamedSharding(mesh_of(2, 1, 1), jax.sharding.PartitionSpec("data"))
    assert sums(jax.device_put(x, mesh)) == [one]
    nan = x.at[0, 0, 0].set(jnp.nan)
    others = sums(
        x.at[1, 2, 3].add(1e-5),
        -x,
        x[:, ::-1],
        x.at[0, 0, 0].set(-0.0),
        nan,
        x.astype(jnp.bfloat16),
    )
    assert len({one, *others}) == 7
    assert sums(nan) == [others[4]]


def test_all_damaged_is_an_error_and_nothing_is_moved(folder):
    saved(folder, steps=(1, 2))
    for step in ("1", "2"):
        DAMAGES["array cut off"](folder / step)
    checkpoints = Checkpoints(folder, keep=2)
    with pytest.raises(RuntimeError, match=r"no checkpoint in .* can be read"):
        checkpoints.restore_latest(target())
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_another_architecture_is_named(folder):
    saved(folder)
    checkpoints = Checkpoints(folder, keep=2)
    differs = r"params/blocks/q_norm is absent there and \(3, 16\) float32 here"
    with pytest.raises(ValueError, match=differs):
        checkpoints.restore_latest(target(preset="tiny-qwen3"))
    wider = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jax.ShapeDtypeStruct((321, 32), x.dtype, sharding=x.sharding)
            if jax.tree_util.keystr(path) == ".params.embed"
            else x
        ),
        target(),
    )
    differs = r"params/embed is \(320, 32\) float32 there and \(321, 32\) float32 here"
    with pytest.raises(ValueError, match=differs):
        checkpoints.restore_latest(wider)
    with pytest.raises(ValueError, match=differs):
        restore_params(folder, wider.params)
    checkpoints.close()


def test_save_rules(folder):
    checkpoints = Checkpoints(folder, keep=2)
    state = random_state(mesh_of(1, 1, 1))
    with pytest.raises(ValueError, match="not JSON serializable"):
        checkpoints.save(1, state, {"array": np.zeros(2)})
    checkpoints.save(5, state, {"n": 1})
    checkpoints.save(5, state, {"n": 2})
    with pytest.raises(ValueError, match=r"step 4 can't be saved in .*: it holds step 5"):
        checkpoints.save(4, state, {})
    assert checkpoints.restore_latest(target())[1] == {"n": 1}
    checkpoints.close()


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

SAVER = """
import sys, jax
from cipo_jax.update.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=1)
abstract = {"params": jax.ShapeDtypeStruct((8 << 20,), "float32")}
restored = checkpoints.restore_latest(abstract)
step = 0 if restored is None else restored[1]["step"]
while True:
    step += 1
    params = jax.random.normal(jax.random.key(step), (8 << 20,))
    checkpoints.save(step, {"params": params}, {"step": step})
    checkpoints.wait()
    print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_save(folder):
    """SIGKILL while a temporary folder is there: what is restored is whole, and no older than the
    last save that was reported done. With keep=1 the one good checkpoint is at stake each time."""
    abstract_state = {"params": jax.ShapeDtypeStruct((8 << 20,), "float32")}
    previous = 0
    for delay_s in (0.0, 0.02, 0.05):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        reported = int(saver.stdout.readline())
        assert reported == previous + 1
        while not list(folder.glob("*tmp*")):
            assert saver.poll() is None
        time.sleep(delay_s)
        saver.send_signal(signal.SIGKILL)
        reported = max(reported, *map(int, saver.stdout.read().split()), 0)
        saver.wait()
        if delay_s == 0.0:
            assert list(folder.glob("*tmp*")), "the kill came after the save: it tests nothing"
        checkpoints = Checkpoints(folder, keep=1)
        state, host = checkpoints.restore_latest(abstract_state)
        checkpoints.close()
        assert not list(folder.glob("*tmp*"))
        assert host["step"] in (reported, reported + 1)
        expected = jax.random.normal(jax.random.key(host["step"]), (8 << 20,))
        np.testing.assert_array_equal(state["params"], expected)
        previous = host["step"]


def run(folder, keep: int) -> TrainState:
    """Train to step 4, going on from the newest checkpoint: what a run does, without its host side.
    Batch k is a function of k."""
    cfg, arch, mesh = make_config(), PRESETS["tiny-llama"], mesh_of(1, 2, 1)
    batches = [random_batch(4, 32, vocab_size=arch.vocab_size, seed=k) for k in range(4)]
    abstract = abstract_state(cfg, arch, mesh)
    update = make_train_step(cfg, arch, mesh).lower(abstract, None, batches[0])
    update = update.compile(compiler_options={"xla_backend_optimization_level": 0})
    checkpoints = Checkpoints(folder, keep)
    restored = checkpoints.restore_latest(abstract)
    if restored is None:
        state = init_state(init(jax.random.key(7), arch), cfg, mesh)
    else:
        state, host = restored
        assert host == {"step": int(state.step)}
    for k in range(int(state.step), 4):
        state, _ = update(state, None, batches[k])
        checkpoints.save(k + 1, state, {"step": k + 1})
    checkpoints.close()
    return state


RESUME = """
import sys
from tests import conftest
from tests.update import test_checkpoint
test_checkpoint.run(sys.argv[1], keep=4)
"""


def test_resume_in_a_new_process_is_bit_equal(folder, tmp_path):
    """4 updates = 2 + a new process + 2, for parameters, moments and counts."""
    straight = tmp_path / "straight"
    expected = run(straight, keep=4)
    folder.mkdir()
    shutil.copytree(straight / "2", folder / "2")
    subprocess.run([sys.executable, "-c", RESUME, str(folder)], env=ENVIRONMENT, check=True)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3", "4"]
    params = target(mesh_of(1, 2, 1)).params
    checkpoints = Checkpoints(folder, keep=4)
    state, host = checkpoints.restore_latest(target(mesh_of(1, 2, 1)))
    checkpoints.close()
    assert host == {"step": 4}
    assert_equal(state, expected)
    with pytest.raises(AssertionError):  # control: the two steps in the new process did something
        assert_equal(restore_params(folder, params, step=2)[0], expected.params)
