"""Random weights that make a tiny model's outputs depend on everything it has."""

import jax
import numpy as np

from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params, abstract


def drawn(arch: Architecture, seed: int = 0) -> Params:
    """Matrices and biases at std 0.3, norm scales around 1: `init`'s own 0.02, zeros and ones give
    nearly uniform laws, behind which a wrong position or a lost bias can hide. Drawn with numpy,
    which compiles nothing. Embeddings that the model scales up are drawn at half of it: they would
    outweigh the layers, and the head that is tied to them would repeat the last token."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        centre = 1.0 - arch.norm_offset if path[-1].name.endswith("norm") else 0.0
        half = 0.5 if path[-1].name == "embed" and arch.is_embed_scaled else 1.0
        return (half * rng.normal(centre, 0.3, x.shape)).astype(x.dtype)

    return jax.tree.map(jax.numpy.asarray, jax.tree_util.tree_map_with_path(draw, abstract(arch)))
