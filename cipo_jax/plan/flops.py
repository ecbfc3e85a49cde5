"""Floating-point operations of a traced function, counted from its jaxpr.

The compiler's own count takes the body of a loop once, however often it runs. Here the body of a
`scan` counts as often as the scan is long, and the body of a loop whose length is data as often as
the caller says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from cipo_jax.plan.loops import LoopTrips


@dataclass(frozen=True, kw_only=True)
class Count:
    """Operations on all devices together."""

    flops: float
    uncounted: tuple[str, ...]
    """Names of kernels that state no cost and whose loops or grid depend on data."""


def count(jaxpr: ClosedJaxpr, trips: LoopTrips) -> Count:
    """Operations of all matrix products and convolutions, two for each multiply and add.

    Elementwise work is left out. The inside of a `shard_map` counts once for every device. Of the
    branches of a condition the most expensive one counts. A Pallas kernel counts as much as its
    `cost_estimate` says, or its inside once for each point of its grid, as if it skipped none.

    Args:
      trips: the lengths of the `while` loops, outermost first where they are nested.
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
    params, times = eqn.params, 1
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            return _of_product(eqn, [eqn.invars[0].aval.shape[axis] for axis in contracted])
        case "ragged_dot" | "ragged_dot_general":
            # Every row of the left side meets one group's matrix.
            return _of_product(eqn, [eqn.invars[1].aval.shape[-2]])
        case "conv_general_dilated":
            features = params["dimension_numbers"].rhs_spec[0]
            kernel = enumerate(eqn.invars[1].aval.shape)
            return _of_product(eqn, [size for axis, size in kernel if axis != features])
        case "pallas_call":
            return _of_kernel(params, uncounted)
        case "cond":
            return max(_flops(branch.jaxpr, trips, uncounted) for branch in params["branches"])
        case "scan":
            times = params["length"]
        case "while":
            times = next(trips)
        case "shard_map":
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return times * sum(_flops(inner, trips, uncounted) for inner in _inner(params))


def _of_product(eqn: Any, summed: Sequence[int]) -> float:
    """Operations of a product, from the sizes of the axes that it sums over."""
    return 2.0 * int(eqn.outvars[0].aval.size) * math.prod(summed)


def _of_kernel(params: dict[str, Any], uncounted: set[str]) -> float:
    if params["cost_estimate"] is not None:
        return float(params["cost_estimate"].flops)
    grid, inside = params["grid_mapping"].grid, params["jaxpr"]
    if all(isinstance(size, int) for size in grid) and not any(_loops(inside)):
        return float(math.prod(grid) * _flops(inside, iter(()), uncounted))
    uncounted.add(str(params["name"]))
    return 0.0


def _loops(jaxpr: Jaxpr) -> Iterator[Any]:
    """The `while` equations, in the order in which `_flops` needs their lengths."""
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
