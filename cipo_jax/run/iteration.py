"""One iteration of the method, from problems to a mixed batch: both streams, in order.

    problems -> rollouts -> verdicts -> anchors -> correction rollouts -> verdicts -> mixed batch

The train step comes after and is not known here. Nothing is kept between iterations but
`HostState`, which is JSON and goes into the checkpoint.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from cipo_jax.config import Config
from cipo_jax.method import anchors as anchors_
from cipo_jax.method import controller
from cipo_jax.method.anchors import Anchor, Sampled
from cipo_jax.method.buffer import AttemptBuffer, BufferedAttempt
from cipo_jax.method.controller import ControllerState
from cipo_jax.method.mix import max_rows, mix
from cipo_jax.model.transformer import Params
from cipo_jax.records import Batch, Stream
from cipo_jax.rollout.judged import Engine, Judged, Prompted, Shape, concatenated, roll_out
from cipo_jax.run.credit import (
    Credit,
    ScoreReference,
    credit_base,
    credit_corrections,
    num_mixed,
)
from cipo_jax.tasks.problem import Problem

# Key ids of problems are below this, which leaves room for 511 samples of each in 31 bits.
NUM_KEY_IDS = 2**22


@dataclass(frozen=True, kw_only=True)
class Library:
    """The training problems by id, and the identity that each one's random draws derive from.

    The identity belongs to the problem and not to its place in a step: permuting the problems of a
    step only permutes its results, and a buffered attempt keeps the identity of its problem.
    """

    problems: Mapping[str, Problem]
    key_ids: Mapping[str, int]

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Library:
        """Key ids are hashes of the ids, so that a problem keeps its own when others come and go;
        those that meet the same number move on to the next free one, in the order of their ids.

        Raises: ValueError if there are more problems than key ids.
        """
        by_id = {problem.id: problem for problem in problems}
        if len(by_id) > NUM_KEY_IDS:
            raise ValueError(f"There are {len(by_id)} problems; a run takes up to {NUM_KEY_IDS}.")
        key_ids: dict[str, int] = {}
        taken: set[int] = set()
        for problem_id in sorted(by_id):
            key_id = zlib.crc32(problem_id.encode()) % NUM_KEY_IDS
            while key_id in taken:
                key_id = (key_id + 1) % NUM_KEY_IDS
            taken.add(key_id)
            key_ids[problem_id] = key_id
        return cls(problems=by_id, key_ids=key_ids)


@dataclass(frozen=True, kw_only=True)
class HostState:
    """What the method carries from one iteration to the next."""

    controller: ControllerState
    buffer: AttemptBuffer

    @classmethod
    def initial(cls, cfg: Config) -> HostState:
        return cls(controller=controller.initial(cfg.correction.controller), buffer=AttemptBuffer())

    def to_json(self) -> dict[str, Any]:
        return {"controller": self.controller.to_json(), "buffer": self.buffer.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> HostState:
        return cls(
            controller=ControllerState.from_json(record["controller"]),
            buffer=AttemptBuffer.from_json(record["buffer"]),
        )


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """The correction stream of one iteration: the anchors, their text and answers, and
    what became of them."""

    anchors: tuple[Anchor, ...]
    attempts: tuple[str, ...]
    is_retokenized: tuple[bool | None, ...]
    """Whether each attempt is read again in other tokens than it was sampled in; None for those of
    the buffer, which are kept as text."""
    answers: tuple[str | None, ...]
    """What the verifier read as the answer of each attempt; None where it found or kept none."""
    judged: Judged

    @property
    def is_right_M(self) -> np.ndarray:
        """Whether the attempt that was corrected was right."""
        return np.array([a.is_right for a in self.anchors], dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """All that one iteration found, for the train step and for the log."""

    base: Judged
    """Of all rounds of sampling, also the groups that are left out of the batch."""
    num_rounds: int
    corrections: Corrections | None
    """None when there are no anchors: none asked for, or no attempt qualified."""
    base_credit: Credit
    correction_credit: Credit | None
    """None without corrections."""
    batch: Batch
    ratio: float
    """Share of right anchors that was asked for."""
    state: HostState
    """For the next iteration."""


def base_shape(cfg: Config) -> Shape:
    """Of the sampler's calls for the base stream."""
    return Shape(
        num_prompts=min(cfg.sampling.prompts_per_call, cfg.train.prompts_per_step),
        num_samples=cfg.sampling.samples_per_prompt,
        prompt_tokens=cfg.prompts.max_prompt_tokens,
        new_tokens=cfg.sampling.max_new_tokens,
    )


