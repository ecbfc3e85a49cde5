"""What samples are credited with: dynamic sampling, length, divergence; and each objective end to
end, from sampling to an update that makes what it credits likelier.

The model and the problems are those of test_iteration.py: random bytes that now and then end in the
digit that is asked for.
"""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from cipo_jax import config
from cipo_jax.config import (
    Cispo,
    Config,
    Correction,
    Dapo,
    DrGrpo,
    GeneratedTask,
    Grpo,
    Gspo,
    Kl,
    MaskedSequence,
    MaskedToken,
    RandomModel,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
    Sampling,
    SequenceTis,
    TokenTis,
    Train,
    Uncorrected,
)
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.method.anchors import Sampled
from cipo_jax.method.mix import packing
from cipo_jax.model.files.load import load_model
from cipo_jax.records import Batch, Stream
from cipo_jax.run.credit import credit
from cipo_jax.run.iteration import HostState, Iteration, Library, iterate
from cipo_jax.tasks.problem import Problem
from cipo_jax.tasks.stream import ProblemStream
from cipo_jax.update.microbatch import row_logprobs
from cipo_jax.update.scorer import make_scorer
from cipo_jax.update.train_step import abstract_state, init_state, make_train_step
from cipo_jax.verify.verdict import NumberReference
from tests.run.one_step import PROMPTS, Batches, figures

pytestmark = pytest.mark.slow

NEW_TOKENS = 48
CFG = Config(
    name="test",
    model=RandomModel(),
    tasks=GeneratedTask(),
    prompts=PROMPTS,
    sampling=Sampling(samples_per_prompt=8, max_new_tokens=NEW_TOKENS),
    correction=Correction(drop_truncated_anchors=False),
    optimizer=config.AdamW(learning_rate=1e-2),
    train=Train(row_tokens=512, compute_dtype="float32", rows_per_microbatch=2, remat="none"),
    mesh=config.MeshShape(data=1, fsdp=1),
)  # fmt: skip
PROBLEMS = [
    Problem(
        id=f"digit-{digit}-{i}",
        question=f"Say {digit}" + "." * i,
        answer_format="",
        reference=NumberReference(answer=str(digit)),
    )
    for i in range(1, 14)
    for digit in range(8)
]
LIBRARY = Library.of(PROBLEMS)
MESH = make_mesh(CFG.mesh, jax.devices()[:1])


def stream_of(problems=PROBLEMS) -> ProblemStream:
    return ProblemStream(problems, CFG.train.prompts_per_step, seed=0)


def run(engine, policy, cfg, stream=None, *, step=1, state=None, score=None) -> Iteration:
    return iterate(
        engine,
        policy[0],
        stream_of() if stream is None else stream,
        HostState.initial(cfg) if state is None else state,
        step,
        cfg=cfg,
        library=LIBRARY,
        score_reference=score,
    )


def right_counts(it: Iteration) -> np.ndarray:
    return it.base.is_right_QG.sum(axis=1)


# --- dynamic sampling -------------------------------------------------------------------------


DYNAMIC = replace(CFG, objective=Dapo(max_sampling_rounds=13))


@pytest.fixture(scope="module")
def dynamic(engine, policy) -> Iteration:
    return run(engine, policy, DYNAMIC)


