"""The optimizer: clipping by the global gradient norm, then AdamW or Adafactor at a scheduled rate.

In: the `optimizer` part of the configuration and the number of updates. Out: an optax gradient
transformation, its learning-rate schedule, and how its state lies on a mesh. Knows nothing of
losses and models.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32
from optax import FactoredState

from cipo_jax.config import Adafactor, AdamW, Optimizer
from cipo_jax.mesh.sharding import PARAM_RULES, shardings_of


def learning_rate(cfg: Optimizer, num_updates: int) -> optax.Schedule:
    """Learning rate of update k = 0, 1, ..., `num_updates` - 1.

        rate(k)  = learning_rate * min(1, (k + 1) / W) * (f + (1 - f) * shape(p))
        p        = (k - W) / (num_updates - W), cut to [0, 1]
        shape(p) = 1 (constant; then f = 1) | 1 - p (linear) | (1 + cos(pi p)) / 2 (cosine)

    with W warm-up updates and f = `final_factor`. No update is void: the first one has the rate
    learning_rate / W, not 0, and the rate reaches f * learning_rate after the last update.

    Returns: a function of the (traced or Python) update count; float32 scalar.
    """
    warmup, final = cfg.warmup_steps, cfg.final_factor

    def rate(count: jax.typing.ArrayLike) -> Float32[jax.Array, ""]:
        k = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (k + 1) / max(warmup, 1))
        progress = jnp.clip((k - warmup) / max(num_updates - warmup, 1), 0.0, 1.0)
        fall: jax.Array
        match cfg.schedule:
            case "constant":
                fall = jnp.float32(1.0)
            case "linear":
                fall = final + (1 - final) * (1 - progress)
            case "cosine":
                fall = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return cfg.learning_rate * rise * fall

    return rate


def has_decay(params: optax.Params) -> optax.Params:
    """The same tree with True at the leaves that weight decay shrinks: all but norms and biases.

    A norm's scale and a bias have a natural size (1, or the offset of a unit) that the scale of the
    next layer can't compensate, and pulling them to 0 saves no capacity. They are told by their
    field names, `*norm` and `*bias`: parameters are stacked over layers, so the number of
    dimensions does not tell.
    """

    def decays(path: tuple[Any, ...], _: object) -> bool:
        return not jax.tree_util.keystr(path[-1:], simple=True).endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(cfg: Optimizer, num_updates: int) -> optax.GradientTransformation:
    """Clip by the global norm, then the optimizer at `learning_rate(cfg, num_updates)`.

        g <- g * min(1, max_grad_norm / |g|)
        w <- w - rate(k) * (step(g) + weight_decay * w)        (decay: see `has_decay`)

    AdamW, m^ and v^ the bias-corrected moments; v in float32, m in `first_moment_dtype`:

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        step = m^ / (sqrt(v^) + eps)

    The update uses m before it is rounded to nearest for storage; nothing is rounded at random, so
    a run repeats bit for bit.

    Adafactor, R and C the means of v over a matrix's rows and columns, and no first moment:

        v <- b v + (1 - b) g^2, by R and C alone;  b = 1 - (k + 1)^-decay_rate
        u = g / sqrt(R C / mean(R));  step = u / max(1, rms(u) / update_clip)

    The matrix of a stacked array lies in its two largest axes, the others count the matrices.

    Args:
      cfg: rates, moments, decay and clipping.
      num_updates: optimizer updates of the whole run, train.steps * train.updates_per_step.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, decay multiplied by the rate;
      Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5, with a given rate in the place
      of a relative one.
    """
    rate = learning_rate(cfg, num_updates)
    match cfg:
        case AdamW():
            rule = optax.adamw(
                rate,
                b1=cfg.beta1,
                b2=cfg.beta2,
                eps=cfg.eps,
                mu_dtype=jnp.dtype(cfg.first_moment_dtype),
                weight_decay=cfg.weight_decay,
                mask=has_decay,
            )
        case Adafactor():
            rule = optax.chain(
                optax.scale_by_factored_rms(
                    decay_rate=cfg.decay_rate, min_dim_size_to_factor=cfg.min_factored_dim
                ),
                optax.clip_by_block_rms(cfg.update_clip),
                optax.add_decayed_weights(cfg.weight_decay, mask=has_decay),
                optax.scale_by_learning_rate(rate),
            )
    return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), rule)


def opt_state_shardings(opt_state: Any, params: Any, mesh: Mesh) -> Any:
    """The same tree with a NamedSharding in the place of each array of an optimizer's state.

    Moments lie as their parameters do; a mean over an axis of a parameter lies as what is left of
    it; counts are replicated.

    Args:
      opt_state: arrays or `jax.ShapeDtypeStruct`s, from `make_optimizer(...).init(params)`.
      params: the parameters that are trained, or their shapes.
    Raises: ValueError as `sharding.shardings_of` does.
    """
    layouts = shardings_of(params, mesh, PARAM_RULES)

    def of_means(means: Any) -> Any:
        return jax.tree.map(_sharding_of_mean, means, params, layouts)

    def of_part(part: Any) -> Any:
        if not isinstance(part, FactoredState):
            return shardings_of(part, mesh, PARAM_RULES)
        return FactoredState(
            count=NamedSharding(mesh, PartitionSpec()),
            v_row=of_means(part.v_row),
            v_col=of_means(part.v_col),
            v=of_means(part.v),
        )

    return jax.tree.map(
        of_part, opt_state, is_leaf=lambda part: isinstance(part, FactoredState | type(params))
    )


def _sharding_of_mean(mean: Any, param: Any, layout: NamedSharding) -> NamedSharding:
    """Layout of what optax keeps for a parameter: it whole, a mean over one axis, or one number in
    the place of what is not kept."""
    if mean.shape == param.shape:
        return layout
    for axis in range(param.ndim):
        if mean.shape == param.shape[:axis] + param.shape[axis + 1 :]:
            # Where two axes are equally long, either reading divides over the mesh.
            kept = [entry for i, entry in enumerate(layout.spec) if i != axis]
            return NamedSharding(layout.mesh, PartitionSpec(*kept))
    return NamedSharding(layout.mesh, PartitionSpec())
