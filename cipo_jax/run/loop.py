"""A run from its first prompt to its last checkpoint: the only file that knows all of it.

load -> (restore) -> evaluate -> [ problems -> iterate -> train step -> log -> checkpoint ] ->
evaluate -> plot
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from cipo_jax.config import Config, ParityStop, atomic
from cipo_jax.evaluate.heldout import evaluate
from cipo_jax.mesh import processes
from cipo_jax.mesh.sharding import ACTIVATION_RULES, check_divisible, distributed, make_mesh
from cipo_jax.model.files.load import load_model
from cipo_jax.model.transformer import Params
from cipo_jax.records import Batch
from cipo_jax.report.comparison import print_comparison
from cipo_jax.report.plot import plot
from cipo_jax.report.run_files import read_evaluations
from cipo_jax.rollout.judged import Engine
from cipo_jax.run import parity, run_folder
from cipo_jax.run.interrupt import Interrupt
from cipo_jax.run.iteration import HostState, Iteration, Library, iterate
from cipo_jax.run.log import RunLog
from cipo_jax.run.metrics import step_metrics
from cipo_jax.run.rollout_rows import rollout_rows
from cipo_jax.tasks import load as load_tasks
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.tasks.stream import ProblemStream
from cipo_jax.text.prompts import Renderer, longest_prompt
from cipo_jax.text.tokenizer import check_fits, eos_ids, load_tokenizer
from cipo_jax.update import policy
from cipo_jax.update.checkpoint import Checkpoints
from cipo_jax.update.metrics import UpdateMetrics
from cipo_jax.update.policy import Trainable
from cipo_jax.update.scorer import Scorer, make_scorer
from cipo_jax.update.train_step import (
    TrainState,
    TrainStep,
    abstract_state,
    init_state,
    make_train_step,
)
from cipo_jax.verify.judge import Judge
from cipo_jax.verify.opening import open_judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite. That update was not applied."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What stays the same over the steps of a run."""

    cfg: Config
    folder: Path
    engine: Engine
    tokenizer: PreTrainedTokenizerFast
    stream: ProblemStream
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
    """The whole state of a run."""

    train: TrainState
    host: HostState