def test_further_prompts_are_sampled_until_enough_groups_are_mixed(dynamic) -> None:
    is_mixed = (right_counts(dynamic) > 0) & (right_counts(dynamic) < 8)
    wanted = CFG.train.prompts_per_step
    assert dynamic.num_rounds > 1, "the test needs equal groups"
    assert is_mixed.sum() >= wanted
    assert is_mixed[: -len(is_mixed) // dynamic.num_rounds].sum() < wanted, "a round too many"
    # The first that are mixed are kept, and nothing else is in the batch or in its denominators.
    kept = np.flatnonzero(dynamic.credit.base.is_kept_Q)
    np.testing.assert_array_equal(kept, np.flatnonzero(is_mixed)[:wanted])
    batch = dynamic.credit.batch
    is_base = batch.is_target_BT & (batch.stream_BT == Stream.BASE)
    assert is_base.sum() == dynamic.base.length_QG[kept].sum()
    np.testing.assert_allclose(batch.weight_BT[is_base], 1 / is_base.sum(), rtol=1e-6)
    assert not dynamic.credit.base.advantage[~dynamic.credit.base.is_kept_Q].any()
    metrics = figures(dynamic, DYNAMIC)
    assert metrics["sampling/rounds"] == dynamic.num_rounds
    assert metrics["sampling/groups"] == wanted
    assert metrics["sampling/dropped_share"] == pytest.approx(1 - is_mixed.mean())
    assert metrics["reward/base"] == pytest.approx(dynamic.base.is_right_QG.mean())


def test_anchors_come_from_all_groups_and_equal_corrections_are_left_out(dynamic) -> None:
    sources = [a.source for a in dynamic.corrections.anchors]
    assert all(isinstance(source, Sampled) for source in sources)
    dropped = ~dynamic.credit.base.is_kept_Q
    assert any(dropped[source.prompt] for source in sources)
    found, judged = dynamic.credit.correction, dynamic.corrections.judged
    num_right = judged.is_right_QG.sum(axis=1)
    np.testing.assert_array_equal(found.is_kept_Q, (num_right > 0) & (num_right < 8))
    metrics = figures(dynamic, DYNAMIC)
    share = metrics["sampling/dropped_correction_share"]
    assert share == pytest.approx(1 - found.is_kept_Q.mean())
    # Control: without the filter all are credited.
    every = replace(DYNAMIC, objective=Dapo(max_sampling_rounds=0))
    anchors = dynamic.corrections.anchors
    credited = credit(dynamic.base, judged, anchors, cfg=every, score_reference=None)
    assert credited.correction.is_kept_Q.all()


def test_at_the_limit_a_step_goes_on_with_fewer_groups(dynamic, engine, policy) -> None:
    cfg = replace(DYNAMIC, objective=Dapo(max_sampling_rounds=dynamic.num_rounds - 1))
    fewer = run(engine, policy, cfg)
    assert fewer.num_rounds == dynamic.num_rounds - 1
    assert 0 < fewer.credit.base.is_kept_Q.sum() < CFG.train.prompts_per_step
    # Prompts that come again within a step would give the same samples, and are passed over.
    again = run(engine, policy, DYNAMIC, Batches(PROBLEMS[:8]))
    assert again.num_rounds == 13
    assert len(again.base.prompted) == 8


def test_a_resumed_run_draws_the_problems_of_the_unbroken_one(dynamic, engine, policy) -> None:
    """Each step takes as many batches as it needs; the cursor says where the next one starts."""

    def found(it: Iteration) -> list:
        rows = range(len(it.base.prompted))
        return [(it.base.prompted[q].problem.id, it.base.completion_ids(q, 0)) for q in rows]

    first = run(engine, policy, DYNAMIC)
    assert found(first) == found(dynamic)
    saved = json.dumps(first.state.to_json())
    second = run(engine, policy, DYNAMIC, step=2, state=first.state)

    state = HostState.from_json(json.loads(saved))
    assert state.cursor == first.num_rounds > 1
    again = run(engine, policy, DYNAMIC, step=2, state=state)
    assert found(again) == found(second)
    jax.tree.map(np.testing.assert_array_equal, again.credit.batch, second.credit.batch)
    # Control: from one batch behind the first, as if every step took one.
    behind = replace(first.state, cursor=1)
    other = run(engine, policy, DYNAMIC, step=2, state=behind)
    assert found(other) != found(second)


# --- length -----------------------------------------------------------------------------------


def test_length_shapes_advantages_of_both_streams_and_no_metric(dynamic) -> None:
    share, penalty = 1.0, 0.9
    base, corrections = dynamic.base.take(range(8)), dynamic.corrections

    def credits(penalty):
        objective = Dapo(max_sampling_rounds=0, overlong_share=share, overlong_penalty=penalty)
        cfg = replace(CFG, objective=objective)
        return credit(base, corrections.judged, corrections.anchors, cfg=cfg, score_reference=None)

    plain, shaped = credits(0.0), credits(penalty)
    for without, with_length, judged in (
        (plain.base, shaped.base, base),
        (plain.correction, shaped.correction, corrections.judged),
    ):
        assert np.ptp(judged.length_QG, axis=1).any(), "the test needs lengths that differ"
        # Among samples that are all wrong, the shorter is now the better.
        is_wrong = ~judged.is_right_QG.any(axis=1) & (np.ptp(judged.length_QG, axis=1) > 0)
        assert is_wrong.any()
        assert not without.advantage[is_wrong].any()
        for q in np.flatnonzero(is_wrong):
            reward = -penalty * judged.length_QG[q] / NEW_TOKENS
            expected = (reward - reward.mean()) / reward.std()
            np.testing.assert_allclose(with_length.advantage[q], expected, rtol=1e-5, atol=1e-6)
    metrics = figures(replace(dynamic, base=base, credit=shaped), DYNAMIC)
    raw = figures(replace(dynamic, base=base), DYNAMIC)
    for name in ("reward/base", "reward/correction", "correction/fix_rate", "correction/retention"):
        assert metrics[name] == raw[name]


# --- divergence in the reward -----------------------------------------------------------------


@pytest.fixture(scope="module")
def score(policy):
    """Log-probs of a batch under any parameters; what else a configuration says changes nothing."""
    return make_scorer(CFG, policy[1], MESH)


def test_divergence_is_taken_from_the_reward_of_each_token(dynamic, policy, score) -> None:
    other, arch = load_model(RandomModel(), seed=1)
    dr_grpo = replace(CFG, objective=DrGrpo(), kl=Kl(weight=0.5, estimator="k1", into="reward"))
    judged = dynamic.base.take(range(8))

    def credited(cfg, params=other):
        score_reference = functools.partial(score, params)
        return credit(judged, None, (), cfg=cfg, score_reference=score_reference).base

    got = credited(dr_grpo)
    # The same by another way: each sequence scored in a row of its own.
    k1_QG = np.zeros((8, 8))
    for q, prompted in enumerate(judged.prompted):
        for g in range(8):
            ids = prompted.token_ids + judged.completion_ids(q, g)
            logprob = sequence_logprob(other, arch, ids, dr_grpo)
            own = judged.completion_logprobs(q, g)
            k1_QG[q, g] = (own - logprob[len(prompted.token_ids) :]).sum()
    reward = judged.reward_QG - 0.5 * k1_QG
    expected = reward - reward.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(got.advantage, expected, atol=1e-4)
    assert np.abs(expected - (judged.reward_QG - judged.reward_QG.mean(1, keepdims=True))).max() > 1
    assert got.divergence == pytest.approx(k1_QG.sum() / judged.length_QG.sum(), rel=1e-4)

    # REINFORCE++ has returns: the first token answers for all, the last for its own divergence.
    returns = credited(replace(dr_grpo, objective=ReinforcePlusPlus()))
    assert returns.advantage.shape == (8, 8, judged.length_QG.max())
    is_token = np.arange(judged.length_QG.max()) < judged.length_QG[..., None]
    values = returns.advantage[is_token]
    assert values.mean() == pytest.approx(0, abs=1e-5)
    assert values.std() == pytest.approx(1, rel=1e-5)
    first = returns.advantage[..., 0]
    assert np.corrcoef(first.ravel(), reward.ravel())[0, 1] == pytest.approx(1, abs=1e-4)
    assert np.abs(first - returns.advantage[..., 1]).max() > 1e-3

    # Against itself a policy diverges by the arithmetic of two programs at most.
    itself = credited(dr_grpo, policy[0])
    assert abs(itself.divergence) < 1e-5


def test_corrections_of_no_weight_are_no_part_of_the_batch(engine, policy, score) -> None:
    """With the divergence in the reward too: the batch is that of plain RLVR, bit for bit."""
    other, _ = load_model(RandomModel(), seed=1)
    kl = Kl(weight=0.05, estimator="k1", into="reward")
    score_reference = functools.partial(score, other)
    plain, unweighted, weighted = (
        run(engine, policy, replace(CFG, kl=kl, correction=correction), score=score_reference)
        for correction in (
            Correction(prompts_per_base_prompt=0),
            replace(CFG.correction, weight=0.0),
            CFG.correction,
        )
    )
    assert plain.corrections is None
    assert unweighted.corrections is not None
    assert unweighted.credit.correction.divergence is None
    jax.tree.map(np.testing.assert_array_equal, unweighted.credit.batch, plain.credit.batch)
    # Control: with a weight they are in it, and their divergence is measured.
    assert (weighted.credit.batch.stream_BT == Stream.CORRECTION).any()
    assert weighted.credit.correction.divergence != 0


def sequence_logprob(params, arch, ids, cfg) -> np.ndarray:
    """Log-prob of each token of one sequence, in a row of its own, without microbatches."""
    length, room = len(ids), 128
    at = np.arange(room)
    is_token = at < length

    def ints(x):
        return np.where(is_token, x, 0)[None].astype(np.int32)

    row = Batch(
        token_BT=ints(np.pad(ids, (0, room - length))), position_BT=ints(at), segment_BT=ints(1),
        prefix_BT=ints(1), predecessor_BT=ints(np.maximum(at - 1, 0)), is_target_BT=is_token[None],
        sampler_logprob_BT=np.zeros((1, room)), advantage_BT=np.zeros((1, room)),
        weight_BT=np.zeros((1, room)), stream_BT=ints(0), num_rows=np.int32(1),
    )  # fmt: skip
    return np.asarray(score_alone(cfg, arch)(params, row))[0, :length]


@functools.cache
def score_alone(cfg, arch):
    def score(params, rows):
        with jax.sharding.use_abstract_mesh(MESH.abstract_mesh):
            return row_logprobs(params, rows, cfg=cfg, arch=arch)[0]

    return jax.jit(score)


# --- end to end -------------------------------------------------------------------------------


ONE_CLIP = {"clip_low": 0.2, "clip_high": 0.28}  # objectives with the same gain share a program
VARIANTS = {
    "grpo": (Grpo(**ONE_CLIP), Uncorrected()),
    "dr_grpo": (DrGrpo(**ONE_CLIP), Uncorrected()),
    "dapo": (Dapo(max_sampling_rounds=3), Uncorrected()),
    "reinforce++": (ReinforcePlusPlus(**ONE_CLIP), Uncorrected()),
    "reinforce++ baseline": (ReinforcePlusPlusBaseline(**ONE_CLIP), Uncorrected()),
    "gspo, masked sequence": (Gspo(), MaskedSequence()),
    "cispo, masked token": (Cispo(), MaskedToken()),
    "rloo, sequence": (Rloo(), SequenceTis()),
}


PROGRAMS = {}


def compiled(lowered):
    """The program, compiled once for all that lower to the same text, and without the optimisations
    of machine code, which take most of the time here."""
    text = lowered.as_text()
    if text not in PROGRAMS:
        PROGRAMS[text] = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
    return PROGRAMS[text]


@pytest.mark.parametrize(("objective", "importance"), VARIANTS.values(), ids=VARIANTS)
def test_an_update_makes_likelier_what_was_credited(
    objective, importance, engine, policy, score
) -> None:
    """Sampling, both streams, credit, mixing and updates, with each objective."""
    params, arch = policy
    cfg = replace(CFG, objective=objective, importance=importance)
    it = run(engine, policy, cfg)
    batch = it.credit.batch
    streams = set(np.unique(batch.stream_BT[batch.is_target_BT]))
    assert streams == set(Stream), "both streams must have a signal"
    assert np.isfinite(batch.advantage_BT).all()
    assert packing(batch).num_targets > 100

    before = np.asarray(score(params, batch))
    state = init_state(jax.tree.map(np.asarray, params), cfg, MESH)
    step = make_train_step(cfg, arch, MESH).lower(abstract_state(cfg, arch, MESH), None, batch)
    state, metrics = compiled(step)(state, None, batch)
    assert metrics.is_finite == 1
    assert metrics.grad_norm > 0
    # The first update is at ratio 1, nothing is clipped, and the sampler is not off.
    assert metrics.ratio == pytest.approx(1, abs=1e-5)
    assert metrics.importance_weight == pytest.approx(1, abs=1e-4)
    assert metrics.clip_share == 0
    assert metrics.gaps.largest[0] < 1e-4

    after = np.asarray(score(state.params, batch))
    gain = np.where(batch.is_target_BT, batch.weight_BT * batch.advantage_BT * (after - before), 0)
    for stream in Stream:
        assert gain[batch.stream_BT == stream].sum() > 0, stream


def test_later_updates_keep_the_first_policy_as_old(engine, policy, score) -> None:
    """The ratio of the second update is taken against the policy before the first, as the trainer
    scored it; the weight against the sampler stays what it was."""
    params, arch = policy
    cfg = replace(
        CFG,
        objective=Grpo(dual_clip=3.0, entropy_bonus=1e-4),
        importance=TokenTis(),
        train=replace(CFG.train, updates_per_step=2),
    )
    batch = run(engine, policy, cfg).credit.batch
    off = np.where(batch.is_target_BT, batch.sampler_logprob_BT - 0.1, 0).astype(np.float32)
    batch = batch.replace(sampler_logprob_BT=off)  # a sampler that is off by .1
    step = make_train_step(cfg, arch, MESH)
    abstract = abstract_state(cfg, arch, MESH)
    with pytest.raises(ValueError, match="has no old_logprob"):
        step.lower(abstract, None, batch)

    scored = batch.replace(old_logprob_BT=score(params, batch))
    program = compiled(step.lower(abstract, None, scored))
    state = init_state(jax.tree.map(np.asarray, params), cfg, MESH)
    state, first = program(state, None, scored)
    _, second = program(state, None, scored)
    assert first.ratio == pytest.approx(1, abs=1e-6)
    assert abs(second.ratio - 1) > 1e-3
    for metrics in (first, second):
        assert metrics.importance_weight == pytest.approx(np.exp(0.1), rel=1e-5)
    assert first.clip_share == 0
    assert second.clip_share > 0
