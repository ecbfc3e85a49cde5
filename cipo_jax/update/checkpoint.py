"""Checkpoints: the whole state of a run, saved in the background and atomically.

In: a tree of arrays (train_step.TrainState) and a JSON-able dict of host state (data cursor,
controller, attempt buffer). Out: the same two, bit for bit, on the mesh that is asked for. Random
keys are functions of seed and step and need no saving. Knows nothing of what the state means.

A checkpoint is a folder named by its step. It is written under a temporary name and renamed when
everything is on disk, so a folder with a plain number is whole: a process killed while it saves
leaves a temporary folder, which is never read and which the next `Checkpoints` on it removes.

The host state is stored with checksums of itself and of every array (`checksums.py`), made before
the save and compared after a restore. They see what went wrong anywhere between: on the way to the
disk, on it, or on the way back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from cipo_jax.mesh import processes
from cipo_jax.update import checksums

State = TypeVar("State")

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; the newest `keep` of them stay.

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
                    host=ocp.args.JsonSave(checksums.sealed(host_state, state)),
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
                host_state, saved_sums = checksums.opened(restored.host)
                checksums.check(restored.state, saved_sums)
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
      step: of the checkpoint; None for the newest.

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
    sealed = json.loads((folder / str(step) / "host" / "metadata").read_text())
    _, saved_sums = checksums.opened(sealed)
    checksums.check(restored, saved_sums)
    return restored["params"], step


Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Path of an array in the state, like `params/blocks/q`, to its shape and dtype."""


def _check_alone(unreadable: dict[int, str], folder: Path) -> None:
    """Raises where there are other processes: a file that one host can't read another may be able
    to, and all must continue from the same step."""
    if processes.count() > 1:
        raise RuntimeError(
            f"checkpoints {unreadable} in {folder} can't be read: move their folders away, and "
            "start again."
        )


def _steps(folder: Path) -> list[int]:
    return ocp.utils.checkpoint_steps(folder) if folder.exists() else []


def _has_leftovers(folder: Path) -> bool:
    """Whether there is anything but whole checkpoints, such as the rest of a killed save."""
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


def _describe(array: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if array is None else f"{array[0]} {array[1]}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
