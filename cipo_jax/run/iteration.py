"""One iteration of the method, from problems to a mixed batch: both streams, in order.

    problems -> rollouts -> verdicts -> anchors -> correction rollouts -> verdicts -> mixed batch

The train step comes after and is not known here. Nothing is kept between iterations but
`HostState`, which is JSON and goes into the checkpoint.

Every random draw of a step is a function of the seed, the step, the stream and the identity of what
it is drawn for, so that a resumed run repeats the unbroken one.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from cipo_jax.config import Config
from cipo_jax.method import anchors as anchors_
from cipo_jax.method import controller
from cipo_jax.method.anchors import Anchor, Sampled
from cipo_jax.method.buffer import AttemptBuffer, BufferedAttempt
from cipo_jax.method.controller import ControllerState
from cipo_jax.model.transformer import Params
from cipo_jax.records import Stream
from cipo_jax.rollout.judged import Engine, Judged, Prompted, Shape, concatenated, roll_out
from cipo_jax.run.credit import Credit, ScoreReference, credit, num_mixed
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


class Problems(Protocol):
    """Batches of problems by number; `ProblemStream` is one."""

    def __getitem__(self, index: int, /) -> Sequence[Problem]: ...


@dataclass(frozen=True, kw_only=True)
class HostState:
    """What the method carries from one iteration to the next."""

    cursor: int
    """Batches of problems that were taken so far."""
    controller: ControllerState
    buffer: AttemptBuffer

    @classmethod
    def initial(cls, cfg: Config) -> HostState:
        return cls(
            cursor=0,
            controller=controller.initial(cfg.correction.controller),
            buffer=AttemptBuffer(),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "cursor": self.cursor,
            "controller": self.controller.to_json(),
            "buffer": self.buffer.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> HostState:
        return cls(
            cursor=record["cursor"],
            controller=ControllerState.from_json(record["controller"]),
            buffer=AttemptBuffer.from_json(record["buffer"]),
        )


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An attempt as the policy is shown it."""

    anchor: Anchor
    problem: Problem
    text: str
    answer: str | None
    """What the verifier read as its answer; None where it found or kept none."""
    is_retokenized: bool | None
    """Whether it is read again in other tokens than it was sampled in; None for attempts that are
    kept as text."""


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """The correction stream of one iteration: the attempts, and what became of them."""

    shown: tuple[Shown, ...]
    judged: Judged

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return tuple(shown.anchor for shown in self.shown)

    @property
    def is_right_M(self) -> np.ndarray:
        """Whether the attempt that was corrected was right."""
        return np.array([anchor.is_right for anchor in self.anchors], dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """All that one iteration found, for the train step and for the log."""

    base: Judged
    """All rounds of sampling, with the groups that are left out of the batch."""
    num_rounds: int
    corrections: Corrections | None
    """None when there are no anchors: none asked for, or no attempt qualified."""
    credit: Credit
    """The advantages of both streams, and the batch that trains on them."""
    ratio: float
    """Share of right anchors that was asked for."""
    state: HostState
    """For the next iteration."""


def base_shape(cfg: Config) -> Shape:
    """How the sampler is called for the base stream."""
    return Shape(
        num_prompts=min(cfg.sampling.prompts_per_call, cfg.train.prompts_per_step),
        num_samples=cfg.sampling.samples_per_prompt,
        prompt_tokens=cfg.prompts.max_prompt_tokens,
        new_tokens=cfg.sampling.max_new_tokens,
    )


def correction_shape(cfg: Config) -> Shape:
    """How the sampler is called for the correction stream; without prompts where there is none."""
    return Shape(
        num_prompts=min(cfg.sampling.prompts_per_call, cfg.num_anchors),
        num_samples=cfg.sampling.samples_per_prompt,
        prompt_tokens=cfg.prompts.max_correction_prompt_tokens,
        new_tokens=cfg.sampling.max_new_tokens,
    )


class NoValidSamplesError(RuntimeError):
    """Every verdict of a step is unknown: the verifier is broken, and there is nothing to learn."""


class Draws:
    """The random draws of one step.

    Args:
      step: counted from 1; the draws of a run are numbered from 0.
    """

    def __init__(self, seed: int, step: int) -> None:
        self._words = (seed, step - 1)

    def sampling_key(self, stream: Stream) -> jax.Array:
        """For the completions of a stream."""
        seed, step = self._words
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stream)

    def anchors(self) -> np.random.Generator:
        """For the choice of anchors."""
        return np.random.default_rng([*self._words, Stream.CORRECTION])

    def buffered(self) -> np.random.Generator:
        """For the choice of attempts that the buffer keeps."""
        return np.random.default_rng([*self._words, len(Stream)])


