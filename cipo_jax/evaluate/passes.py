"""The passes over one benchmark: problems in, judged samples out.

solve:       greedy completions; n samples; one correction of each sample
criticise:   a greedy critique of each response; its correction in the light of that critique
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import jax

from cipo_jax.config import Benchmarking
from cipo_jax.evaluate.heldout import FIRST_KEY_ID
from cipo_jax.evaluate.samples import SampleRow, rows_of
from cipo_jax.model.transformer import Params
from cipo_jax.rollout.judged import Engine, Judged, Prompted, Shape, roll_out
from cipo_jax.tasks.benchmarks import Benchmark, Item, criticbench
from cipo_jax.tasks.problem import Problem
from cipo_jax.verify.judge import Judge
from cipo_jax.verify.verdict import Reference, Verdict

Progress = Callable[[str, int, int], None]
"""(stream, prompts done, prompts in all), after each wave."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What all passes over a benchmark have in common."""

    engine: Engine
    params: Params
    settings: Benchmarking
    progress: Progress

    def __call__(
        self,
        stream: str,
        prompted: Sequence[Prompted],
        *,
        samples: int,
        temperature: float,
        judge: Judge | None = None,
    ) -> Judged:
        done = 0

        def on_wave(prompts: int) -> None:
            nonlocal done
            done += prompts
            self.progress(stream, done, len(prompted))

        self.progress(stream, 0, len(prompted))
        room = self.engine.arch.max_position - self.settings.max_new_tokens
        engine = dataclasses.replace(self.engine, judge=judge) if judge else self.engine
        key = jax.random.fold_in(jax.random.key(self.settings.seed), _KEYS[stream])
        return roll_out(
            engine,
            self.params,
            prompted,
            key,
            shape=Shape(
                num_prompts=max(1, min(self.settings.sequences_per_call // samples, len(prompted))),
                num_samples=samples,
                prompt_tokens=min(bucket(max(len(p.token_ids) for p in prompted)), room),
                new_tokens=self.settings.max_new_tokens,
            ),
            temperature=temperature,
            on_wave=on_wave,
        )


_KEYS = {"greedy": 0, "sampled": 1, "corrected": 2, "critique": 3, "critique_corrected": 4}


def bucket(length: int) -> int:
    """The padded length of a batch of prompts: at most a quarter is padding, and few lengths, each
    of which is one compiled program, serve all benchmarks.

    The least multiple of a quarter of the power of two below `length`, from 256 on.
    """
    if length <= 256:
        return 256
    step = 1 << (length.bit_length() - 3)
    return -(-length // step) * step


def num_samples(benchmark: Benchmark, settings: Benchmarking) -> int:
    """n, the samples of each problem."""
    return benchmark.samples if settings.samples == "usual" else settings.samples


def run(
    benchmark: Benchmark,
    items: Sequence[Item],
    engine: Engine,
    params: Params,
    settings: Benchmarking,
    progress: Progress,
) -> list[SampleRow]:
    """All samples of one benchmark, judged.

    Raises: ValueError if a prompt does not fit the model, naming the problem and the way out.
    """
    sampler = Pass(engine=engine, params=params, settings=settings, progress=progress)
    if benchmark.area == "critique":
        return _criticise(sampler, items)
    return _solve(sampler, items, num_samples(benchmark, settings))


def _solve(sampler: Pass, items: Sequence[Item], samples: int) -> list[SampleRow]:
    settings, renderer = sampler.settings, sampler.engine.renderer
    tags = {item.problem.id: item.tags for item in items}
    asked = [
        Prompted(problem=i.problem, token_ids=renderer.base(i.problem), key_id=FIRST_KEY_ID + q)
        for q, i in enumerate(items)
    ]
    rows: list[SampleRow] = []
    if settings.greedy:
        greedy = sampler("greedy", asked, samples=1, temperature=0.0)
        rows += rows_of(greedy, "greedy", tags)
    if not samples:
        return rows
    sampled = sampler("sampled", asked, samples=samples, temperature=settings.temperature)
    rows += rows_of(sampled, "sampled", tags)
    if settings.corrections:
        attempts = [(q, g) for q in range(len(items)) for g in range(samples)]
        again = [
            Prompted(
                problem=items[q].problem,
                token_ids=renderer.correction(items[q].problem, sampled.text[q][g]),
                key_id=FIRST_KEY_ID + q * samples + g,
            )
            for q, g in attempts
        ]
        corrected = sampler("corrected", again, samples=1, temperature=settings.temperature)
        rows += rows_of(corrected, "corrected", tags, first_sample=[g for _, g in attempts])
    return rows


def _criticise(sampler: Pass, items: Sequence[Item]) -> list[SampleRow]:
    tags = {item.problem.id: item.tags for item in items}
    responses = {i.problem.id: i.response.is_right for i in items if i.response is not None}

    def prompted(problems: Sequence[Problem]) -> list[Prompted]:
        return [
            Prompted(
                problem=p,
                token_ids=sampler.engine.renderer.base(p),
                key_id=FIRST_KEY_ID + q,
            )
            for q, p in enumerate(problems)
        ]

    critiques = sampler(
        "critique",
        prompted([criticbench.critique(item) for item in items]),
        samples=1,
        temperature=0.0,
        judge=ExtractingJudge(sampler.engine.judge, criticbench.verdict_text),
    )
    written = [texts[0] for texts in critiques.text]
    corrections = sampler(
        "critique_corrected",
        prompted([criticbench.correction(i, w) for i, w in zip(items, written, strict=True)]),
        samples=1,
        temperature=0.0,
        judge=ExtractingJudge(sampler.engine.judge, criticbench.answer_text),
    )
    return [
        *rows_of(critiques, "critique", tags, responses=responses),
        *rows_of(corrections, "critique_corrected", tags, responses=responses),
    ]


class ExtractingJudge:
    """Judges what `extract` takes out of a completion, instead of all of it."""

    def __init__(self, judge: Judge, extract: Callable[[str], str]) -> None:
        self._judge = judge
        self._extract = extract

    @property
    def report(self) -> object:
        return self._judge.report

    @property
    def is_sandboxed(self) -> bool | None:
        return self._judge.is_sandboxed

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        return self._judge.submit(self._extract(completion), reference)

    def close(self) -> None:
        """The judge belongs to whoever opened it."""
