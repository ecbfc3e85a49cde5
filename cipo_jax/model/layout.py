"""How the tensors of a checkpoint file become the stacked fields of `Params`, and back.

A checkpoint stores one matrix per layer, with heads merged into rows or columns. `Params` stacks
the layers and keeps the heads apart. A `Layout` states for each field the tensor's name and its
axes in the file; the axes of the field are its annotation. Both directions read the same table, so
what is saved is what would be loaded. The file formats are in `hf.py` and `gguf.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, abstract
from cipo_jax.sharding import letters_of

Layout = Mapping[str, tuple[str, str]]
"""Path of a field in `Params` -> (tensor name, its axes in the file). Each `{}` in a name is the
index along one of the field's first axes, the layer or the layer and the expert; letters without a
space between them share one axis: "NH D" is a matrix of N*H rows."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the file, and where it belongs."""

    name: str
    axes: str
    path: str
    """Of the field, as in `blocks.q`."""
    index: tuple[int, ...]
    """Where it stands along the first axes of the field: () if it is the whole field."""
    letters: tuple[str, ...]
    """Of the field's other axes."""
    sizes: Mapping[str, int]
    """Of every letter."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(
            int(np.prod([self.sizes[letter] for letter in axis])) for axis in self.axes.split()
        )

    def to_field(self, tensor: np.ndarray) -> np.ndarray:
        """Splits the merged axes of a tensor of the file and puts them in the field's order."""
        order = self.axes.replace(" ", "")
        split = tensor.reshape([self.sizes[letter] for letter in order])
        return split.transpose([order.index(letter) for letter in self.letters])

    def to_file(self, field: np.ndarray) -> np.ndarray:
        """The inverse of `to_field`, contiguous."""
        order = self.axes.replace(" ", "")
        split = field.transpose([self.letters.index(letter) for letter in order])
        return np.ascontiguousarray(split.reshape(self.file_shape))


def slots(layout: Layout, arch: Architecture) -> Iterator[Slot]:
    """Every tensor that a checkpoint of this architecture holds, those of a field together."""
    letters = _field_letters(Params)
    for path, field in fields_of(abstract(arch)).items():
        name, axes = layout[path]
        sizes = dict(zip(letters[path], field.shape, strict=True))
        num_stacked = name.count("{}")
        for index in np.ndindex(field.shape[:num_stacked]):
            yield Slot(name.format(*index), axes, path, index, letters[path][num_stacked:], sizes)


def assemble(
    layout: Layout,
    arch: Architecture,
    *,
    file_shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    shardings: Params | None,
    dtype: DTypeLike,
) -> Params:
    """Reads a checkpoint tensor by tensor and places it field by field.

    Host memory holds one stacked field at a time.

    Args:
      file_shapes: name and shape of every tensor in the checkpoint.
      read: the tensor of a name.
      shardings: where each field goes; None: the default device.
      dtype: of the result.
    Raises: ValueError if a tensor is missing, unknown or of another shape, or if a head that the
      architecture ties to the embedding differs from it.
    """
    wanted = list(slots(layout, arch))
    _check_names({slot.name for slot in wanted}, file_shapes, layout, arch, read)
    for slot in wanted:
        if file_shapes[slot.name] != slot.file_shape:
            raise ValueError(
                f"{slot.name} has shape {file_shapes[slot.name]}, but the constants of the model "
                f"ask for {slot.file_shape} ({slot.axes}). The weights and the stated constants "
                "are not of the same model."
            )
    shapes = {path: field.shape for path, field in fields_of(abstract(arch)).items()}
    places = {} if shardings is None else fields_of(shardings)
    placed = []
    for path, group in itertools.groupby(wanted, key=lambda slot: slot.path):
        stacked = np.empty(shapes[path], dtype)
        for slot in group:
            stacked[slot.index] = slot.to_field(read(slot.name))
        placed.append(_place(stacked, places.get(path)))
    return jax.tree.structure(abstract(arch)).unflatten(placed)


def _place(stacked: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        array = jax.device_put(stacked)
    else:
        # Each process places only its own pieces, which device_put does not allow for.
        array = jax.make_array_from_callback(stacked.shape, sharding, stacked.__getitem__)
    # Or the host copies of all fields would wait for their transfer at the same time.
    return jax.block_until_ready(array)


def _check_names(
    wanted: set[str],
    file_shapes: Mapping[str, tuple[int, ...]],
    layout: Layout,
    arch: Architecture,
    read: Callable[[str], np.ndarray],
) -> None:
    head, embed = layout["head"][0], layout["embed"][0]
    missing = sorted(wanted - file_shapes.keys())
    extra = sorted(file_shapes.keys() - wanted)
    if missing:
        hint = " The head is missing: is it tied to the embedding?" if head in missing else ""
        raise ValueError(
            f"{_some(missing)} missing from the checkpoint, which holds {len(file_shapes)} tensors "
            f"where {len(wanted)} make a {arch.family} decoder of {arch.num_layers} layers.{hint}"
        )
    if arch.is_tied and head in extra:
        extra.remove(head)
        if not np.array_equal(read(head), read(embed)):
            raise ValueError(
                f"{head} differs from {embed}, but the model's constants say that they are tied. "
                "Set tie_word_embeddings to false if the head is trained apart."
            )
    if extra:
        shapes = ", ".join(f"{name} {file_shapes[name]}" for name in extra[:3])
        raise ValueError(
            f"{_some(extra)} unknown to a {arch.family} decoder of {arch.num_layers} layers "
            f"({shapes}). A tensor that nothing reads means another architecture: leaving it out "
            "would change the model."
        )


def _some(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


def fields_of(params: Params) -> dict[str, Any]:
    """Path -> array of the fields that the architecture has, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _field_letters(record: type, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Path -> dimension letters of the annotated fields."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in typing.get_type_hints(record).items():
        letters = letters_of(hint)
        if letters is not None:
            found[prefix + name] = tuple(letters.split())
        elif dataclasses.is_dataclass(hint):
            found |= _field_letters(typing.cast(type, hint), f"{prefix}{name}.")
    return found
