"""Prompts in, judged completions out: sampled on the devices, decoded and verified on the host.

Both streams and the evaluation go this way. It knows the sampler and the verifier, and nothing of
the method: neither which stream it serves, nor what the completions are for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int, PRNGKeyArray, Shaped

from cipo_jax.mesh import processes
from cipo_jax.mesh.sharding import ACTIVATION_RULES, distributed, num_row_shards
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.records import Array, Rollouts
from cipo_jax.rollout.padding import pad_prompts
from cipo_jax.rollout.sample import sample
from cipo_jax.tasks.problem import Problem
from cipo_jax.text.prompts import Renderer
from cipo_jax.verify import wire
from cipo_jax.verify.judge import Judge
from cipo_jax.verify.verdict import Status, Verdict


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Everything that a rollout needs apart from the weights and the prompts."""

    arch: Architecture
    mesh: Mesh
    eos_ids: tuple[int, ...]
    renderer: Renderer
    judge: Judge
    compute_dtype: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one call of the sampler; each shape has its own compiled programs."""

    num_prompts: int
    """Prompts at once; rounded up to a multiple of the pieces that the mesh splits rows into."""
    num_samples: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """A problem with the token sequence that asks for it, and the identity of its random keys."""

    problem: Problem
    token_ids: list[int]
    key_id: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Completions of Q prompts, G each, with their text and verdicts; arrays are on the host."""

    prompted: tuple[Prompted, ...]
    rollouts: Rollouts
    text: list[list[str]]
    verdicts: list[list[Verdict]]
    sample_s: float
    verify_s: float

    @property
    def is_valid_QG(self) -> Bool[np.ndarray, "Q G"]:
        """False where the verifier itself failed."""
        return ~self._has_status(Status.UNKNOWN)

    @property
    def is_right_QG(self) -> Bool[np.ndarray, "Q G"]:
        return self._has_status(Status.RIGHT)

    @property
    def reward_QG(self) -> Float32[np.ndarray, "Q G"]:
        """1 for right, 0 for wrong; 0 where not valid too, where it must not be used."""
        return self.is_right_QG.astype(np.float32)

    @property
    def num_tokens(self) -> int:
        return int(self.length_QG.sum())

    @property
    def length_QG(self) -> Int[np.ndarray, "Q G"]:
        """Sampled tokens of each completion."""
        length_QG: np.ndarray = np.asarray(self.rollouts.is_sampled_QGC).sum(axis=-1)
        return length_QG

    def take(self, which: Sequence[int]) -> Judged:
        """Some of the prompts, with all of their completions."""
        return replace(
            self,
            prompted=tuple(self.prompted[q] for q in which),
            rollouts=jax.tree.map(lambda x: x[np.asarray(which, int)], self.rollouts),
            text=[self.text[q] for q in which],
            verdicts=[self.verdicts[q] for q in which],
        )

    def completion_ids(self, q: int, g: int) -> list[int]:
        ids: list[int] = _completion(self.rollouts, self.rollouts.token_QGC, q, g).tolist()
        return ids

    def completion_logprobs(self, q: int, g: int) -> Float32[np.ndarray, " C"]:
        return _completion(self.rollouts, self.rollouts.logprob_QGC, q, g)

    def _has_status(self, status: Status) -> Bool[np.ndarray, "Q G"]:
        has = [[verdict.status is status for verdict in row] for row in self.verdicts]
        return np.array(has, bool).reshape(self.rollouts.is_finished_QG.shape)


def concatenated(parts: Sequence[Judged]) -> Judged:
    """Rollouts of one shape as one record; their seconds add up."""
    return Judged(
        prompted=tuple(p for part in parts for p in part.prompted),
        rollouts=_concatenated([part.rollouts for part in parts]),
        text=[row for part in parts for row in part.text],
        verdicts=[row for part in parts for row in part.verdicts],
        sample_s=sum(part.sample_s for part in parts),
        verify_s=sum(part.verify_s for part in parts),
    )


