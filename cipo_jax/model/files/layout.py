"""The tensors of a checkpoint file as the stacked fields of `Params`, and back.

A checkpoint stores one matrix per layer, with heads merged into rows or columns. `Params` stacks
the layers and keeps the heads apart. A `Layout` states for each field the tensor's name and its
axes in the file; the axes of the field are its annotation. Both directions read the same table, so
what is saved is what would be loaded. The file formats are in `hf.py` and `gguf.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from cipo_jax.model.letters import filled
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, abstract

Layout = Mapping[str, tuple[str, str]]
"""Path of a field in `Params` -> (tensor name, its axes in the file). Each `{}` in a name is the
index along one of the field's first axes, the layer or the layer and the expert; letters without a
space between them share one axis: "NH D" is a matrix of N*H rows."""


@dataclasses.dataclass(frozen=True)
class Form:
    """The axes of a field's tensors in the file and in the field. Hashable, for `jax.jit`."""

    file_axes: str
    """As the layout states them."""
    field_axes: tuple[str, ...]
    """Letters, without those of the first axes, along which the tensors are stacked."""
    sizes: tuple[tuple[str, int], ...]
    """Letter and length of every axis of the field."""

    def _length(self, letters: str) -> int:
        return math.prod(dict(self.sizes)[letter] for letter in letters)

    @property
    def _file_letters(self) -> str:
        """The letters of the file's axes with merged axes apart."""
        return self.file_axes.replace(" ", "")

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(self._length(axis) for axis in self.file_axes.split())

    def to_field(self, tensor: jax.Array) -> jax.Array:
        """Splits the merged axes of a tensor of the file and puts them in the field's order."""
        letters = self._file_letters
        split = tensor.reshape([self._length(letter) for letter in letters])
        return split.transpose([letters.index(letter) for letter in self.field_axes])

    def to_file(self, field: np.ndarray) -> np.ndarray:
        """The inverse of `to_field`, contiguous."""
        split = field.transpose([self.field_axes.index(letter) for letter in self._file_letters])
        return np.ascontiguousarray(split.reshape(self.file_shape))

    def file_sharding(self, field: Sharding | None) -> Sharding | None:
        """The sharding of a tensor of the file that gives each device of the field's sharding the
        pieces of its own piece. Of merged axes only the first may be split; where another is, all
        devices get the whole axis.
        """
        if not isinstance(field, NamedSharding):
            return field
        num_stacked = len(self.sizes) - len(self.field_axes)
        spec = (*field.spec, *(None,) * len(self.sizes))  # a spec may be shorter than the shape
        rule = dict(zip(self.field_axes, spec[num_stacked:], strict=False))
        split = [
            rule[axis[0]] if all(rule[letter] is None for letter in axis[1:]) else None
            for axis in self.file_axes.split()
        ]
        return NamedSharding(field.mesh, PartitionSpec(*split))


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the file, and its place in the parameters."""

    name: str
    path: str
    """The field's, as in `blocks.q`."""
    index: tuple[int, ...]
    """The tensor's along the first axes of the field: () if it is the whole field."""
    form: Form


def slots(layout: Layout, arch: Architecture) -> Iterator[Slot]:
    """Every tensor that a checkpoint of this architecture holds, those of a field together."""
    letters_of_field = fields_of(filled(Params, lambda _, letters: letters))
    for path, field in fields_of(abstract(arch)).items():
        name, axes = layout[path]
        num_stacked = name.count("{}")
        letters = letters_of_field[path].split()
        sizes = tuple(zip(letters, field.shape, strict=True))
        form = Form(axes, tuple(letters[num_stacked:]), sizes)
        for index in np.ndindex(field.shape[:num_stacked]):
            yield Slot(name.format(*index), path, index, form)


def assemble(
    layout: Layout,
    arch: Architecture,
    *,
    file_shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    shardings: Params | None,
    dtype: DTypeLike,
) -> Params:
    """Reads a checkpoint tensor by tensor, straight into its place on the devices.

    The host reads one tensor at a time, as it is in the file: each process the pieces of its own
    devices. The devices cast, split and transpose them.

    Args:
      file_shapes: name and shape of every tensor in the checkpoint.
      read: the tensor of a name; of a view of a mapped file, only what is needed is read.
      shardings: where each field goes; None: the default device.
      dtype: of the result.
    Raises: ValueError if a tensor is missing, unknown or of another shape, or if a head that the
      architecture ties to the embedding differs from it.
    """
    wanted = list(slots(layout, arch))
    _check_names({slot.name for slot in wanted}, file_shapes, layout, arch, read)
    for slot in wanted:
        if file_shapes[slot.name] != slot.form.file_shape:
            raise ValueError(
                f"{slot.name} has shape {file_shapes[slot.name]}, but the constants of the model "
                f"ask for {slot.form.file_shape} ({slot.form.file_axes}). The weights and the "
                "stated constants are not of the same model."
            )
    shapes = {path: field.shape for path, field in fields_of(abstract(arch)).items()}
    places = {} if shardings is None else fields_of(shardings)
    placed = []
    for path, group in itertools.groupby(wanted, key=lambda slot: slot.path):
        sharding = places.get(path)
        field = jnp.zeros(shapes[path], dtype, device=sharding)
        for slot in group:
            tensor = _on_devices(read(slot.name), slot.form, sharding)
            field = write(field, tensor, slot.index, form=slot.form, sharding=sharding)
            # Or the host's pieces of many tensors would wait for their transfer at the same time.
            jax.block_until_ready(field)
            del tensor
        placed.append(field)
    params: Params = jax.tree.unflatten(jax.tree.structure(abstract(arch)), placed)
    return params


def _on_devices(tensor: np.ndarray, form: Form, field: Sharding | None) -> jax.Array:
    """A tensor of the file on the devices, one piece after the other."""
    sharding = form.file_sharding(field)
    if sharding is None:
        whole: jax.Array = jax.device_put(tensor)
        return whole
    devices_of: dict[str, list[jax.Device]] = {}
    pieces = sharding.addressable_devices_indices_map(form.file_shape)
    for device, piece in pieces.items():
        devices_of.setdefault(str(piece), []).append(device)
    on_device = []
    for devices in devices_of.values():
        values = tensor[pieces[devices[0]]]
        on_device += jax.block_until_ready([jax.device_put(values, device) for device in devices])
        del values
    return jax.make_array_from_single_device_arrays(form.file_shape, sharding, on_device)


@partial(jax.jit, static_argnames=("form", "sharding"), donate_argnums=0)
def write(
    field: jax.Array,
    tensor: jax.Array,
    index: tuple[jax.Array, ...],
    *,
    form: Form,
    sharding: Sharding | None,
) -> jax.Array:
    """The field with one tensor of the file in its place; the field's memory is used again."""
    value = form.to_field(tensor).astype(field.dtype)
    where: list[jax.Array | int] = [*index, *[0] * value.ndim]
    field = jax.lax.dynamic_update_slice(field, value[(None,) * len(index)], where)
    return field if sharding is None else jax.lax.with_sharding_constraint(field, sharding)


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
        if not _are_equal(read(head), read(embed)):
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


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Compares two tensors of the file, a stretch of rows at a time."""
    stretches = (slice(start, start + 4096) for start in range(0, len(a), 4096))
    return all(np.array_equal(a[rows], b[rows]) for rows in stretches)


def _some(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


def fields_of(params: Params) -> dict[str, Any]:
    """Path -> array of the fields that the architecture has, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
