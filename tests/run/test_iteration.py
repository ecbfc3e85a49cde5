"""Both streams on a tiny random model with real verifiers, and what a step reports of them.

The model emits random bytes: now and then a completion ends in the digit that is asked for, which
is all the success that these tests need.
"""

import zlib
from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest

from cipo_jax.config import (
    Config,
    Correction,
    GeneratedTask,
    RandomModel,
    Sampling,
    Train,
)
from cipo_jax.records import Stream
from cipo_jax.rollout.judged import Prompted, Shape, roll_out
from cipo_jax.run import iteration, rollout_rows
from cipo_jax.run.iteration import HostState, Iteration, Library, iterate
from cipo_jax.tasks.problem import Problem
from cipo_jax.text.tokenizer import byte_tokenizer
from cipo_jax.verify.judge import InlineJudge
from cipo_jax.verify.verdict import NumberReference, Status, Verdict, unknown
from tests.run.one_step import PROMPTS, Batches, figures

CFG = Config(
    name="test",
    model=RandomModel(),
    tasks=GeneratedTask(),
    prompts=PROMPTS,
    sampling=Sampling(samples_per_prompt=8, max_new_tokens=48),
    correction=Correction(drop_truncated_anchors=False),
    train=Train(row_tokens=512, compute_dtype="float32"),
)  # fmt: skip


def problem(digit: int) -> Problem:
    return Problem(
        id=f"digit-{digit}",
        question=f"Say {digit}.",
        answer_format="",
        reference=NumberReference(answer=str(digit)),
    )


PROBLEMS = [problem(digit) for digit in range(8)]


def run(engine, policy, problems=PROBLEMS, cfg=CFG, step=1, state=None) -> Iteration:
    state = state or HostState.initial(cfg)
    library = Library.of(PROBLEMS)
    return iterate(engine, policy[0], Batches(problems), state, step, cfg=cfg, library=library)


@pytest.fixture(scope="module")
def found(engine, policy) -> Iteration:
    return run(engine, policy)


def samples_by_problem(it: Iteration) -> dict[str, list[list[int]]]:
    judged = it.base
    return {
        p.problem.id: [judged.completion_ids(q, g) for g in range(8)]
        for q, p in enumerate(judged.prompted)
    }


def corrections_by_anchor(it: Iteration) -> dict[tuple[str, str], list[list[int]]]:
    c = it.corrections
    return {
        (p.problem.id, c.shown[m].text): [c.judged.completion_ids(m, g) for g in range(8)]
        for m, p in enumerate(c.judged.prompted)
    }


def test_permuting_the_problems_only_permutes_the_results(found, engine, policy) -> None:
    assert found.base.is_right_QG.any(), "the test needs a success"
    permuted = run(engine, policy, [PROBLEMS[i] for i in (3, 0, 7, 5, 1, 2, 6, 4)])
    assert samples_by_problem(permuted) == samples_by_problem(found)
    assert corrections_by_anchor(permuted) == corrections_by_anchor(found)
    # The control: another step draws other numbers.
    assert samples_by_problem(run(engine, policy, step=2)) != samples_by_problem(found)


