"""Floating-point operations of a traced function, counted from its jaxpr.

The compiler's own count takes the body of a loop once, however often it runs. Here the body of a
`scan` counts as often as the scan is long, and the body of a loop whose length is data as often as
the caller says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

LoopTrips = Callable[[Sequence[int | None]], Sequence[int]]
"""How often each loop runs whose length is data, in the order of the program. It is given the
constants that the loops' counters are compared with, None for a loop without one."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Operations over all devices, as far as they can be seen."""

    flops: float
    uncounted: tuple[str, ...]
    """Names of kernels that state no cost and whose loops or grid depend on data."""


def count(jaxpr: ClosedJaxpr, trips: LoopTrips) -> Count:
    """Operations of all matrix products and convolutions, two for each multiply and add.

    Elementwise work is left out. What a device computes in a `shard_map` counts for every device.
    Of the branches of a condition the most expensive counts. A Pallas kernel counts what its
    `cost_estimate` says, or the inside of it for each place of its grid, as if it skipped none.

    Args:
      trips: of the `while` loops, outermost first where they are nested.
    Raises: ValueError if `trips` does not give one number per loop.
    """
    bounds = [_bound(eqn) for eqn in _loops(jaxpr.jaxpr)]
    given = list(trips(bounds))
    if len(given) != len(bounds):
        raise ValueError(
            f"The program has {len(bounds)} loops whose length is data (bounds {bounds}), and "
            f"{len(given)} lengths were stated."
        )
    uncounted: set[str] = set()
    flops = _flops(jaxpr.jaxpr, iter(given), uncounted)
    return Count(flops=flops, uncounted=tuple(sorted(uncounted)))


def _flops(jaxpr: Jaxpr, trips: Iterator[int], uncounted: set[str]) -> float:
    return sum(_of_equation(eqn, trips, uncounted) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any, trips: Iterator[int], uncounted: set[str]) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = eqn.invars[0].aval
        return 2.0 * eqn.outvars[0].aval.size * math.prod(lhs.shape[axis] for axis in contracted)
    if name in ("ragged_dot", "ragged_dot_general"):
        # Every row of the left side meets one group's matrix.
        rhs_contracted = eqn.invars[1].aval.shape[-2]
        return 2.0 * eqn.outvars[0].aval.size * rhs_contracted
    if name == "conv_general_dilated":
        out_features = params["dimension_numbers"].rhs_spec[0]
        kernel = eqn.invars[1].aval
        return 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[out_features]
    if name == "pallas_call":
        return _of_kernel(params, uncounted)
    if name == "scan":
        return params["length"] * _flops(params["jaxpr"].jaxpr, trips, uncounted)
    if name == "while":
        times = next(trips)
        inside = _flops(params["cond_jaxpr"].jaxpr, trips, uncounted)
        return times * (inside + _flops(params["body_jaxpr"].jaxpr, trips, uncounted))
    if name == "cond":
        return max(_flops(branch.jaxpr, trips, uncounted) for branch in params["branches"])
    inside = sum(_flops(inner, trips, uncounted) for inner in _inner(params))
    if name == "shard_map":
        manual = params["newly_manual_axes"]
        inside *= math.prod(params["mesh"].shape[axis] for axis in manual)
    return inside


def _of_kernel(params: dict[str, Any], uncounted: set[str]) -> float:
    if params["cost_estimate"] is not None:
        return float(params["cost_estimate"].flops)
    grid, inside = params["grid_mapping"].grid, params["jaxpr"]
    if all(isinstance(size, int) for size in grid) and not any(_loops(inside)):
        return math.prod(grid) * _flops(inside, iter(()), uncounted)
    uncounted.add(str(params["name"]))
    return 0.0


def _loops(jaxpr: Jaxpr) -> Iterator[Any]:
    """The `while` equations in the order in which `_flops` asks for their lengths."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            yield eqn
        if eqn.primitive.name == "pallas_call":
            continue
        for inner in _inner(eqn.params):
            yield from _loops(inner)


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _bound(eqn: Any) -> int | None:
    """The constant N of the condition `i < N`, if there is one."""
    for inner in eqn.params["cond_jaxpr"].jaxpr.eqns:
        if inner.primitive.name == "lt":
            for operand in inner.invars:
                if isinstance(operand, Literal):
                    return int(operand.val)
    return None


def run_once(bounds: Sequence[int | None]) -> Sequence[int]:
    """For programs without loops whose length is data."""
    if bounds:
        raise ValueError(f"The program has {len(bounds)} loops, and how often they run is unknown.")
    return []
