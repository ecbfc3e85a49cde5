"""The samples of an iteration as rows of the rollout files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cipo_jax.method.advantages import of_sequences
from cipo_jax.records import Stream
from cipo_jax.rollout.judged import Judged
from cipo_jax.run.credit import StreamCredit
from cipo_jax.run.iteration import Iteration, Shown
from cipo_jax.run.log import RolloutRow
from cipo_jax.verify import wire


def rollout_rows(
    iteration: Iteration, step: int, decode: Callable[[list[int]], str]
) -> list[RolloutRow]:
    """Every sample of both streams.

    Args:
      step: counted from 1, as in the log.
      decode: token ids to text, special tokens shown.
    """
    rows = list(_rows(iteration.base, Stream.BASE, iteration.credit.base, None, step, decode))
    corrections = iteration.corrections
    if corrections is not None:
        assert iteration.credit.correction is not None
        rows += _rows(
            corrections.judged,
            Stream.CORRECTION,
            iteration.credit.correction,
            corrections.shown,
            step,
            decode,
        )
    return rows


def _rows(
    judged: Judged,
    stream: Stream,
    credit: StreamCredit,
    shown: Sequence[Shown] | None,
    step: int,
    decode: Callable[[list[int]], str],
) -> Iterator[RolloutRow]:
    advantage_QG = of_sequences(credit.advantage, judged.length_QG)
    for q, prompted in enumerate(judged.prompted):
        prompt = decode(prompted.token_ids)
        for g, verdict in enumerate(judged.verdicts[q]):
            yield RolloutRow(
                step=step,
                stream=stream.name.lower(),
                problem_id=prompted.problem.id,
                group=q,
                sample=g,
                prompt=prompt,
                completion=judged.text[q][g],
                prompt_ids=prompted.token_ids,
                token_ids=judged.completion_ids(q, g),
                logprobs=judged.completion_logprobs(q, g).tolist(),
                is_finished=bool(judged.rollouts.is_finished_QG[q, g]),
                anchor=None if shown is None else shown[q].text,
                is_anchor_right=None if shown is None else shown[q].anchor.is_right,
                reference=wire.encode_reference(prompted.problem.reference),
                status=verdict.status.value,
                reason=verdict.reason,
                answer=verdict.detail.get("answer"),
                reward=verdict.reward,
                advantage=float(advantage_QG[q, g]),
            )
