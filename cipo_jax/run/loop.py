"""A run from its first prompt to its last checkpoint: the only file that knows all the rooms.

load -> (restore) -> evaluate -> [ problems -> iterate -> train step -> log -> checkpoint ] ->
evaluate -> plot
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from cipo_jax.config import Config, ParityStop
from cipo_jax.evaluate.heldout import evaluate
from cipo_jax.mesh import processes
from cipo_jax.mesh.sharding import ACTIVATION_RULES, distributed, make_mesh, num_row_shards
from cipo_jax.model.files.load import load_model
from cipo_jax.model.transformer import Params
from cipo_jax.records import Batch
from cipo_jax.report.comparison import print_comparison
from cipo_jax.report.plot import plot
from cipo_jax.rollout.judged import Engine
from cipo_jax.run import parity, run_folder, step_metrics
from cipo_jax.run.iteration import HostState, Iteration, Library, iterate
from cipo_jax.run.log import RunLog
from cipo_jax.run.rollout_rows import rollout_rows
from cipo_jax.tasks import load as load_tasks
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.text.prompts import ProblemStream, Renderer
from cipo_jax.text.tokenizer import eos_ids, load_tokenizer
from cipo_jax.update import policy
from cipo_jax.update.checkpoint import Checkpoints
from cipo_jax.update.scorer import Scorer, make_scorer
from cipo_jax.update.train_step import (
    TrainState,
    TrainStep,
    abstract_state,
    init_state,
    make_train_step,
)
from cipo_jax.verify.judge import Judge, open_judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite. That update was not applied."""


@dataclass
class Interrupt:
    """Set by the first Ctrl-C or SIGTERM: the step is finished, saved, and the run ends well. A
    second Ctrl-C interrupts at once."""

    requested: bool = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[Interrupt]:
        def request(signum: int, frame: object) -> None:
            if self.requested and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self.requested = True
            print("\nfinishing this step, then saving; Ctrl-C again stops at once", flush=True)

        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What stays the same over the steps of a run."""

    cfg: Config
    engine: Engine
    tokenizer: PreTrainedTokenizerFast
    held_out: tuple[Problem, ...]
    library: Library
    train_step: TrainStep
    gated_step: TrainStep
    """The same, but one that trips parity is not applied."""
    scorer: Scorer
    float32_scorer: Scorer
    frozen: Params | None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The whole state of a run, together with the data cursor, which is `stream`'s."""

    train: TrainState
    host: HostState
    stream: ProblemStream

    def host_json(self) -> dict[str, Any]:
        return {"method": self.host.to_json(), "cursor": self.stream.state()}


def train(cfg: Config, folder: Path, *, allow_changes: bool = False) -> None:
    """Train as the configuration says, in `folder`; goes on where a run in it was cut off.

    Ctrl-C or SIGTERM: the step or the evaluation that is under way is finished, the state is saved,
    and the function returns.

    Args:
      allow_changes: go on also where the configuration or the problems are not those that the run
        was started with; see `run_folder`.

    Raises:
      ValueError: something in the configuration, the model or the data does not fit; says what.
      NoValidSamplesError: every verdict of a step is unknown.
      DivergedError: the loss is not finite. Checkpoints hold the last good state.
      ParityError: parity tripped, and parity.kind is stop.
    """
    with contextlib.ExitStack() as stack:
        processes.meet({"folder": str(folder), **dataclasses.asdict(cfg)})
        processes.from_first(
            lambda: run_folder.open_folder(folder, cfg, allow_changes=allow_changes)
        )
        processes.check_shared(folder / "config.yaml")
        mesh = make_mesh(cfg.mesh)
        check_divisible(cfg, mesh)
        interrupt = stack.enter_context(Interrupt().watching())
        tasks = load_tasks(cfg.tasks)
        processes.agree("the problems", run_folder.fingerprint(tasks))
        processes.from_first(
            lambda: run_folder.check_problems(folder, tasks, allow_changes=allow_changes)
        )
        judge = open_judge(cfg.verify, (p.reference for p in (*tasks.train, *tasks.held_out)))
        stack.callback(judge.close)
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", cfg.checkpoint.keep))
        setup, state = _set_up(cfg, mesh, tasks, judge, checkpoints, allow_changes=allow_changes)
        first = checkpoints.latest_step() or 0
        log = stack.enter_context(
            RunLog(
                folder,
                cfg.log,
                first_step=first,
                num_steps=cfg.train.steps,
                is_writer=processes.is_first(),
            )
        )
        log.environment(_devices(mesh), verifier=str(judge.report))
        log.message(str(judge.report))
        done = first
        while done < cfg.train.steps and not processes.on_any(interrupt.requested):
            # Also what a run that was cut off after its checkpoint left out.
            if done == 0 or (cfg.evaluation.every and done % cfg.evaluation.every == 0):
                _evaluate(setup, state, done, folder, log)
                if processes.on_any(interrupt.requested):
                    break
            state = _step(setup, state, done, folder, log)
            done += 1
            if done % cfg.checkpoint.every == 0 or done == cfg.train.steps:
                checkpoints.save(done, state.train, state.host_json())
        if done < cfg.train.steps:
            checkpoints.save(done, state.train, state.host_json())
            log.message(
                f"stopped after step {done}; the same command with --run-dir {folder} goes on"
            )
            return
        _evaluate(setup, state, done, folder, log)
    if processes.is_first():
        _conclude(folder, cfg)