def iterate(
    engine: Engine,
    params: Params,
    problems: Problems,
    state: HostState,
    step: int,
    *,
    cfg: Config,
    library: Library,
    score_reference: ScoreReference | None = None,
) -> Iteration:
    """Sample and judge both streams with the current policy, and lay them into one batch.

    Args:
      problems: the base prompts of each round of sampling; one is taken, or more with dynamic
        sampling, from `state.cursor` on.
      step: counted from 1.
      library: all training problems.
      score_reference: needed where a KL penalty is taken from the reward.
    Raises: NoValidSamplesError if every verdict of the base stream is unknown.
    """
    draws = Draws(cfg.seed, step)
    base, num_rounds = _sample_base(engine, params, problems, state.cursor, draws, cfg, library)
    if not base.is_valid_QG.any():
        reasons = sorted({v.reason for row in base.verdicts for v in row})
        raise NoValidSamplesError(
            f"step {step}: the verifier gave no verdict on any of {base.is_valid_QG.size} "
            f"samples (reasons: {', '.join(reasons)}). Nothing was trained on. See what the "
            "verifier reported at start; verify.deadline_s or verify.workers may be too small for "
            "this task, or the references unreadable."
        )
    # From all groups that were sampled, also those that are left out of the base loss.
    chosen = _choose_anchors(base, state, draws, cfg) if cfg.has_correction else []
    corrections = None
    if chosen:
        shown = [_shown(anchor, engine, base, cfg, library) for anchor in chosen]
        corrections = _correct(engine, params, shown, draws, cfg)
    return Iteration(
        base=base,
        num_rounds=num_rounds,
        corrections=corrections,
        credit=credit(
            base,
            None if corrections is None else corrections.judged,
            chosen,
            cfg=cfg,
            score_reference=score_reference,
        ),
        ratio=state.controller.ratio,
        state=_next_state(state, base, num_rounds, corrections, step, draws, cfg),
    )


def _sample_base(
    engine: Engine,
    params: Params,
    problems: Problems,
    cursor: int,
    draws: Draws,
    cfg: Config,
    library: Library,
) -> tuple[Judged, int]:
    """Rollouts of one round of problems; of further rounds while too few groups are mixed, up to
    the objective's limit. Returns them with the number of rounds that were drawn.

    A problem that comes again within the step is passed over: its samples would be the same.
    """
    key = draws.sampling_key(Stream.BASE)
    rounds: list[Judged] = []
    num_rounds = 0
    seen: set[str] = set()
    while num_rounds < cfg.objective.sampling_rounds:
        fresh = [p for p in problems[cursor + num_rounds] if p.id not in seen]
        num_rounds += 1
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


def _choose_anchors(base: Judged, state: HostState, draws: Draws, cfg: Config) -> list[Anchor]:
    return anchors_.select(
        np.array([p.key_id for p in base.prompted]),
        base.is_right_QG,
        base.is_valid_QG,
        np.asarray(base.rollouts.is_finished_QG),
        num_anchors=cfg.num_anchors,
        ratio=state.controller.ratio,
        correction=cfg.correction,
        rng=draws.anchors(),
        buffer=state.buffer,
    )


def _shown(anchor: Anchor, engine: Engine, base: Judged, cfg: Config, library: Library) -> Shown:
    """The attempt that a correction prompt quotes."""
    if not isinstance(anchor.source, Sampled):
        problem = library.problems[anchor.source.problem_id]
        text, answer, is_retokenized = anchor.source.text, None, None
    else:
        q, g = anchor.source.prompt, anchor.source.sample
        problem, text = base.prompted[q].problem, base.text[q][g]
        answer = base.verdicts[q][g].detail.get("answer")
        is_retokenized = engine.renderer.is_retokenized(base.completion_ids(q, g))
    if cfg.correction.context == "foreign":
        text, answer = _foreign_attempt(base, problem, anchor, cfg)
        is_retokenized = None
    return Shown(
        anchor=anchor, problem=problem, text=text, answer=answer, is_retokenized=is_retokenized
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


def _correct(
    engine: Engine, params: Params, shown: Sequence[Shown], draws: Draws, cfg: Config
) -> Corrections:
    """Corrections of the attempts, judged."""

    def tokens(s: Shown) -> list[int]:
        verdict = s.anchor.is_right if cfg.correction.context == "labelled" else None
        return engine.renderer.correction(s.problem, s.text, verdict=verdict)

    samples = cfg.sampling.samples_per_prompt
    judged = roll_out(
        engine,
        params,
        [
            Prompted(
                problem=s.problem, token_ids=tokens(s), key_id=s.anchor.sampling_key_id(samples)
            )
            for s in shown
        ],
        draws.sampling_key(Stream.CORRECTION),
        shape=correction_shape(cfg),
        temperature=cfg.sampling.temperature,
    )
    return Corrections(shown=tuple(shown), judged=judged)


def _next_state(
    state: HostState,
    base: Judged,
    num_rounds: int,
    corrections: Corrections | None,
    step: int,
    draws: Draws,
    cfg: Config,
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
            _right_attempts(base, step, draws, cfg),
            step=step,
            max_age=cfg.correction.buffer_max_age,
        )
    return HostState(
        cursor=state.cursor + num_rounds,
        controller=controller.update(
            state.controller, retention, num_samples, cfg.correction.controller
        ),
        buffer=buffer,
    )


def _right_attempts(base: Judged, step: int, draws: Draws, cfg: Config) -> list[BufferedAttempt]:
    """One right attempt of each prompt, for the buffer."""
    right = anchors_.one_right_per_prompt(
        np.array([p.key_id for p in base.prompted]),
        base.is_right_QG,
        base.is_valid_QG,
        np.asarray(base.rollouts.is_finished_QG),
        drop_truncated=cfg.correction.drop_truncated_anchors,
        rng=draws.buffered(),
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
