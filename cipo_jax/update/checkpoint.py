"""Checkpoints: the whole state of a run, saved in the background and atomically.

In: a tree of arrays (train_step.TrainState) and a JSON-able dict of host state (data cursor,
controller, attempt buffer). Out: the same two, bit for bit, on the mesh that is asked for. Random
keys are functions of seed and step and need no saving. Knows nothing of what the state means.

A checkpoint is a folder named by its step. It is written under a temporary name and renamed when
everything is on disk, so a folder with a plain number is whole: a process killed while it saves
leaves a temporary folder, which is never read and which the next `Checkpoints` on it removes.

Beside the host state stand checksums of it and of every array. They are computed on the devices
from the bits of the arrays, before the save and after a restore, so they hold on any mesh and see
what went wrong anywhere between: on its way to the disk, there, or on its way back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import UInt32

from cipo_jax.mesh import processes

State = TypeVar("State")

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` stay.

    Opening removes what a killed process left half-written, so there may be one writer per folder;
    readers beside it use `restore_params`. All processes of a multi-host run make the same calls.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int) -> None:
        self._folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                # A background thread, which complains where the process ends before it is done:
                # only where there is something to clean.
                cleanup_tmp_directories=processes.from_first(lambda: _has_leftovers(self._folder)),
            ),
            item_names=("state", "host"),
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint that is completely on disk; None without any."""
        return max(_steps(self._folder), default=None)

    def save(self, step: int, state: Any, host_state: dict[str, Any]) -> None:
        """Save both, and return once the arrays have left the devices: the rest is written in the
        background, and `state` may be donated or overwritten meanwhile.

        Waits first for a save that is still being written. Saving the newest step again changes
        nothing.

        Raises:
          ValueError: `step` is older than the newest checkpoint, or `host_state` is not JSON-able.
          An error of the save before, which failed in the background.
        """
        try:
            # A copy, so that the caller may go on changing what it handed over.
            host_state = json.loads(json.dumps(host_state))
        except TypeError as error:
            raise ValueError(
                f"host state can't be saved: {error}. It holds numbers, strings, lists and dicts "
                "with string keys; convert arrays by .tolist()."
            ) from error
        newest = self._manager.latest_step()
        if newest is not None and step < newest:
            raise ValueError(
                f"step {step} can't be saved in {self._folder}: it holds step {newest} already. "
                "Restore that first, or use an empty folder."
            )
        if step != newest:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    host=ocp.args.JsonSave(_sealed(host_state, _checksums(state))),
                ),
            )

    def restore_latest(self, abstract_state: State) -> tuple[State, dict[str, Any]] | None:
        """The newest state and host state; None if there is no checkpoint.

        A checkpoint that can't be read (a file lost or cut off by a full disk or a copy) or does
        not match its checksums is passed over for the one before it, with a warning, and renamed
        `N.damaged` so that step N can be saved anew.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, as from
            `train_step.abstract_state`. Any mesh, not only the one that saved.

        Raises:
          ValueError: the checkpoint is of another architecture; names the first parameter that
            differs, with both shapes.
          RuntimeError: there are checkpoints, and none can be read. Nothing is renamed then.
        """
        self.wait()
        unreadable: dict[int, str] = {}
        for step in sorted(_steps(self._folder), reverse=True):
            try:
                saved_shapes = _saved_shapes(self._folder / str(step) / "state")
            except Exception as error:  # whatever a damaged file makes the reader raise
                unreadable[step] = _first_line(error)
                _check_alone(unreadable, self._folder)
                continue
            _check_shapes(saved_shapes, _shapes(abstract_state), self._folder / str(step))
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state),
                        host=ocp.args.JsonRestore(),
                    ),
                )
                host_state, checksums = _unsealed(restored.host)
                _check_bits(restored.state, checksums)
            except Exception as error:
                unreadable[step] = _first_line(error)
                _check_alone(unreadable, self._folder)
                continue
            self._set_aside(unreadable)
            return restored.state, host_state
        if unreadable:
            raise RuntimeError(
                f"no checkpoint in {self._folder} can be read: {unreadable}. Put back a good copy, "
                "or start the run in an empty folder."
            )
        return None

    def wait(self) -> None:
        """Return when the last save is on disk. Raises its error if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the background threads."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A save that is under way is complete when all processes say so: one that fails can't wait
        # for it, and leaves a temporary folder as a killed one does.
        if error is None or processes.count() == 1:
            self.close()

    def _set_aside(self, unreadable: dict[int, str]) -> None:
        if not unreadable:
            return
        for step, reason in unreadable.items():
            _log.warning("checkpoint %d in %s can't be read: %s", step, self._folder, reason)
            (self._folder / str(step)).rename(self._folder / f"{step}.damaged")
        self._manager.reload()


def restore_params(
    folder: str | os.PathLike[str], abstract_params: State, *, step: int | None = None
) -> tuple[State, int]:
    """The parameters alone of a checkpoint, and its step: for evaluation and export.

    Reads only: safe beside the process that writes the folder, and without the memory for
    optimizer moments.

    Args:
      abstract_params: tree of `jax.ShapeDtypeStruct` with shardings.
      step: which one; None for the newest.

    Raises:
      ValueError: there is no such checkpoint, or it is of another architecture.
      DamagedError: the parameters do not match their checksums.
    """
    folder = Path(folder).absolute()
    steps = sorted(_steps(folder))
    if not steps or step not in (None, *steps):
        wanted = "any checkpoint" if step is None else f"step {step}"
        raise ValueError(f"{folder} has not {wanted}; it has steps {steps}.")
    step = steps[-1] if step is None else step
    item = folder / str(step) / "state"
    wanted_shapes = _shapes({"params": abstract_params})
    saved_shapes = _saved_shapes(item)
    saved_params = {name: x for name, x in saved_shapes.items() if name.startswith("params/")}
    _check_shapes(saved_params, wanted_shapes, folder / str(step))
    target = {"params": abstract_params}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            item,
            args=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    _, checksums = _unsealed(json.loads((folder / str(step) / "host" / "metadata").read_text()))
    saved_sums = {name: x for name, x in checksums.items() if name.startswith("params/")}
    _check_bits(restored, saved_sums)
    return restored["params"], step


Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Path of an array in the state, like `params/blocks/q`, to its shape and dtype."""