def _set_up(
    cfg: Config,
    mesh: Mesh,
    tasks: Tasks,
    judge: Judge,
    checkpoints: Checkpoints,
    *,
    allow_changes: bool,
) -> tuple[Setup, RunState]:
    """Load everything, and restore what a run in this folder has saved."""
    tokenizer = load_tokenizer(cfg.model)
    params, arch = load_model(cfg.model, mesh, seed=cfg.seed, dtype=policy.base_dtype(cfg))
    if len(tokenizer) > arch.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {arch.vocab_size}: they do "
            "not belong together."
        )
    renderer = Renderer(tokenizer, cfg.prompts)
    for problem in (*tasks.held_out, *tasks.train):
        # Prompts that are too long raise now, and not at step 300.
        renderer.base(problem)
        renderer.correction(problem, "")
    trainable, frozen = policy.split(params, cfg, arch)
    setup = Setup(
        cfg=cfg,
        engine=Engine(
            arch=arch,
            mesh=mesh,
            eos_ids=eos_ids(cfg.model, tokenizer),
            renderer=renderer,
            judge=judge,
            compute_dtype=cfg.train.compute_dtype,
        ),
        tokenizer=tokenizer,
        held_out=tasks.held_out[: cfg.evaluation.problems],
        library=Library.of(tasks.train),
        train_step=make_train_step(cfg, arch, mesh),
        gated_step=make_train_step(cfg, arch, mesh, is_gated=True),
        float32_scorer=make_scorer(_in_float32(cfg), arch, mesh),
        scorer=make_scorer(cfg, arch, mesh),
        frozen=frozen,
    )
    stream = ProblemStream(tasks.train, cfg.train.prompts_per_step, cfg.seed)
    restored = checkpoints.restore_latest(abstract_state(cfg, arch, mesh))
    if restored is None:
        train_state = init_state(trainable, cfg, mesh)
        return setup, RunState(train=train_state, host=HostState.initial(cfg), stream=stream)
    train_state, saved = restored
    try:
        stream.restore(saved["cursor"])
    except ValueError:
        if not allow_changes:
            raise
        # Of other problems or other batches there is no place to go on from: the order starts anew.
    host = HostState.from_json(saved["method"])
    return setup, RunState(train=train_state, host=host, stream=stream)


def _step(setup: Setup, state: RunState, step: int, folder: Path, log: RunLog) -> RunState:
    """One step: both streams, the updates on them, and their place in the log."""
    cfg = setup.cfg
    start = time.perf_counter()
    cursor = state.stream.state()
    weights = policy.params(state.train.params, setup.frozen, cfg)
    iteration = _sample(setup, weights, state, step)
    processes.agree(f"the batch of step {step + 1}", _digest(iteration.batch))
    batch = distributed(iteration.batch, setup.engine.mesh, ACTIVATION_RULES)
    sampled = time.perf_counter()
    if cfg.has_old_logprob:
        batch = dataclasses.replace(batch, old_logprob_BT=setup.scorer(weights, batch))
    train_state, updates = state.train, []
    is_gated = processes.from_first(lambda: parity.has_room(folder, cfg))
    for index in range(cfg.train.updates_per_step):
        update = setup.gated_step if is_gated else setup.train_step
        train_state, metrics = update(train_state, setup.frozen, batch)
        if is_gated and index == 0 and metrics["parity/tripped"]:
            # Not applied: the parameters are still those that sampled.
            state.stream.restore(cursor)
            _look_into_parity(setup, train_state, state, step, batch, metrics, folder, log)
            train_state, metrics = setup.train_step(train_state, setup.frozen, batch)
        updates.append(jax.device_get(metrics))
        if not updates[-1]["grad/is_finite"]:
            raise DivergedError(_divergence(step, iteration, updates[-1]))
    trained = time.perf_counter()
    log.step(
        step + 1,
        {
            **step_metrics.of_iteration(iteration, cfg),
            "verdict/is_sandboxed": setup.engine.judge.is_sandboxed,
            **step_metrics.of_updates(updates, iteration, cfg),
            **step_metrics.of_time(
                iteration,
                num_updates=len(updates),
                train_s=trained - sampled,
                step_s=trained - start,
            ),
        },
    )
    every = cfg.log.rollouts_every
    if every and step % every == 0 and processes.is_first():
        log.rollouts(step + 1, rollout_rows(iteration, step + 1, setup.tokenizer.decode))
    return RunState(train=train_state, host=iteration.state, stream=state.stream)


