"""Which array axis lies along which axis of the device mesh.

Two rule tables, one for parameters and one for activations, say it per dimension letter; the
letters of an array come from the annotation of its record's field. Nothing here knows a model.

The mesh has four axes. `data` replicates parameters and splits rows. `fsdp` splits rows too, and
stores each parameter in pieces that are gathered when they are used. `tensor` splits heads, MLP
channels and vocabulary. `expert` splits rows and the experts of a layer; all else is replicated
over it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cipo_jax import config
from cipo_jax.records import Batch

Tree = TypeVar("Tree")

MeshAxis = str | tuple[str, ...]
"""One axis of the device mesh, or several that count as one."""

Rules = Mapping[str, MeshAxis | None]
"""Dimension letter to the mesh axis or axes it is split over; None says replicated. A letter that
is not there is an error: replication must be said."""

ROW_AXES = ("data", "fsdp", "expert")
"""The mesh axes that rows are split over."""

PARAM_RULES: Rules = {
    "L": None,
    "E": "expert",
    "V": "tensor",
    "D": "fsdp",
    "N": "tensor",
    "K": "tensor",
    "H": None,
    "F": "tensor",
    "R": None,
}

ACTIVATION_RULES: Rules = {
    "Q": ROW_AXES,
    "B": ROW_AXES,
    "G": None,
    "P": None,
    "C": None,
    "T": None,
    "S": None,
    "L": None,
    # Not over fsdp, which splits the rows already.
    "D": None,
    "N": "tensor",
    "K": "tensor",
    "H": None,
    "F": "tensor",
    "V": "tensor",
}

DECODING_RULES: Rules = {**PARAM_RULES, "D": None}
"""Parameters while tokens are drawn: a step of decoding reads every weight for a handful of rows.
To gather the pieces along fsdp again for each token would move the whole model over the
interconnect per token, so each device along data and fsdp holds a copy, in the compute dtype and
for the length of one call of the sampler. `tensor` is what makes the copy smaller."""

LOOKUP_RULES: Rules = {**ACTIVATION_RULES, "B": ("data", "expert"), "D": "fsdp"}
"""Activations that were just looked up in a table whose D lies over fsdp: each device has its piece
of D for the rows of all devices along fsdp, which then exchange pieces for rows."""

REPLICATED_WHERE_UNEVEN = frozenset({"K"})
"""Letters whose axis is replicated where the mesh axis does not divide it; for all others that is
an error. Models with grouped queries have so few key/value heads that a useful `tensor` size often
exceeds them. Their projections are small, so every device of the axis keeps all of them, while the
query heads stay split."""


def make_mesh(sizes: config.MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh with axes `data`, `fsdp`, `expert`, `tensor`, ordered for the wiring of the
    slice.

    The axes are `Auto`: XLA propagates shardings from the parameters and the batch.

    Args:
      sizes: devices along each axis; `fsdp` -1 takes those that the others leave.
      devices: all devices of all processes where not given.
    Raises: ValueError if the sizes do not multiply to the number of devices, or the slices are not
      those of the devices.
    """
    grid = device_grid(sizes, jax.devices() if devices is None else devices)
    axes = ("data", "fsdp", "expert", "tensor")
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def device_grid(sizes: config.MeshShape, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of the mesh's shape; neighbours in it are neighbours by wire, and
    those of one slice differ in nothing but the last stretch of `data`."""
    fsdp = sizes.fsdp
    if fsdp == -1:
        fsdp = max(1, len(devices) // (sizes.data * sizes.expert * sizes.tensor))
    shape = (sizes.data, fsdp, sizes.expert, sizes.tensor)
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"mesh: data {sizes.data} * fsdp {sizes.fsdp} * expert {sizes.expert} * tensor "
            f"{sizes.tensor} does not make {len(devices)} devices. Choose data, expert and tensor "
            f"so that their product divides {len(devices)}, and leave fsdp at -1."
        )
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices != sizes.slices:
        raise ValueError(
            f"mesh.slices is {sizes.slices}, but the devices lie in {num_slices} slices: set it to "
            "that number."
        )
    # jax.make_mesh refuses shapes such as 16 x 4 on an 8 x 8 torus, which need a split axis.
    if sizes.slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (sizes.data // sizes.slices, *shape[1:]),
        (sizes.slices, 1, 1, 1),
        devices,
        allow_split_physical_axes=True,
    )


def shardings_of(tree: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """The same tree with a NamedSharding in the place of each array.

    The letters of an array come from the annotation of the record field that holds it, at any depth
    inside tuples, dicts and records: an optimizer state that holds two `Params` is sharded as they
    are. A scalar needs no annotation and is replicated; None stays None.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      rules: PARAM_RULES or ACTIVATION_RULES.
    Raises: ValueError that names the field if a letter has no rule, two axes of an array want the
      same mesh axis, a mesh axis does not divide an axis, or an array has no letters.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    shardings = []
    for (path, x), letters in zip(leaves, _letters_of_leaves(tree), strict=True):
        name = jax.tree_util.keystr(path).removeprefix(".")
        if not hasattr(x, "shape"):
            raise ValueError(f"{name or 'the tree'} is {x!r}, which is not an array.")
        if letters is None and x.shape != ():
            raise ValueError(
                f"{name or 'the array'} has shape {x.shape} but no letters to shard it by: "
                "hold it in a record whose field is annotated, as in Float[Array, 'B T']."
            )
        spec = spec_of(letters or "", x.shape, mesh, rules, name=name)
        shardings.append(NamedSharding(mesh, spec))
    same_tree: Tree = jax.tree.unflatten(structure, shardings)
    return same_tree


def batch_shardings(mesh: Mesh) -> Batch:
    """Shardings of a `records.Batch`: rows over ROW_AXES, whole along time."""
    batch = Batch.empty(num_row_shards(mesh), 1, has_old_logprob=True)
    return shardings_of(batch, mesh, ACTIVATION_RULES)


def abstract_on(record: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """A record of abstract arrays with their shardings: what to restore or to compile for."""
    return with_shardings(record, shardings_of(record, mesh, rules))


def with_shardings(record: Tree, shardings: Tree) -> Tree:
    """`abstract_on` with shardings that are known already."""
    laid_out: Tree = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        record,
        shardings,
    )
    return laid_out


def num_row_shards(mesh: Mesh) -> int:
    """Into how many pieces the rows of a batch are split: data * fsdp * expert."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def check_divisible(cfg: config.Config, mesh: Mesh) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    shards = num_row_shards(mesh)
    rows = cfg.train.rows_per_microbatch
    if rows % shards:
        raise ValueError(
            f"train.rows_per_microbatch is {rows}, which does not divide over data * fsdp * "
            f"expert = {shards} devices: make it a multiple of {shards}, or choose another mesh."
        )


def distributed(record: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """A record of host arrays as global arrays on the mesh. Every process has the arrays in whole,
    and copies from them the pieces of its own devices.
    """

    def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda piece: x[piece])

    placed: Tree = jax.tree.map(place, record, shardings_of(record, mesh, rules))
    return placed


def constrain(x: jax.Array, letters: str, rules: Rules = ACTIVATION_RULES) -> jax.Array:
    """Holds an activation to the rules, under the mesh of `jax.set_mesh`; without one, x.

    XLA otherwise may carry the split of D over fsdp from a weight into the activations and give up
    the split of the rows.

    Args:
      letters: one per axis, as in "B T D".
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    held: jax.Array = jax.lax.with_sharding_constraint(x, spec_of(letters, x.shape, mesh, rules))
    return held


def constrain_record(record: Any, rules: Rules) -> Any:
    """Holds every array of a record to the rules, as `constrain` does.

    Args:
      record: of one layer where its letters begin with L, the axis that layers are stacked along.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return record
    hints = typing.get_type_hints(type(record))

    def held(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return constrain_record(value, rules)
        letters = letters_of(hints[name])
        if value is None or letters is None:
            return value
        return constrain(value, letters.removeprefix("L "), rules)

    fields = dataclasses.fields(record)
    return type(record)(**{f.name: held(f.name, getattr(record, f.name)) for f in fields})


def target_platform() -> str:
    """The platform that is compiled for, which need not be there: `tpu`, `gpu`, `cpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def letters_of(annotation: Any) -> str | None:
    """The dimension letters of a record field: "B T" of `Float[Array, "B T"] | None`; None if the
    annotation has none.
    """
    for candidate in (annotation, *typing.get_args(annotation)):
        letters: str | None = getattr(candidate, "dim_str", None)
        if letters is not None:
            return letters
    return None


def _letters_of_leaves(tree: Any, letters: str | None = None) -> Iterator[str | None]:
    """The letters of each leaf, in the order of `jax.tree.leaves`; None for a leaf that is not the
    field of a record.

    Args:
      letters: of the field that holds the tree.
    """
    if dataclasses.is_dataclass(tree):
        hints = typing.get_type_hints(type(tree))
        for field in dataclasses.fields(tree):
            if field.metadata.get("pytree_node", True):
                value = getattr(tree, field.name)
                yield from _letters_of_leaves(value, letters_of(hints[field.name]))
        return
    children = jax.tree.leaves(tree, is_leaf=lambda node: node is not tree)
    if any(child is tree for child in children):  # a leaf
        yield letters
        return
    for child in children:
        yield from _letters_of_leaves(child)


def spec_of(
    letters: str,
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    *,
    name: str | None = None,
) -> PartitionSpec:
    """How an array with these letters lies on the mesh.

    Args:
      name: what an error calls the array; its letters where not given.
    Raises: as `shardings_of`.
    """
    name = letters if name is None else name
    axis_letters = letters.split()
    if len(axis_letters) != len(shape):
        raise ValueError(f"{name} has shape {shape}, but its letters are '{letters}'.")
    entries: list[MeshAxis | None] = []
    taken: dict[str, str] = {}
    for letter, size in zip(axis_letters, shape, strict=True):
        if letter not in rules:
            raise ValueError(
                f"{name}: no sharding rule for the letter {letter} of '{letters}'. Add it to the "
                "rule table; None says that it is replicated."
            )
        rule = rules[letter]
        axes = (rule,) if isinstance(rule, str) else rule or ()
        for axis in axes:
            if axis in taken:
                raise ValueError(
                    f"{name}: {taken[axis]} and {letter} of '{letters}' both lie along the mesh "
                    f"axis {axis}. Give one of them another rule."
                )
            taken[axis] = letter
        count = math.prod(mesh.shape[axis] for axis in axes)
        if size % count:
            if letter not in REPLICATED_WHERE_UNEVEN:
                raise ValueError(
                    f"{name}: {' * '.join(axes)} is {count}, which does not divide its axis "
                    f"{letter} of {size}. Choose a mesh size that divides it, or 1."
                )
            rule = None
        entries.append(rule)
    return PartitionSpec(*entries)
