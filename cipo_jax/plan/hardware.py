"""Chips with their peak numbers, and the names of slices of them.

A slice has two names, both of which are understood: `v5e:4x4` for libtpu is `v5litepod-16` for
Google Cloud, whose names of v4 and v5p count cores, two a chip: `v5p-16` has 8 chips. This module
loads no jax.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
_DOCS = "https://cloud.google.com/tpu/docs"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peak numbers of one accelerator, as its maker publishes them."""

    name: str
    platform: Literal["tpu", "cuda"]
    flops: float
    """Dense bfloat16 operations a second."""
    hbm_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second that a chip can send to others of its slice, over all its links."""
    hbm_gib: float | None
    """Memory of a device; None where the compiler knows it."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The chips that a plan is for."""

    asked: str
    """The name that the user gave it."""
    chip: Chip
    dims: tuple[int, ...]
    rented_as: str | None
    """Google Cloud's accelerator type; None if it offers no such shape."""

    @property
    def num_chips(self) -> int:
        return math.prod(self.dims)

    @property
    def topology(self) -> str:
        """The compiler's name for it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.dims))}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Facts about the slice that a reader of the plan must know."""
        remarks = []
        if self.chip.platform == "tpu" and self.rented_as is None:
            remarks.append(
                f"{self.topology} is not among the shapes that Google Cloud lists for "
                f"{self.chip.name} ({_DOCS}/{self.chip.name}): the compiler accepts it, but it may "
                "not be possible to rent it."
            )
        if self.chip.name == "v4":
            remarks.append(
                "The compiler counts each of a v4 chip's two cores as a device with half of the "
                "memory; a running v4 has one device per chip. The plan is for twice the devices."
            )
        return tuple(remarks)


CHIPS = {
    name: Chip(
        name=name,
        platform="cuda" if name == "h100" else "tpu",
        flops=flops,
        hbm_bandwidth=memory,
        link_bandwidth=links,
        hbm_gib=gib,
        source=source,
    )
    for name, flops, memory, links, gib, source in (
        ("v4", 275e12, 1228e9, 300e9, None, f"{_DOCS}/v4 and {_DOCS}/v5p"),
        ("v5e", 197e12, 819e9, 200e9, None, f"{_DOCS}/v5e"),
        ("v5p", 459e12, 2765e9, 600e9, None, f"{_DOCS}/v5p"),
        ("v6e", 918e12, 1640e9, 448e9, None, f"{_DOCS}/v6e"),
        ("h100", 989e12, 3352e9, 450e9, 79.1, "NVIDIA H100 SXM data sheet, without sparsity"),
    )
}

_SQUARE = "1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16"
_CUBIC = (
    "8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8 1024:8x8x8 2048:8x8x16 "
    "4096:8x16x16"
)
_RENTED = {
    "v5litepod": ("v5e", _SQUARE),
    "v6e": ("v6e", _SQUARE),
    "v5p": ("v5p", _CUBIC + " 8192:16x16x16 12288:16x16x24"),
    "v4": ("v4", _CUBIC),
}
"""Google Cloud's prefix -> the chip, and the shape of each of its sizes."""

OFFERS: dict[str, tuple[str, tuple[int, ...]]] = {
    f"{prefix}-{size}": (chip, tuple(map(int, dims.split("x"))))
    for prefix, (chip, table) in _RENTED.items()
    for size, dims in (entry.split(":") for entry in table.split())
}
"""Accelerator type -> chip and shape."""


def parse(name: str) -> Slice:
    """The slice of a name: `v5e:4x4`, `v5litepod-16` (also `v5e-16`), or `h100:8` (GPUs of one
    host).

    Raises: ValueError for an unknown name, which gives the nearest known ones.
    """
    # The chip is called v5e, and its slices are rented as v5litepod.
    asked = re.sub(r"^v5e-", "v5litepod-", name.strip().lower())
    if asked in OFFERS:
        chip, dims = OFFERS[asked]
        return Slice(asked=asked, chip=CHIPS[chip], dims=dims, rented_as=asked)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", asked)
    if match is None or match[1] not in CHIPS:
        raise ValueError(f"--topology {name!r} is not known. {_nearest(asked)}")
    chip, dims = match[1], tuple(int(n) for n in match[2].split("x"))
    rank = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2, "h100": 1}[chip]
    if len(dims) != rank or 0 in dims:
        raise ValueError(
            f"--topology {name!r}: a slice of {chip} has {rank} dimension{'s' * (rank > 1)}. "
            f"{_nearest(asked)}"
        )
    rented_as = next((offer for offer, shape in OFFERS.items() if shape == (chip, dims)), None)
    return Slice(asked=asked, chip=CHIPS[chip], dims=dims, rented_as=rented_as)


def _nearest(asked: str) -> str:
    own = [f"{chip}:{'x'.join(map(str, dims))}" for chip, dims in OFFERS.values()] + ["h100:8"]
    family = re.split(r"[-:]", asked)[0]
    names = [*OFFERS, *own]
    near = difflib.get_close_matches(asked, names, n=4, cutoff=0.6)
    near = near or [name for name in names if re.split(r"[-:]", name)[0] == family][:6]
    if near:
        return f"Nearest: {', '.join(near)}."
    return (
        f"Chips: {', '.join(CHIPS)}; write v5e:4x4 or v5litepod-16, v6e-64, v5p-16 (cores), h100:8."
    )
