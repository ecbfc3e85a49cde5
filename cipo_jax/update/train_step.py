"""One optimizer update on one mixed batch: the single compiled program of training.

In: the train state, the frozen parameters, a packed Batch of both streams. Out: the next state
and metrics as device scalars. Does not know where the batch came from, and draws no random numbers.

    for each microbatch in use:  hidden states -> token log-probs -> policy loss -> gradients, added
    clip by the global norm -> optimizer -> next state

The weights in the batch hold the global denominators, so sums over microbatches are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32, Int32

from cipo_jax.config import Config, ParityMask
from cipo_jax.mesh.sharding import (
    PARAM_RULES,
    batch_shardings,
    num_row_shards,
    shardings_of,
    with_shardings,
)
from cipo_jax.method import gaps
from cipo_jax.method.gaps import Gaps
from cipo_jax.method.losses import Sums, joint_loss, policy_loss
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.records import Batch, Stream
from cipo_jax.update import policy
from cipo_jax.update.metrics import UpdateMetrics
from cipo_jax.update.microbatch import microbatches_of, row_logprobs
from cipo_jax.update.optim import learning_rate, make_optimizer, opt_state_shardings
from cipo_jax.update.policy import Trainable

TrainStep = Callable[["TrainState", Params | None, Batch], tuple["TrainState", UpdateMetrics]]


@flax.struct.dataclass
class TrainState:
    """What an update changes. `step` counts the updates that were applied."""

    params: Trainable
    opt_state: tuple[Any, ...]
    step: Int32[Array, ""]


@flax.struct.dataclass
class Accumulated:
    """Sums over the microbatches so far, all float32."""

    grads: Trainable
    loss_by_stream: Float32[Array, "2"]
    sums: Sums
    gaps: Gaps
    num_masked: Float32[Array, ""]


def init_state(params: Trainable, cfg: Config, mesh: Mesh) -> TrainState:
    """State before the first update, laid out over the mesh.

    The state takes what is trained over (see `policy.split`): the first update donates its buffers.
    """
    params = jax.device_put(params, shardings_of(params, mesh, PARAM_RULES))
    make = partial(_init_opt_state, cfg=cfg)
    shardings = opt_state_shardings(jax.eval_shape(make, params), params, mesh)
    opt_state = jax.jit(make, out_shardings=shardings)(params)
    # Put on the devices of several processes, a number of one device could not be saved again.
    step = jax.jit(lambda: jnp.int32(0), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    return TrainState(params, opt_state, step)


def abstract_state(cfg: Config, arch: Architecture, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings: what to restore or to compile for."""
    params = policy.abstract_trainable(cfg, arch)
    opt_state = jax.eval_shape(partial(_init_opt_state, cfg=cfg), params)
    step = jax.eval_shape(jnp.int32, 0)
    state = TrainState(params, opt_state, step)
    return with_shardings(state, state_shardings(state, mesh))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The state with a NamedSharding in the place of each array."""
    whole: Any = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        params=shardings_of(state.params, mesh, PARAM_RULES),
        opt_state=opt_state_shardings(state.opt_state, state.params, mesh),
        step=whole,
    )


def make_train_step(
    cfg: Config, arch: Architecture, mesh: Mesh, *, is_gated: bool = False
) -> TrainStep:
    """The jitted update `step(state, frozen, batch) -> (state, metrics)`.

        gradient = sum over microbatches of d/dw [loss(base) + correction.weight * loss(correction)]
        state    = optimizer(clip(gradient)), or the state as it was if the loss or the norm of the
                   gradient is not finite

    The state is donated; the frozen parameters are not. Microbatches are taken while rows are in
    use (`batch.num_rows`), by a loop whose trip count is data: one program serves any fill of the
    batch. What rows from `num_rows` on and padding hold is never read.

    With `parity.kind` mask, completions whose gap is beyond the limits are left out.

    Args:
      is_gated: leave the state as it is where parity trips on the first update of a step: the
        parameters that sampled the batch are then still there to look for the cause with.
    Args of the step:
      state: from `init_state` or a checkpoint of this mesh.
      frozen: the reference policy where everything is trained and kl.weight is positive; the base
        model, which is also the reference policy, where an adapter is trained; otherwise None.
      batch: B rows, a multiple of train.rows_per_microbatch, all with train.row_tokens tokens.
    Returns of the step: the next state, and `UpdateMetrics`.
    Raises: ValueError at the first call for a shape that breaks these rules.
    """
    optimizer = make_optimizer(cfg.optimizer, _num_updates(cfg))
    layout = state_shardings(abstract_state(cfg, arch, mesh), mesh)

    def step(
        state: TrainState, frozen: Params | None, batch: Batch
    ) -> tuple[TrainState, UpdateMetrics]:
        _check_arguments(frozen, batch, cfg, mesh)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            accumulated = _accumulate(
                state.params, frozen, batch, layout.params, cfg=cfg, arch=arch
            )
        rate = learning_rate(cfg.optimizer, _num_updates(cfg))(state.step)
        loss = joint_loss(accumulated.loss_by_stream, correction_weight=cfg.correction_weight)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(accumulated.grads)
            is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            updates, opt_state = optimizer.update(accumulated.grads, state.opt_state, state.params)
            updated = TrainState(
                optax.apply_updates(state.params, updates), opt_state, state.step + 1
            )
            is_beyond = gaps.is_beyond(accumulated.gaps, accumulated.num_masked, parity=cfg.parity)
            is_applied = is_finite
            if is_gated:
                is_first = state.step % cfg.train.updates_per_step == 0
                is_applied &= ~(is_beyond & is_first)
            state = jax.tree.map(lambda new, old: jnp.where(is_applied, new, old), updated, state)
        means = {name: total / count for name, (total, count) in accumulated.sums.items()}
        _, num_tokens = accumulated.sums["policy/entropy"]
        return state, UpdateMetrics(
            loss_base=accumulated.loss_by_stream[Stream.BASE],
            loss_correction=accumulated.loss_by_stream[Stream.CORRECTION],
            loss_total=loss,
            kl=means.get("kl", jnp.float32(jnp.nan)),
            grad_norm=norm,
            is_finite=is_finite,
            learning_rate=rate,
            entropy=means["policy/entropy"],
            clip_share=means["policy/clip_share"],
            ratio=means["policy/ratio"],
            importance_weight=means["importance/weight"],
            importance_bounded_share=means["importance/bounded_share"],
            num_tokens=num_tokens,
            gaps=accumulated.gaps,
            num_masked=accumulated.num_masked,
            is_tripped=is_beyond,
        )

    return jax.jit(
        step,
        # The frozen parameters keep the layout that they come with.
        in_shardings=(layout, None, batch_shardings(mesh)),
        out_shardings=(layout, NamedSharding(mesh, PartitionSpec())),
        donate_argnames="state",
    )


_Found = tuple[Array, Sums, Gaps, Array]
"""Loss by stream, sums, gaps and number of masked tokens of one microbatch."""


def _accumulate(
    trainable: Trainable,
    frozen: Params | None,
    batch: Batch,
    grad_shardings: Trainable,
    *,
    cfg: Config,
    arch: Architecture,
) -> Accumulated:
    """Loss, gradients and metric sums of the rows in use, one microbatch at a time."""
    reference = policy.reference(frozen, cfg) if cfg.kl.is_in_loss else None

    def loss(trainable: Trainable, rows: Batch) -> tuple[Array, _Found]:
        params = policy.params(trainable, frozen, cfg)
        logprob_BT, entropy_BT = row_logprobs(params, rows, cfg=cfg, arch=arch)
        reference_logprob_BT = None
        if reference is not None:
            with jax.named_scope("reference"):
                scored_BT, _ = row_logprobs(reference, rows, cfg=cfg, arch=arch)
                reference_logprob_BT = jax.lax.stop_gradient(scored_BT)
        with jax.named_scope("parity"):
            found = gaps.measure(logprob_BT, rows)
            num_masked = jnp.float32(0)
            if isinstance(cfg.parity, ParityMask):
                rows, num_masked = gaps.mask_outliers(logprob_BT, rows, parity=cfg.parity)
        loss_by_stream, sums = policy_loss(
            logprob_BT,
            entropy_BT,
            reference_logprob_BT,
            rows,
            objective=cfg.objective,
            kl=cfg.kl,
            importance=cfg.importance,
        )
        joint = joint_loss(loss_by_stream, correction_weight=cfg.correction_weight)
        return joint, (loss_by_stream, sums, found, num_masked)

    def add(index: Array, so_far: Accumulated) -> Accumulated:
        rows = jax.tree.map(lambda x: x[index], microbatches)
        (_, (loss_by_stream, sums, found, num_masked)), grads = jax.value_and_grad(
            loss, has_aux=True
        )(trainable, rows)
        grads = jax.tree.map(jnp.add, so_far.grads, grads)
        return Accumulated(
            grads=jax.lax.with_sharding_constraint(grads, grad_shardings),
            loss_by_stream=so_far.loss_by_stream + loss_by_stream,
            sums=jax.tree.map(jnp.add, so_far.sums, sums),
            gaps=so_far.gaps + found,
            num_masked=so_far.num_masked + num_masked,
        )

    rows_per_microbatch = cfg.train.rows_per_microbatch
    microbatches = microbatches_of(batch, rows_per_microbatch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    _, (_, sums, _, _) = jax.eval_shape(loss, trainable, first)
    nothing = Accumulated(
        grads=jax.lax.with_sharding_constraint(
            jax.tree.map(jnp.zeros_like, trainable), grad_shardings
        ),
        loss_by_stream=jnp.zeros(len(Stream)),
        sums=jax.tree.map(lambda _: jnp.float32(0), sums),
        gaps=Gaps.none(),
        num_masked=jnp.float32(0),
    )
    num_microbatches = -(-batch.num_rows // rows_per_microbatch)
    accumulated: Accumulated = jax.lax.fori_loop(0, num_microbatches, add, nothing)
    return accumulated


def _check_arguments(frozen: Params | None, batch: Batch, cfg: Config, mesh: Mesh) -> None:
    if (frozen is not None) != policy.has_frozen(cfg):
        given = "none were given" if frozen is None else "some were given"
        raise ValueError(
            f"adapter.kind is {cfg.adapter.kind}, kl.weight is {cfg.kl.weight}, and {given} as "
            "frozen parameters: they are needed where an adapter is trained or kl.weight is "
            "positive, and are not kept in memory otherwise."
        )
    if cfg.has_old_logprob and batch.old_logprob_BT is None:
        raise ValueError(
            f"importance.kind is {cfg.importance.kind} and train.updates_per_step "
            f"{cfg.train.updates_per_step}, but the batch has no old_logprob: score it before the "
            "first update (`score.make_scorer`), or every update would count as the first."
        )
    num_rows, _ = batch.token_BT.shape
    if num_rows % cfg.train.rows_per_microbatch:
        raise ValueError(
            f"the batch has {num_rows} rows, which train.rows_per_microbatch "
            f"{cfg.train.rows_per_microbatch} does not divide: fill it up with empty rows."
        )
    num_shards = num_row_shards(mesh)
    if cfg.train.rows_per_microbatch % num_shards:
        raise ValueError(
            f"train.rows_per_microbatch is {cfg.train.rows_per_microbatch}, but a microbatch is "
            f"spread over data * fsdp * expert = {num_shards} devices: choose a multiple of that."
        )


def _init_opt_state(params: Trainable, *, cfg: Config) -> optax.OptState:
    return make_optimizer(cfg.optimizer, _num_updates(cfg)).init(params)


def _num_updates(cfg: Config) -> int:
    return cfg.train.steps * cfg.train.updates_per_step
