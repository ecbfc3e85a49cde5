"""Every program of a run, in the order in which a step runs them, with abstract arguments.

A program's arguments may be the results of another, whose shardings are known once that other
program is compiled. So `programs` is a generator: it is sent the results of each program that it
yields, or None for one that could not be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cipo_jax.config import Config
from cipo_jax.evaluate import heldout
from cipo_jax.mesh.sharding import ACTIVATION_RULES, abstract_on, num_row_shards
from cipo_jax.method.mix import abstract_batch, max_rows
from cipo_jax.model.blockwise import most_pairs
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.plan.loops import LoopTrips, run_once
from cipo_jax.rollout import sample
from cipo_jax.rollout.judged import Shape
from cipo_jax.rollout.padding import pad_prompts
from cipo_jax.run.iteration import base_shape, correction_shape
from cipo_jax.update import policy
from cipo_jax.update.scorer import make_scorer
from cipo_jax.update.train_step import TrainState, abstract_state, make_train_step

Phase = Literal["sample", "correct", "train", "evaluate"]

TRAINED = "trained parameters"
OPTIMIZER = "optimizer state"
FROZEN = "frozen parameters"


@dataclass(frozen=True, kw_only=True)
class Program:
    """One compiled program, and its effect on the memory of the devices."""

    phase: Phase
    name: str
    function: Any
    """Jitted."""
    args: tuple[Any, ...]
    host_args: tuple[int, ...] = ()
    """Positions of arguments that come from the host for this call alone; others are in memory
    before it."""
    static: Mapping[str, Any] = field(default_factory=dict)
    trips: LoopTrips = run_once
    at_once: int = 1
    """Number of times that it runs in a row with all results kept: 1, or once for each layer."""
    per_step: int = 1
    """Calls in a step of training, or in a whole evaluation."""
    makes: str | None = None
    """Name of its results, if they stay in memory."""
    frees: tuple[str, ...] = ()
    """Names of results that are dropped after it."""

    @property
    def key(self) -> Hashable:
        """Equal for programs that compile to the same."""
        leaves, structure = jax.tree.flatten(self.args)
        described = ((x.shape, str(x.dtype), getattr(x, "sharding", None)) for x in leaves)
        return self.function, tuple(self.static.items()), structure, tuple(described)


Programs = Generator[Program, Any, None]


def resident(cfg: Config, arch: Architecture, mesh: Mesh) -> dict[str, Any]:
    """Name -> the arrays that are in memory from the start of a run to its end, as trees of
    `jax.ShapeDtypeStruct` with shardings."""
    state = abstract_state(cfg, arch, mesh)
    frozen = policy.abstract_frozen(cfg, arch, mesh)
    held = {TRAINED: state.params, OPTIMIZER: state.opt_state, FROZEN: frozen}
    return {name: tree for name, tree in held.items() if tree is not None}


def programs(
    cfg: Config, arch: Architecture, mesh: Mesh, phases: Sequence[Phase] | None = None
) -> Programs:
    """The programs of a step, then those of an evaluation, which runs between steps.

    Every completion is taken to have its full length.

    Args:
      phases: only these; all if not given.
    """
    state = abstract_state(cfg, arch, mesh)
    frozen = policy.abstract_frozen(cfg, arch, mesh)
    weights = policy.params(state.params, frozen, cfg)
    sampler = partial(_sampler_call, weights, cfg=cfg, arch=arch, mesh=mesh)

    def wanted(phase: Phase) -> bool:
        return phases is None or phase in phases

    if wanted("sample"):
        yield from sampler("sample", "", base_shape(cfg), cfg.train.prompts_per_step)
    if wanted("correct") and cfg.has_correction:
        yield from sampler("correct", "", correction_shape(cfg), cfg.num_anchors)
    if wanted("train"):
        yield from _updates(state, frozen, weights, cfg=cfg, arch=arch, mesh=mesh)
    if wanted("evaluate"):
        problems = cfg.evaluation.problems
        for stream, shape in heldout.shapes_of(cfg, problems).items():
            yield from sampler("evaluate", f"{stream} ", shape, problems)


def _updates(
    state: TrainState,
    frozen: Params | None,
    weights: Params,
    *,
    cfg: Config,
    arch: Architecture,
    mesh: Mesh,
) -> Programs:
    """The scorer, where the configuration needs one, and the train step, on a full batch."""
    batch = abstract_on(abstract_batch(cfg), mesh, ACTIVATION_RULES)
    num_microbatches = max_rows(cfg) // cfg.train.rows_per_microbatch
    num_pairs = most_pairs(cfg.train.row_tokens)

    def trips(bounds: Sequence[int | None]) -> Sequence[int]:
        """The loop over microbatches; inside it, loops over chunks of logits, which state their
        length, and loops of attention over pairs of blocks."""
        return [num_microbatches, *(bound or num_pairs for bound in bounds[1:])]

    program = partial(Program, phase="train", trips=trips)
    score = partial(program, function=_scorer(cfg, arch, mesh), host_args=(1,))
    unscored = replace(batch, old_logprob_BT=None)
    if cfg.kl.is_in_reward:
        streams = 1 + cfg.has_correction
        yield score(name="score reference", args=(frozen, unscored), per_step=streams)
    if cfg.has_old_logprob:
        yield score(name="score policy", args=(weights, unscored))
    yield program(
        name="train step",
        function=_train_step(cfg, arch, mesh),
        args=(state, frozen, batch),
        host_args=(2,),
        per_step=cfg.train.updates_per_step,
    )


def _sampler_call(
    weights: Params,
    phase: Phase,
    prefix: str,
    shape: Shape,
    num_prompts: int,
    *,
    cfg: Config,
    arch: Architecture,
    mesh: Mesh,
) -> Programs:
    """The programs of one call of the sampler, as often as `num_prompts` prompts need it."""
    shards = num_row_shards(mesh)
    at_once = shards * math.ceil(shape.num_prompts / shards)
    prompts = pad_prompts([], [], length=shape.prompt_tokens, num_prompts=at_once)
    trips: dict[str, LoopTrips] = {
        "prefill": lambda bounds: [most_pairs(shape.prompt_tokens)] * len(bounds),
        "decode": _spans,
    }
    stages = sample.stages(
        weights,
        abstract_on(prompts, mesh, ACTIVATION_RULES),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.float32),
        arch=arch,
        samples_per_prompt=shape.num_samples,
        max_new_tokens=shape.new_tokens,
        # Which ones they are, and how many, changes neither memory nor time.
        eos_ids=(0, 1),
        compute_dtype=cfg.train.compute_dtype,
    )
    stage = next(stages)
    while True:
        is_of_layers = stage.num_layers is not None
        results = yield Program(
            phase=phase,
            name=f"{prefix}{stage.name}",
            function=stage.function,
            args=(*stage.args, _INDEX) if is_of_layers else stage.args,
            host_args=stage.host_args,
            static=stage.static,
            trips=trips.get(stage.name, run_once),
            at_once=stage.num_layers or 1,
            per_step=math.ceil(num_prompts / at_once),
            makes=stage.makes,
            frees=stage.frees,
        )
        if results is None:
            return
        try:
            stage = stages.send((results,) * arch.num_layers if is_of_layers else results)
        except StopIteration:
            return


# The same function for the same configuration, so that equal programs have equal keys.
_train_step = cache(make_train_step)
_scorer = cache(make_scorer)

_INDEX = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)


def _spans(bounds: Sequence[int | None]) -> Sequence[int]:
    """The lengths of the decoder's loops, which share one counter. It starts from 1, as the first
    token needs no loop."""
    ends = [1, *(bound or 1 for bound in bounds)]
    return [end - start for start, end in pairwise(ends)]
