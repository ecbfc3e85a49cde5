"""The passes of an evaluation: problems in, judged samples out.

solve:       greedy completions; n samples; corrections of samples
criticise:   a greedy critique of each response; its correction in the light of that critique
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import jax

from cipo_jax.evaluate.figures import StreamName
from cipo_jax.evaluate.samples import SampleRow, rows_of
from cipo_jax.model.transformer import Params
from cipo_jax.rollout.judged import Engine, Judged, Prompted, Shape, roll_out
from cipo_jax.tasks.benchmarks import Item, criticbench
from cipo_jax.tasks.problem import Problem
from cipo_jax.verify.judge import Judge
from cipo_jax.verify.verdict import Reference, Verdict

FIRST_KEY_ID = 1 << 30
"""Key ids of an evaluation's prompts start here, apart from those of training prompts."""

OnProgress = Callable[[StreamName, int, int], None]
"""(stream, prompts done, prompts in all), before the first wave and after each."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Samples and judges the prompts of one stream after another, with the same model."""

    engine: Engine
    params: Params
    keys: Mapping[StreamName, jax.Array]
    """The random key of each stream."""
    shape: Callable[[StreamName, Sequence[Prompted]], Shape]
    """The shape of the calls that sample these prompts."""
    on_progress: OnProgress = lambda stream, done, total: None

    def __call__(
        self,
        stream: StreamName,
        prompted: Sequence[Prompted],
        *,
        temperature: float,
        judge: Judge | None = None,
    ) -> Judged:
        """The completions of one stream, judged; by the engine's judge where none is given."""
        done = 0

        def on_wave(prompts: int) -> None:
            nonlocal done
            done += prompts
            self.on_progress(stream, done, len(prompted))

        self.on_progress(stream, 0, len(prompted))
        return roll_out(
            dataclasses.replace(self.engine, judge=judge) if judge else self.engine,
            self.params,
            prompted,
            self.keys[stream],
            shape=self.shape(stream, prompted),
            temperature=temperature,
            on_wave=on_wave,
        )


def solve(
    sampler: Sampler,
    items: Sequence[Item],
    *,
    has_greedy: bool,
    has_samples: bool,
    num_corrected: int,
    temperature: float,
) -> list[SampleRow]:
    """One greedy completion of each problem, its samples, and corrections of them, right or wrong
    as they come.

    Args:
      num_corrected: so many of each problem's samples are corrected, the first ones; how often
        each is, says the sampler's shape.
      temperature: of samples and corrections.
    Raises: ValueError if a prompt is too long, naming the problem and the way out.
    """
    renderer = sampler.engine.renderer
    by_id = {item.problem.id: item for item in items}
    asked = _prompted(sampler, [item.problem for item in items])
    rows: list[SampleRow] = []
    if has_greedy:
        rows += rows_of(sampler("greedy", asked, temperature=0.0), "greedy", by_id)
    if not has_samples:
        return rows
    sampled = sampler("sampled", asked, temperature=temperature)
    rows += rows_of(sampled, "sampled", by_id)
    if num_corrected:
        attempts = [(q, g) for q in range(len(items)) for g in range(num_corrected)]
        again = [
            Prompted(
                problem=items[q].problem,
                token_ids=renderer.correction(items[q].problem, sampled.text[q][g]),
                key_id=FIRST_KEY_ID + number,
            )
            for number, (q, g) in enumerate(attempts)
        ]
        corrected = sampler("corrected", again, temperature=temperature)
        rows += rows_of(corrected, "corrected", by_id, attempts=[g for _, g in attempts])
    return rows


def criticise(sampler: Sampler, items: Sequence[Item]) -> list[SampleRow]:
    """A greedy critique of each item's response, and a greedy correction with it shown.

    Raises: as `solve`.
    """
    by_id = {item.problem.id: item for item in items}
    judge = sampler.engine.judge
    critiques = sampler(
        "critique",
        _prompted(sampler, [criticbench.critique(item) for item in items]),
        temperature=0.0,
        judge=ExtractingJudge(judge, criticbench.verdict_text),
    )
    problems = [
        criticbench.correction(item, written)
        for item, (written,) in zip(items, critiques.text, strict=True)
    ]
    corrections = sampler(
        "critique_corrected",
        _prompted(sampler, problems),
        temperature=0.0,
        judge=ExtractingJudge(judge, criticbench.answer_text),
    )
    return [
        *rows_of(critiques, "critique", by_id),
        *rows_of(corrections, "critique_corrected", by_id),
    ]


def _prompted(sampler: Sampler, problems: Sequence[Problem]) -> list[Prompted]:
    render = sampler.engine.renderer.base
    return [
        Prompted(problem=problem, token_ids=render(problem), key_id=FIRST_KEY_ID + q)
        for q, problem in enumerate(problems)
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
