"""Rotary positions: angles of tokens, and heads turned by them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int32

from cipo_jax.model.presets import Architecture, LinearRopeScaling, Llama3RopeScaling
from cipo_jax.records import Array

Rotary: TypeAlias = tuple[jax.Array, jax.Array]
"""Cosines and sines of `rotary_angles`."""


class RotaryTables(NamedTuple):
    """The angles of layers that see everything, and of those with a window, if there are any."""

    full: Rotary
    sliding: Rotary | None

    def of_layer(self, is_sliding: Bool[jax.Array, ""] | None) -> Rotary:
        """Those of one layer of a scan; None where no layer has a window."""
        if self.sliding is None or is_sliding is None:
            return self.full
        rotary: Rotary = jax.tree.map(partial(jnp.where, is_sliding), self.sliding, self.full)
        return rotary


def rotary_tables(position: Int32[Array, "..."], arch: Architecture) -> RotaryTables:
    """The angles of the positions for every kind of layer."""
    full = rotary_angles(position, arch.head_dim, arch.rope_theta, arch.rope_scaling)
    if arch.sliding is None:
        return RotaryTables(full, None)
    return RotaryTables(
        full, rotary_angles(position, arch.head_dim, arch.sliding.rope_theta, scaling=None)
    )


def rotary_angles(
    position: Int32[Array, "..."],
    head_dim: int,
    theta: float,
    scaling: Llama3RopeScaling | LinearRopeScaling | None,
) -> Rotary:
    """Cosine and sine of position * frequency, float32 [..., H/2].

        frequency[i] = theta^(-2i/H), i = 0 .. H/2 - 1

    Linear scaling divides all frequencies by `factor`. With Llama-3 scaling a frequency whose
    wavelength exceeds original_max_position / low_freq_factor is divided by `factor`, one below
    original_max_position / high_freq_factor is kept, and the blend between is linear in the number
    of turns within the original context.

    Source: Su et al. 2021, arXiv 2104.09864; Llama 3, arXiv 2407.21783.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = theta**-exponent
    if isinstance(scaling, LinearRopeScaling):
        frequency = frequency / scaling.factor
    elif scaling is not None:
        turns = scaling.original_max_position * frequency / (2 * jnp.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / scaling.factor)
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, rotary: Rotary) -> jax.Array:
    """Turns channel i with channel i + H/2 by the angles of `rotary`, each [B, T, H/2].

    Half-split pairs are the convention of the public checkpoints; GGUF files pair neighbours.
    """
    cos, sin = (angle[:, :, None, :] for angle in rotary)
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