def _check_alone(unreadable: dict[int, str], folder: Path) -> None:
    """Whether a file can be read may differ between hosts, the step to go on from must not."""
    if processes.count() > 1:
        raise RuntimeError(
            f"checkpoints {unreadable} in {folder} can't be read: move their folders away, and "
            "start again."
        )


def _steps(folder: Path) -> list[int]:
    return ocp.utils.checkpoint_steps(folder) if folder.exists() else []


def _has_leftovers(folder: Path) -> bool:
    """Something beside whole checkpoints, such as what a process that was killed left behind."""
    return folder.exists() and any(not path.name.isdigit() for path in folder.iterdir())


def _shapes(tree: Any) -> Shapes:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), str(x.dtype))
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _saved_shapes(item: Path) -> Shapes:
    # A Checkpointer would look for metadata of its own first, and warn that there are none.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        return _shapes(reader.metadata(item).tree)


def _check_shapes(saved: Shapes, wanted: Shapes, folder: Path) -> None:
    """Raises if the two differ, naming the first array that does in the order of the state."""
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"the checkpoint {folder} is of another architecture or optimizer: {name} is "
                f"{_describe(saved.get(name))} there and {_describe(wanted.get(name))} here. Give "
                "the run the model that it was started with, or an empty folder."
            )


def _checksums(tree: Any) -> dict[str, int]:
    """Path of each array in the state to the checksum of its bits."""
    # An array at a time: in one program, XLA's CPU backend would hold the hashes of all of them.
    sums = jax.device_get(jax.tree.map(_bit_sum, tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(x)
        for path, x in jax.tree_util.tree_flatten_with_path(sums)[0]
    }


@jax.jit
def _bit_sum(x: jax.Array) -> UInt32[jax.Array, ""]:
    """The sum, modulo 2^32, of a hash of each element's bits and place.

    The hash is a bijection of the bits, so a change of one element always changes the sum; several
    changes cancel with a chance of 2^-32. Sums of whole numbers don't depend on their order, and
    so not on the mesh.
    """

    def of_part(x: jax.Array, start: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * np.dtype(x.dtype).itemsize}")
        place = jnp.full(bits.shape, start, jnp.uint32)
        for axis, size in enumerate(bits.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
                jnp.uint32, bits.shape, axis
            )
        # The finaliser of MurmurHash3.
        h = bits.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    if x.ndim < 3:
        return of_part(x, jnp.uint32(0))
    # Stacked over layers: one at a time, so that the hashes of a layer are all there is.
    starts = jnp.arange(x.shape[0], dtype=jnp.uint32)

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + of_part(*part), None

    total, _ = jax.lax.scan(add, jnp.uint32(0), (x, starts))
    return total


class DamagedError(RuntimeError):
    """What was read is not what was saved."""


def _check_bits(tree: Any, saved: dict[str, int]) -> None:
    differing = [name for name, found in _checksums(tree).items() if saved.get(name) != found]
    if differing:
        raise DamagedError(f"{differing[0]} is not what was saved: its checksum differs")


def _sealed(host_state: dict[str, Any], checksums: dict[str, int]) -> dict[str, Any]:
    """What is stored beside the arrays: the host state and all checksums, its own included."""
    return {
        "state": host_state,
        "array_checksums": checksums,
        "checksum": _text_checksum(host_state, checksums),
    }


def _unsealed(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    host_state, checksums = record["state"], record["array_checksums"]
    if record["checksum"] != _text_checksum(host_state, checksums):
        raise DamagedError("the host state is not what was saved: its checksum differs")
    return host_state, checksums


def _text_checksum(*parts: Any) -> int:
    return zlib.crc32(json.dumps(parts, sort_keys=True).encode())


def _describe(array: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if array is None else f"{array[0]} {array[1]}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