def test_the_base_stream_does_not_notice_the_correction_stream(found, engine, policy) -> None:
    plain_cfg = replace(CFG, correction=Correction(prompts_per_base_prompt=0))
    plain = run(engine, policy, cfg=plain_cfg)
    assert plain.corrections is None
    assert samples_by_problem(plain) == samples_by_problem(found)
    np.testing.assert_array_equal(plain.credit.base.advantage, found.credit.base.advantage)
    unweighted_cfg = replace(CFG, correction=Correction(weight=0, drop_truncated_anchors=False))
    unweighted = run(engine, policy, cfg=unweighted_cfg)
    assert unweighted.corrections is not None
    for ours, theirs in zip(
        jax.tree.leaves(plain.credit.batch), jax.tree.leaves(unweighted.credit.batch), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # The control: with a weight, corrections are in the rows.
    assert (found.credit.batch.stream_BT == Stream.CORRECTION).any()
    assert not (plain.credit.batch.stream_BT == Stream.CORRECTION).any()


def test_key_ids_are_distinct_and_do_not_depend_on_the_order() -> None:
    """A hundred thousand hashes below 2^22 meet each other about 1,200 times."""
    many = [replace(PROBLEMS[0], id=f"problem-{i}") for i in range(100_000)]
    ids = Library.of(many).key_ids
    assert len(set(ids.values())) == len(many)
    assert max(ids.values()) < iteration.NUM_KEY_IDS
    assert Library.of(many[::-1]).key_ids == ids
    hashed = {zlib.crc32(p.id.encode()) % iteration.NUM_KEY_IDS for p in many}
    assert len(hashed) < len(many), "the test needs collisions"


def test_state_survives_json(found) -> None:
    import json

    again = HostState.from_json(json.loads(json.dumps(found.state.to_json())))
    assert again == found.state


def test_buffered_attempts_come_back_as_right_anchors(engine, policy) -> None:
    cfg = replace(CFG, correction=Correction(anchor_source="buffer", drop_truncated_anchors=False))
    first = run(engine, policy, cfg=cfg)
    assert first.base.is_right_QG.any()
    assert not first.corrections.is_right_M.any(), "the buffer is still empty"
    held = first.state.buffer.attempts
    assert {a.problem_id for a in held} == {
        p.problem.id for q, p in enumerate(first.base.prompted) if first.base.is_right_QG[q].any()
    }
    second = run(engine, policy, cfg=cfg, step=2, state=first.state)
    right = [shown.text for shown in second.corrections.shown if shown.anchor.is_right]
    assert right
    assert set(right) <= {a.text for a in held}


def test_attempts_leave_the_buffer_at_their_age(engine, policy) -> None:
    def steps_held(**settings) -> set[int]:
        correction = Correction(anchor_source="buffer", drop_truncated_anchors=False, **settings)
        cfg = replace(CFG, correction=correction)
        first = run(engine, policy, cfg=cfg)
        second = run(engine, policy, PROBLEMS[4:], cfg=cfg, step=2, state=first.state)
        return {attempt.step for attempt in second.state.buffer.attempts}

    # Half of the problems come again, so those of the others are still of the first step.
    assert 1 in steps_held()
    assert 1 not in steps_held(buffer_max_age=1)


@pytest.mark.slow
def test_the_samples_of_a_prompt_do_not_depend_on_the_wave(engine, policy) -> None:
    prompted = [
        Prompted(problem=p, token_ids=engine.renderer.base(p), key_id=i)
        for i, p in enumerate(PROBLEMS[:5])
    ]

    def sampled(num_prompts: int) -> np.ndarray:
        shape = Shape(num_prompts=num_prompts, num_samples=4, prompt_tokens=64, new_tokens=48)
        key = jax.random.key(1)
        judged = roll_out(engine, policy[0], prompted, key, shape=shape, temperature=1.0)
        assert judged.rollouts.token_QGC.shape == (5, 4, 48)
        return judged.rollouts.token_QGC

    whole = sampled(5)
    np.testing.assert_array_equal(sampled(2), whole)  # waves of 2, 2 and 1
    np.testing.assert_array_equal(sampled(8), whole)  # three empty places


def with_unknown(it: Iteration, where: list[tuple[int, int]]) -> Iteration:
    """The iteration as if the verifier had failed on some base samples."""
    unknown = Verdict(status=Status.UNKNOWN, reward=float("nan"), reason="infra", seconds=0.0)
    verdicts = [list(row) for row in it.base.verdicts]
    for q, g in where:
        verdicts[q][g] = unknown
    return replace(it, base=replace(it.base, verdicts=verdicts))


def test_unknown_verdicts_are_counted_and_not_averaged(found) -> None:
    right = [tuple(i) for i in np.argwhere(found.base.is_right_QG).tolist()]
    masked = figures(with_unknown(found, right), CFG)
    assert masked["reward/base"] == 0.0
    total = found.base.is_valid_QG.size + found.corrections.judged.is_valid_QG.size
    assert masked["verdict/unknown_share"] == pytest.approx(len(right) / total)
    everything = [(q, g) for q in range(8) for g in range(8)]
    assert figures(with_unknown(found, everything), CFG)["reward/base"] is None


def test_metrics_by_hand(found) -> None:
    m = figures(found, CFG)
    c = found.corrections
    right = np.array([[v.status is Status.RIGHT for v in row] for row in c.judged.verdicts])
    wrong_anchors = [i for i, a in enumerate(c.anchors) if not a.is_right]
    right_anchors = [i for i, a in enumerate(c.anchors) if a.is_right]
    assert right_anchors, "the guard takes one while there is one"
    assert m["correction/fix_rate"] == pytest.approx(right[wrong_anchors].mean())
    assert m["correction/retention"] == pytest.approx(right[right_anchors].mean())
    assert m["correction/break_rate"] == pytest.approx(1 - right[right_anchors].mean())
    assert m["anchors/ratio_realised"] == pytest.approx(len(right_anchors) / len(c.anchors))
    assert m["anchors/ratio_target"] == 0.3
    assert m["length/base_mean"] == found.base.num_tokens / 64


class Unreachable(InlineJudge):
    """What a pool gives when the service behind it is gone."""

    def submit(self, completion, reference):
        future = Future()
        future.set_result(unknown("infra", error="connection refused"))
        return future


def test_no_verdict_at_all_is_an_error(engine, policy) -> None:
    broken = replace(engine, judge=Unreachable())
    with pytest.raises(iteration.NoValidSamplesError, match=r"64 samples \(reasons: infra\)"):
        run(broken, policy, PROBLEMS)


def test_every_sample_becomes_a_row_of_the_rollout_file(found) -> None:
    decode = byte_tokenizer().decode
    rows = rollout_rows.rollout_rows(found, 1, decode)
    num_corrections = found.corrections.judged.is_valid_QG.size
    assert len(rows) == 64 + num_corrections
    assert sum(r.stream == "base" for r in rows) == 64
    first = rows[0]
    assert first.token_ids == found.base.completion_ids(0, 0)
    assert len(first.logprobs) == len(first.token_ids)
    assert "<|im_start|>" in first.prompt
    correction = rows[-1]
    assert correction.anchor == found.corrections.shown[-1].text
    assert correction.prompt_ids == found.corrections.judged.prompted[-1].token_ids
    assert correction.prompt == decode(correction.prompt_ids)


# --- what a correction prompt shows, for comparisons --------------------------------------------


def with_context(context: str) -> Config:
    return replace(CFG, correction=replace(CFG.correction, context=context))


def prompts(it: Iteration) -> list[str]:
    tokenizer = byte_tokenizer()
    return [tokenizer.decode(p.token_ids) for p in it.corrections.judged.prompted]


def test_a_labelled_prompt_says_what_the_verifier_said(found, engine, policy) -> None:
    labelled = run(engine, policy, cfg=with_context("labelled"))
    assert labelled.corrections.shown == found.corrections.shown
    is_right_M = labelled.corrections.is_right_M
    assert is_right_M.any()
    assert not is_right_M.all()
    for text, is_right in zip(prompts(labelled), is_right_M, strict=True):
        assert ("has been checked, and it is right" in text) == is_right
        assert ("has been checked, and it is wrong" in text) == (not is_right)
    # The control: the method itself shows no verdict.
    assert not any("has been checked" in text for text in prompts(found))


def test_a_foreign_attempt_is_one_at_another_problem(found, engine, policy) -> None:
    foreign = run(engine, policy, cfg=with_context("foreign"))
    assert foreign.corrections.anchors == found.corrections.anchors
    own = {p.problem.id: set(found.base.text[q]) for q, p in enumerate(found.base.prompted)}
    verdict = {
        found.base.text[q][g]: bool(found.base.is_right_QG[q, g])
        for q in range(len(PROBLEMS))
        for g in range(8)
    }
    for attempt in foreign.corrections.shown:
        assert attempt.text not in own[attempt.problem.id]
        assert verdict[attempt.text] == attempt.anchor.is_right
    # The control: otherwise every attempt is the problem's own.
    for attempt in found.corrections.shown:
        assert attempt.text in own[attempt.problem.id]


def test_a_foreign_attempt_needs_another_problem() -> None:
    with pytest.raises(ValueError, match="prompts_per_step must be at least 2"):
        replace(with_context("foreign"), train=replace(CFG.train, prompts_per_step=1))