def _sample(setup: Setup, weights: Params, state: RunState, step: int) -> Iteration:
    """Both streams of a step, from where the data cursor stands."""
    reference = policy.reference(setup.frozen, setup.cfg)
    return iterate(
        setup.engine,
        weights,
        state.stream,
        state.host,
        step,
        cfg=setup.cfg,
        library=setup.library,
        score_reference=None if reference is None else partial(_score, setup, reference),
    )


def _look_into_parity(
    setup: Setup,
    train_state: TrainState,
    state: RunState,
    step: int,
    batch: Batch,
    metrics: Mapping[str, Any],
    folder: Path,
    log: RunLog,
) -> None:
    """Store the evidence, and warn or end the run."""
    cfg = setup.cfg
    weights = policy.params(train_state.params, setup.frozen, cfg)
    scores = parity.Scores(
        rescored_BT=processes.whole(setup.scorer(weights, batch)),
        float32_BT=processes.whole(setup.float32_scorer(weights, batch)),
        resampled=_sample(setup, weights, state, step).batch,
    )
    batch = processes.whole(batch)

    def write() -> str:
        path, split = parity.write_bundle(
            folder,
            step + 1,
            cfg=cfg,
            batch=batch,
            scores=scores,
            logged={name: float(metrics[f"parity/logprob_abs_{name}"]) for name in ("mean", "max")},
            devices=_devices(setup.engine.mesh),
        )
        return f"{split}\nevidence: {path}"

    found = (
        f"step {step + 1}: the trainer's log-probs are not the sampler's (parity.kind is "
        f"{cfg.parity.kind}). {processes.from_first(write)}"
    )
    if isinstance(cfg.parity, ParityStop):
        raise parity.ParityError(
            f"{found}\nThe update was not applied. Mend the cause, or go on with another "
            "parity.kind."
        )
    log.message(found)


def _in_float32(cfg: Config) -> Config:
    train = dataclasses.replace(cfg.train, compute_dtype="float32")
    return dataclasses.replace(cfg, train=train)


def _score(setup: Setup, params: Params, batch: Batch) -> np.ndarray:
    """Log-prob of each token of a batch of host arrays, on the host."""
    placed = distributed(batch, setup.engine.mesh, ACTIVATION_RULES)
    return processes.whole(setup.scorer(params, placed))


def _digest(batch: Batch) -> int:
    digest = 0
    for x in jax.tree.leaves(batch):
        digest = zlib.crc32(np.asarray(x).tobytes(), digest)
    return digest


def check_divisible(cfg: Config, mesh: Mesh) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    shards = num_row_shards(mesh)
    rows = cfg.train.rows_per_microbatch
    if rows % shards:
        raise ValueError(
            f"train.rows_per_microbatch is {rows}, which does not divide over data * fsdp * "
            f"expert = {shards} devices: make it a multiple of {shards}, or choose another mesh."
        )


def _divergence(step: int, iteration: Iteration, metrics: Mapping[str, float]) -> str:
    """What went wrong at which step and in which rows."""
    batch = iteration.batch
    rows = np.flatnonzero(
        ~np.isfinite(batch.sampler_logprob_BT * batch.weight_BT * batch.advantage_BT).all(axis=1)
    )
    where = (
        f"rows {rows.tolist()} hold a log-prob or an advantage that is not finite"
        if rows.size
        else f"all {int(batch.num_rows)} rows came in finite, so it arose in the model"
    )
    problems = ", ".join(p.problem.id for p in iteration.base.prompted)
    return (
        f"step {step + 1}: the loss is {metrics['loss/total']:.4g} and the gradient norm "
        f"{metrics['grad/norm']:.4g}; {where}. The update was not applied, and the checkpoints "
        f"hold the steps before it. Problems of this step: {problems}. Start again in another "
        "--run-dir with a lower optimizer.learning_rate or more optimizer.warmup_steps."
    )


def _evaluate(setup: Setup, state: RunState, step: int, folder: Path, log: RunLog) -> None:
    """Held-out results after `step` steps, into evaluations.json, where they aren't there yet."""
    path = folder / "evaluations.json"
    evaluations = processes.from_first(
        lambda: json.loads(path.read_text()) if path.exists() else []
    )
    if any(e["step"] == step for e in evaluations):
        return
    log.message(f"evaluating on {len(setup.held_out)} held-out problems")
    start = time.perf_counter()
    # The same random numbers at every step, so that a difference is the policy's.
    key = jax.random.key(setup.cfg.seed)
    weights = policy.params(state.train.params, setup.frozen, setup.cfg)
    found = evaluate(setup.engine, weights, setup.held_out, key, setup.cfg)
    evaluations.append({"step": step, "seconds": time.perf_counter() - start, **found})
    if not processes.is_first():
        return
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(evaluations, indent=1))
    written.replace(path)


def _conclude(folder: Path, cfg: Config) -> None:
    """Draw the run and print what it did to the held-out problems."""
    evaluations = json.loads((folder / "evaluations.json").read_text())
    print_comparison(evaluations[0], evaluations[-1], seed=cfg.seed)
    print(f"\nrun folder: {folder}\nplot:       {plot(folder, cfg)}")


def _devices(mesh: Mesh) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": mesh.size,
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
    }