def correction_shape(cfg: Config) -> Shape:
    """Of the sampler's calls for the correction stream; of no prompts where there is no stream."""
    return Shape(
        num_prompts=min(cfg.sampling.prompts_per_call, cfg.num_anchors),
        num_samples=cfg.sampling.samples_per_prompt,
        prompt_tokens=cfg.prompts.max_correction_prompt_tokens,
        new_tokens=cfg.sampling.max_new_tokens,
    )


class NoValidSamplesError(RuntimeError):
    """Every verdict of a step is unknown: the verifier is broken, and there is nothing to learn."""


def iterate(
    engine: Engine,
    params: Params,
    problems: Iterator[Sequence[Problem]],
    state: HostState,
    step: int,
    *,
    cfg: Config,
    library: Library,
    score_reference: ScoreReference | None = None,
) -> Iteration:
    """Sample and judge both streams with the current policy, and lay them into one batch.

    Every random draw is a function of the seed, the step, the stream and the identity of what it is
    drawn for, so that a resumed run repeats the unbroken one.

    Args:
      problems: the base prompts of each round of sampling; one is taken, or more with dynamic
        sampling.
      library: all training problems.
      score_reference: needed where a KL penalty is taken from the reward.
    Raises: NoValidSamplesError if every verdict of the base stream is unknown.
    """
    key = jax.random.fold_in(jax.random.key(cfg.seed), step)
    base_key = jax.random.fold_in(key, Stream.BASE)
    base, num_rounds = _sample_base(engine, params, problems, base_key, cfg, library)
    if not base.is_valid_QG.any():
        reasons = sorted({v.reason for row in base.verdicts for v in row})
        raise NoValidSamplesError(
            f"step {step + 1}: the verifier gave no verdict on any of {base.is_valid_QG.size} "
            f"samples (reasons: {', '.join(reasons)}). Nothing was trained on. See what the "
            "verifier reported at start; verify.deadline_s or verify.workers may be too small for "
            "this task, or the references unreadable."
        )
    base_credit = credit_base(base, cfg=cfg, score_reference=score_reference)
    groups = base_credit.groups
    ratio = state.controller.ratio
    # From all groups that were sampled, also those that are left out of the base loss.
    chosen = _choose_anchors(base, state, step, cfg) if cfg.has_correction else []
    corrections, correction_credit = None, None
    if chosen:
        correction_key = jax.random.fold_in(key, Stream.CORRECTION)
        corrections = _correct(engine, params, base, chosen, correction_key, cfg, library)
        correction_credit = credit_corrections(
            corrections.judged, chosen, cfg=cfg, score_reference=score_reference
        )
        if cfg.correction_weight > 0:
            groups = groups + correction_credit.groups
    batch = mix(
        groups,
        objective=cfg.objective,
        train=cfg.train,
        max_new_tokens=cfg.sampling.max_new_tokens,
        max_rows=max_rows(cfg),
        keep_zero_signal=cfg.trains_on_zero_signal,
    )
    return Iteration(
        base=base,
        num_rounds=num_rounds,
        corrections=corrections,
        base_credit=base_credit,
        correction_credit=correction_credit,
        batch=batch,
        ratio=ratio,
        state=_next_state(state, base, corrections, step, cfg),
    )


def _sample_base(
    engine: Engine,
    params: Params,
    problems: Iterator[Sequence[Problem]],
    key: jax.Array,
    cfg: Config,
    library: Library,
) -> tuple[Judged, int]:
    """Rollouts of one round of problems; of further rounds while too few groups are mixed, up to
    the objective's limit. Returns them with the number of rounds that were drawn.

    A problem that comes again within the step is passed over: its samples would be the same.
    """
    rounds: list[Judged] = []
    num_rounds = 0
    seen: set[str] = set()
    while num_rounds < cfg.objective.sampling_rounds:
        num_rounds += 1
        fresh = [p for p in next(problems) if p.id not in seen]
        seen |= {p.id for p in fresh}
        if fresh:
            prompted = [
                Prompted(problem=p, token_ids=engine.renderer.base(p), key_id=library.key_ids[p.id])
                for p in fresh
            ]
            temperature = cfg.sampling.temperature
            rounds.append(
                roll_out(
                    engine, params, prompted, key, shape=base_shape(cfg), temperature=temperature
                )
            )
        if sum(map(num_mixed, rounds)) >= cfg.train.prompts_per_step:
            break
    return concatenated(rounds), num_rounds