def train(cfg: Config, folder: Path, *, allow_changes: bool = False, profile: bool = False) -> None:
    """Train as the configuration says, in `folder`; a run in it that was cut off is continued.

    Ctrl-C or SIGTERM: the step or the evaluation that is under way is finished, the state is saved,
    and the function returns.

    Args:
      allow_changes: continue also where the configuration or the problems are not those that the
        run was started with; see `run_folder`.
      profile: trace the second step of this process into `folder`/profile; the first compiles.

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
        setup, trainable = _set_up(cfg, folder, mesh, tasks, judge)
        state = _restored(setup, trainable, checkpoints, allow_changes=allow_changes)
        # After the restoring, which passes over a damaged checkpoint.
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
                _evaluate(setup, state, done, log)
                if processes.on_any(interrupt.requested):
                    break
            with _profiling(folder, log, enabled=profile and done == first + 1):
                state = _step(setup, state, done + 1, log)
            done += 1
            if done % cfg.checkpoint.every == 0 or done == cfg.train.steps:
                _save(setup, state, done, checkpoints)
        if done < cfg.train.steps:
            _save(setup, state, done, checkpoints)
            log.message(
                f"stopped after step {done}; the same command with --run-dir {folder} continues it"
            )
            return
        _evaluate(setup, state, done, log)
    if processes.is_first():
        _conclude(folder, cfg)


def _set_up(
    cfg: Config, folder: Path, mesh: Mesh, tasks: Tasks, judge: Judge
) -> tuple[Setup, Trainable]:
    """Load the model, and make every program of the run."""
    tokenizer = load_tokenizer(cfg.model)
    params, arch = load_model(cfg.model, mesh, seed=cfg.seed, dtype=policy.base_dtype(cfg))
    check_fits(tokenizer, arch)
    renderer = Renderer(tokenizer, cfg.prompts)
    # Prompts that are too long raise now, and not at step 300.
    longest_prompt(renderer, (*tasks.held_out, *tasks.train))
    trainable, frozen = policy.split(params, cfg, arch)
    setup = Setup(
        cfg=cfg,
        folder=folder,
        engine=Engine(
            arch=arch,
            mesh=mesh,
            eos_ids=eos_ids(cfg.model, tokenizer),
            renderer=renderer,
            judge=judge,
            compute_dtype=cfg.train.compute_dtype,
        ),
        tokenizer=tokenizer,
        stream=ProblemStream(tasks.train, cfg.train.prompts_per_step, cfg.seed),
        held_out=tasks.held_out[: cfg.evaluation.problems],
        library=Library.of(tasks.train),
        train_step=make_train_step(cfg, arch, mesh),
        gated_step=make_train_step(cfg, arch, mesh, is_gated=True),
        scorer=make_scorer(cfg, arch, mesh),
        float32_scorer=make_scorer(_in_float32(cfg), arch, mesh),
        frozen=frozen,
    )
    return setup, trainable


def _restored(
    setup: Setup, trainable: Trainable, checkpoints: Checkpoints, *, allow_changes: bool
) -> RunState:
    """The state that a run in this folder has saved, or that of a run that begins."""
    cfg, engine = setup.cfg, setup.engine
    restored = checkpoints.restore_latest(abstract_state(cfg, engine.arch, engine.mesh))
    if restored is None:
        train_state = init_state(trainable, cfg, engine.mesh)
        return RunState(train=train_state, host=HostState.initial(cfg))
    train_state, saved = restored
    host = HostState.from_json(saved["method"])
    try:
        setup.stream.check(saved["problems"])
    except ValueError:
        if not allow_changes:
            raise
        # With other problems or other batches the cursor means nothing: the order starts anew.
        host = dataclasses.replace(host, cursor=0)
    return RunState(train=train_state, host=host)


def _save(setup: Setup, state: RunState, done: int, checkpoints: Checkpoints) -> None:
    host = {"method": state.host.to_json(), "problems": setup.stream.source}
    checkpoints.save(done, state.train, host)


def _step(setup: Setup, state: RunState, step: int, log: RunLog) -> RunState:
    """Step `step` of the run, from 1: both streams, the updates on them, their place in the log."""
    cfg = setup.cfg
    start = time.perf_counter()
    params = policy.params(state.train.params, setup.frozen, cfg)
    iteration = _sample(setup, params, state, step)
    batch = iteration.credit.batch
    processes.agree(f"the batch of step {step}", _digest(batch))
    batch = distributed(batch, setup.engine.mesh, ACTIVATION_RULES)
    sampled = time.perf_counter()
    if cfg.has_old_logprob:
        batch = dataclasses.replace(batch, old_logprob_BT=setup.scorer(params, batch))
    train_state, updates = state.train, []
    is_gated = processes.from_first(lambda: parity.has_room(setup.folder, cfg))
    for index in range(cfg.train.updates_per_step):
        update = setup.gated_step if is_gated else setup.train_step
        train_state, metrics = update(train_state, setup.frozen, batch)
        if is_gated and index == 0 and metrics.is_tripped:
            # Not applied: the parameters are still those that sampled.
            _look_into_parity(setup, train_state, state, step, batch, metrics, log)
            train_state, metrics = setup.train_step(train_state, setup.frozen, batch)
        updates.append(jax.device_get(metrics))
        if not updates[-1].is_finite:
            raise DivergedError(_divergence(step, iteration, updates[-1]))
    trained = time.perf_counter()
    figures = step_metrics(
        iteration,
        updates,
        cfg=cfg,
        is_sandboxed=setup.engine.judge.is_sandboxed,
        train_s=trained - sampled,
        step_s=trained - start,
    )
    log.step(step, figures.to_log())
    every = cfg.log.rollouts_every
    if every and (step - 1) % every == 0 and processes.is_first():
        log.rollouts(step, rollout_rows(iteration, step, setup.tokenizer.decode))
    return RunState(train=train_state, host=iteration.state)


def _sample(setup: Setup, params: Params, state: RunState, step: int) -> Iteration:
    """Both streams of a step; the same again where the same is asked for."""
    reference = policy.reference(setup.frozen, setup.cfg)
    return iterate(
        setup.engine,
        params,
        setup.stream,
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
    metrics: UpdateMetrics,
    log: RunLog,
) -> None:
    """Score and sample the batch again, store the evidence, and warn or end the run."""
    params = policy.params(train_state.params, setup.frozen, setup.cfg)
    evidence = parity.Evidence(
        batch=processes.whole(batch),
        rescored_BT=np.asarray(processes.whole(setup.scorer(params, batch))),
        float32_BT=np.asarray(processes.whole(setup.float32_scorer(params, batch))),
        resampled=_sample(setup, params, state, step).credit.batch,
        logged=parity.logged(metrics),
    )
    found = processes.from_first(
        lambda: parity.report(
            evidence, setup.folder, step, cfg=setup.cfg, devices=_devices(setup.engine.mesh)
        )
    )
    if isinstance(setup.cfg.parity, ParityStop):
        raise parity.ParityError(
            f"{found}\nThe update was not applied. Fix the cause, or continue with another "
            "parity.kind."
        )
    log.message(found)


@contextlib.contextmanager
def _profiling(folder: Path, log: RunLog, *, enabled: bool) -> Iterator[None]:
    """A trace of what happens inside, by the first process, where it is enabled."""
    if not enabled or not processes.is_first():
        yield
        return
    traces = folder / "profile"
    with jax.profiler.trace(str(traces), create_perfetto_trace=True):
        yield
    log.message(
        f"profile: {traces}; open its perfetto_trace.json.gz at https://ui.perfetto.dev, or the "
        "folder with `tensorboard --logdir` and its profile plugin"
    )


def _in_float32(cfg: Config) -> Config:
    train = dataclasses.replace(cfg.train, compute_dtype="float32")
    return dataclasses.replace(cfg, train=train)


def _score(setup: Setup, params: Params, batch: Batch) -> np.ndarray:
    """Log-prob of each token of a batch of host arrays, on the host."""
    placed = distributed(batch, setup.engine.mesh, ACTIVATION_RULES)
    return np.asarray(processes.whole(setup.scorer(params, placed)))


def _digest(batch: Batch) -> int:
    digest = 0
    for x in jax.tree.leaves(batch):
        digest = zlib.crc32(np.asarray(x).tobytes(), digest)
    return digest


def _divergence(step: int, iteration: Iteration, metrics: UpdateMetrics) -> str:
    """What went wrong at which step and in which rows."""
    batch = iteration.credit.batch
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
        f"step {step}: the loss is {metrics.loss_total:.4g} and the gradient norm "
        f"{metrics.grad_norm:.4g}; {where}. The update was not applied, and the checkpoints "
        f"hold the steps before it. Problems of this step: {problems}. Start again in another "
        "--run-dir with a lower optimizer.learning_rate or more optimizer.warmup_steps."
    )


def _evaluate(setup: Setup, state: RunState, done: int, log: RunLog) -> None:
    """Held-out results after `done` steps, into evaluations.json, where they aren't there yet."""
    evaluations: list[Any] = processes.from_first(lambda: read_evaluations(setup.folder))
    if any(e["step"] == done for e in evaluations):
        return
    log.message(f"evaluating on {len(setup.held_out)} held-out problems")
    start = time.perf_counter()
    # The same random numbers at every step, so that a difference is the policy's.
    key = jax.random.key(setup.cfg.seed)
    params = policy.params(state.train.params, setup.frozen, setup.cfg)
    found = evaluate(setup.engine, params, setup.held_out, key, setup.cfg)
    evaluations.append({"step": done, "seconds": time.perf_counter() - start, **found})
    if processes.is_first():
        atomic.write_json(setup.folder / "evaluations.json", evaluations)


def _conclude(folder: Path, cfg: Config) -> None:
    """Draw the run and print what it did to the held-out problems."""
    evaluations = read_evaluations(folder)
    print_comparison(evaluations[0], evaluations[-1], seed=cfg.seed)
    print(f"\nrun folder: {folder}\nplot:       {plot(folder, cfg)}")
    run_folder.finish(folder, steps=cfg.train.steps)


def _devices(mesh: Mesh) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": mesh.size,
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
    }