def roll_out(
    engine: Engine,
    params: Params,
    prompted: Sequence[Prompted],
    key: PRNGKeyArray,
    *,
    shape: Shape,
    temperature: float,
    on_wave: Callable[[int], None] | None = None,
) -> Judged:
    """Samples and judges `shape.num_samples` completions of each prompt.

    Any number of prompts is sampled in waves of `shape.num_prompts`; the verifiers work on one wave
    while the next is sampled. The samples of a prompt don't depend on its wave (see
    `Prompted.key_id`).

    With n processes, each decodes and judges every n-th prompt, and all return the same.

    Args:
      key: the random key of this step and stream.
      temperature: of the sampling law; 0 is greedy.
      on_wave: is called after each wave with the number of its prompts.
    Raises: ValueError if a prompt is longer than `shape.prompt_tokens`, or there is no prompt.
    """
    if not prompted:
        raise ValueError("There is no prompt to sample from.")
    shards = num_row_shards(engine.mesh)
    shape = replace(shape, num_prompts=shards * math.ceil(shape.num_prompts / shards))
    sample_s = 0.0
    waves: list[Rollouts] = []
    pending: dict[int, list[tuple[str, Future[Verdict]]]] = {}
    for first in range(0, len(prompted), shape.num_prompts):
        start = time.perf_counter()
        wave = prompted[first : first + shape.num_prompts]
        rollouts = _sample(engine, params, wave, key, shape, temperature)
        sample_s += time.perf_counter() - start
        for q, p in enumerate(wave):
            if processes.is_mine(first + q):
                pending[first + q] = [
                    _submit(engine, p.problem, _completion(rollouts, rollouts.token_QGC, q, g))
                    for g in range(shape.num_samples)
                ]
        waves.append(rollouts)
        if on_wave is not None:
            on_wave(len(wave))
    start = time.perf_counter()
    judged = _of_all_processes(
        {q: [(text, future.result()) for text, future in row] for q, row in pending.items()}
    )
    return Judged(
        prompted=tuple(prompted),
        rollouts=_concatenated(waves),
        text=[[text for text, _ in judged[q]] for q in range(len(prompted))],
        verdicts=[[verdict for _, verdict in judged[q]] for q in range(len(prompted))],
        sample_s=sample_s,
        verify_s=time.perf_counter() - start,
    )


def _sample(
    engine: Engine,
    params: Params,
    prompted: Sequence[Prompted],
    key: PRNGKeyArray,
    shape: Shape,
    temperature: float,
) -> Rollouts:
    """One call of the sampler, on the host. Missing prompts are rows of length 0."""
    batch = pad_prompts(
        [p.token_ids for p in prompted],
        [p.key_id for p in prompted],
        length=shape.prompt_tokens,
        num_prompts=shape.num_prompts,
    )
    with jax.set_mesh(engine.mesh):
        rollouts = sample(
            params,
            distributed(batch, engine.mesh, ACTIVATION_RULES),
            key,
            temperature,
            arch=engine.arch,
            samples_per_prompt=shape.num_samples,
            max_new_tokens=shape.new_tokens,
            eos_ids=engine.eos_ids,
            compute_dtype=engine.compute_dtype,
        )
    on_host: Rollouts = jax.tree.map(
        lambda x: np.asarray(x)[: len(prompted)], processes.whole(rollouts)
    )
    return on_host


def _submit(
    engine: Engine, problem: Problem, token_C: Shaped[np.ndarray, " C"]
) -> tuple[str, Future[Verdict]]:
    """A completion's text, and the verdict to come."""
    text = engine.renderer.attempt_text(token_C.tolist())
    return text, engine.judge.submit(text, problem.reference)


def _concatenated(parts: Sequence[Rollouts]) -> Rollouts:
    joined: Rollouts = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return joined


def _completion(rollouts: Rollouts, x_QGC: Array, q: int, g: int) -> Shaped[np.ndarray, " C"]:
    """The part of a per-token array that belongs to the sampled tokens of one completion."""
    is_sampled_C = np.asarray(rollouts.is_sampled_QGC)[q, g]
    x_C: np.ndarray = np.asarray(x_QGC)[q, g][is_sampled_C]
    return x_C


def _of_all_processes(
    mine: dict[int, list[tuple[str, Verdict]]],
) -> dict[int, list[tuple[str, Verdict]]]:
    """The text and the verdict of each sample by prompt, from all processes."""
    if processes.count() == 1:
        return mine
    records: Any = [
        [q, [[text, wire.encode_verdict(verdict)] for text, verdict in row]]
        for q, row in mine.items()
    ]
    return {
        q: [(text, wire.decode_verdict(verdict)) for text, verdict in row]
        for part in processes.gathered(records)
        for q, row in part
    }