def _choose_anchors(base: Judged, state: HostState, step: int, cfg: Config) -> list[Anchor]:
    return anchors_.select(
        np.array([p.key_id for p in base.prompted]),
        base.is_right_QG,
        base.is_valid_QG,
        base.rollouts.is_finished_QG,
        num_anchors=cfg.num_anchors,
        ratio=state.controller.ratio,
        correction=cfg.correction,
        rng=np.random.default_rng([cfg.seed, step, Stream.CORRECTION]),
        buffer=state.buffer,
    )


def _correct(
    engine: Engine,
    params: Params,
    base: Judged,
    chosen: list[Anchor],
    key: jax.Array,
    cfg: Config,
    library: Library,
) -> Corrections:
    prompted, attempts, answers = [], [], []
    is_retokenized: list[bool | None] = []
    samples = cfg.sampling.samples_per_prompt
    for anchor in chosen:
        if isinstance(anchor.source, Sampled):
            q, g = anchor.source.prompt, anchor.source.sample
            problem, attempt = base.prompted[q].problem, base.text[q][g]
            answers.append(base.verdicts[q][g].detail.get("answer"))
            is_retokenized.append(engine.renderer.is_retokenized(base.completion_ids(q, g)))
        else:
            problem, attempt = library.problems[anchor.source.problem_id], anchor.source.text
            answers.append(None)
            is_retokenized.append(None)
        if cfg.correction.context == "foreign":
            attempt, answers[-1] = _foreign_attempt(base, problem, anchor, cfg)
            is_retokenized[-1] = None
        attempts.append(attempt)
        verdict = anchor.is_right if cfg.correction.context == "labelled" else None
        prompted.append(
            Prompted(
                problem=problem,
                token_ids=engine.renderer.correction(problem, attempt, verdict=verdict),
                key_id=anchor.sampling_key_id(samples),
            )
        )
    judged = roll_out(
        engine,
        params,
        prompted,
        key,
        shape=correction_shape(cfg),
        temperature=cfg.sampling.temperature,
    )
    return Corrections(
        anchors=tuple(chosen),
        attempts=tuple(attempts),
        is_retokenized=tuple(is_retokenized),
        answers=tuple(answers),
        judged=judged,
    )


def _foreign_attempt(
    base: Judged, problem: Problem, anchor: Anchor, cfg: Config
) -> tuple[str, str | None]:
    """An attempt of this step at another problem, and its answer: one with the anchor's verdict
    where there is any, drawn by the anchor's identity."""
    others = [
        (q, g)
        for q in sorted(range(len(base.prompted)), key=lambda q: base.prompted[q].problem.id)
        if base.prompted[q].problem.id != problem.id
        for g in range(base.is_right_QG.shape[1])
    ]
    like = [at for at in others if base.is_valid_QG[at] and base.is_right_QG[at] == anchor.is_right]
    identity = anchor.sampling_key_id(cfg.sampling.samples_per_prompt)
    q, g = random.Random(f"{cfg.seed}:{identity}").choice(like or others)
    return base.text[q][g], base.verdicts[q][g].detail.get("answer")


def _next_state(
    state: HostState, base: Judged, corrections: Corrections | None, step: int, cfg: Config
) -> HostState:
    retention, num_samples = None, 0
    if corrections is not None:
        counted = corrections.judged.is_valid_QG & corrections.is_right_M[:, None]
        num_samples = int(counted.sum())
        if num_samples:
            retention = float(corrections.judged.reward_QG[counted].mean())
    buffer = state.buffer
    if cfg.correction.anchor_source == "buffer":
        buffer = buffer.add(
            _right_attempts(base, step, cfg), step=step, max_age=cfg.correction.buffer_max_age
        )
    return HostState(
        controller=controller.update(
            state.controller, retention, num_samples, cfg.correction.controller
        ),
        buffer=buffer,
    )


def _right_attempts(base: Judged, step: int, cfg: Config) -> list[BufferedAttempt]:
    """One right attempt of each prompt, for the buffer."""
    right = anchors_.one_right_per_prompt(
        np.array([p.key_id for p in base.prompted]),
        base.is_right_QG,
        base.is_valid_QG,
        base.rollouts.is_finished_QG,
        drop_truncated=cfg.correction.drop_truncated_anchors,
        rng=np.random.default_rng([cfg.seed, step, len(Stream)]),
    )
    attempts = []
    for anchor in right:
        assert isinstance(anchor.source, Sampled)
        problem_id = base.prompted[anchor.source.prompt].problem.id
        attempts.append(
            BufferedAttempt(
                problem_id=problem_id,
                key_id=anchor.key_id,
                text=base.text[anchor.source.prompt][anchor.source.sample],
                step=step,
                num_right=anchor.num_right,
                num_valid=anchor.num_valid,
            )
        )
    return attempts
