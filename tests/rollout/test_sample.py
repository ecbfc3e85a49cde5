"""The sampler against the scorer, the argmax, the law, and its own batch."""

import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipo_jax.model.head import logits, token_logprobs
from cipo_jax.model.presets import PRESETS
from cipo_jax.model.transformer import hidden_states
from cipo_jax.records import PromptBatch
from cipo_jax.rollout.decode import spans
from cipo_jax.rollout.draw import draw, row_keys
from cipo_jax.rollout.sample import sample
from tests.rollout.stages import decode_stage
from tests.weights import drawn

pytestmark = pytest.mark.slow

TINY = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-gemma3"]
ARCH = PRESETS["tiny-qwen3"]
LENGTHS = (10, 4, 7)
G, C = 4, 12
EOS = tuple(range(0, 320, 20))
"""One token in twenty ends a completion, so that rows end at all kinds of places."""


def make_prompts(lengths=LENGTHS, width=10, key_ids=(5, 6, 9), seed=0) -> PromptBatch:
    rng = np.random.default_rng(seed)
    token_QP = rng.integers(0, 320, (len(lengths), max(*lengths, width))).astype(np.int32)
    return PromptBatch(token_QP, np.array(lengths, np.int32), np.array(key_ids, np.int32))


def run(params, prompts, *, arch=ARCH, key=1, temperature=0.7, num_samples=G, **options):
    options = {"max_new_tokens": C, "eos_ids": EOS, "compute_dtype": "float32"} | options
    rollouts = sample(
        params,
        prompts,
        jax.random.key(key),
        temperature,
        arch=arch,
        samples_per_prompt=num_samples,
        **options,
    )
    return jax.tree.map(np.asarray, rollouts)


@functools.partial(jax.jit, static_argnames=("arch", "compute_dtype"))
def score(
    params, token, position, segment, prefix, predecessor, temperature, *, arch, compute_dtype
):
    hidden = hidden_states(
        params,
        token,
        position,
        segment,
        prefix,
        arch=arch,
        compute_dtype=compute_dtype,
        remat="none",
    )
    everywhere = jnp.ones(token.shape, bool)
    return token_logprobs(
        params, hidden, token, predecessor, everywhere, temperature=temperature, chunk=24, arch=arch
    )[0]


def scored(params, prompts, rollouts, *, arch=ARCH, temperature=0.7, shift=0, dtype="float32"):
    """Log-probs [Q, G, C] by the training path: a row per prompt, its completions behind it.
    `shift` moves the completions' positions, for a control."""
    num_prompts, num_samples, length = rollouts.token_QGC.shape
    width = prompts.token_QP.shape[1] + num_samples * length
    fields = np.zeros((5, num_prompts, width), np.int32)
    token, position, segment, prefix, predecessor = fields
    out_QGC = np.zeros(rollouts.token_QGC.shape, np.float32)
    places = {}
    for q, start in enumerate(prompts.length_Q):
        token[q, :start] = prompts.token_QP[q, :start]
        position[q, :start] = np.arange(start)
        segment[q, :start] = prefix[q, :start] = 1
        last = start - 1
        for g in range(num_samples):
            n = rollouts.is_sampled_QGC[q, g].sum()
            at = slice(start, start + n)
            token[q, at] = rollouts.token_QGC[q, g, :n]
            position[q, at] = last + 1 + shift + np.arange(n)
            segment[q, at], prefix[q, at] = g + 2, 1
            predecessor[q, at] = np.arange(start - 1, start + n - 1)
            predecessor[q, start] = last
            places[q, g] = at
            start += n
    row = np.asarray(score(params, *fields, temperature, arch=arch, compute_dtype=dtype))
    for (q, g), at in places.items():
        out_QGC[q, g, : at.stop - at.start] = row[q, at]
    return out_QGC


@pytest.mark.parametrize("name", TINY)
def test_sampled_log_probs_are_those_of_the_training_path(name):
    arch = PRESETS[name]
    params, prompts = drawn(arch), make_prompts()
    rollouts = run(params, prompts, arch=arch)
    ended = rollouts.is_sampled_QGC.sum(axis=-1)
    assert len(np.unique(ended)) > 3  # rows really end at different places
    np.testing.assert_allclose(
        scored(params, prompts, rollouts, arch=arch), rollouts.logprob_QGC, atol=1e-5
    )
    # Controls: another temperature, and completions one position late.
    for changed in ({"temperature": 0.8}, {"shift": 1}):
        wrong = scored(params, prompts, rollouts, arch=arch, **changed)
        assert np.abs(wrong - rollouts.logprob_QGC).max() > 1e-2


def test_bfloat16_stays_near_the_training_path():
    params, prompts = drawn(ARCH), make_prompts()
    rollouts = run(params, prompts, compute_dtype="bfloat16")
    gap = scored(params, prompts, rollouts, dtype="bfloat16") - rollouts.logprob_QGC
    assert 0 < np.abs(gap).max() < 0.3
    assert np.abs(gap).mean() < 0.05


def test_greedy_is_the_argmax_of_the_growing_sequence():
    params, prompts = drawn(ARCH), make_prompts()
    greedy = run(params, prompts, temperature=0.0, num_samples=2)
    width = 10 + C

    @jax.jit
    def next_logits(token_BT, length_B):
        position_BT = jnp.broadcast_to(jnp.arange(width), token_BT.shape)
        segment_BT = (position_BT < length_B[:, None]).astype(jnp.int32)
        hidden_BTD = hidden_states(
            params,
            token_BT,
            position_BT,
            segment_BT,
            segment_BT,
            arch=ARCH,
            compute_dtype="float32",
            remat="none",
        )
        return logits(params, hidden_BTD[jnp.arange(3), length_B - 1], arch=ARCH)

    token_BT = np.pad(prompts.token_QP, [(0, 0), (0, C)])
    length_B = prompts.length_Q.copy()
    is_open_B = np.ones(3, bool)
    for step in range(C):
        logits_BV = np.asarray(next_logits(token_BT, length_B))
        best_B = np.where(is_open_B, logits_BV.argmax(axis=-1), 0)
        for g in range(2):
            np.testing.assert_array_equal(greedy.token_QGC[:, g, step], best_B)
        law_BV = np.asarray(jax.nn.log_softmax(logits_BV))
        expected = np.where(is_open_B, law_BV[np.arange(3), best_B], 0)
        np.testing.assert_allclose(greedy.logprob_QGC[:, 0, step], expected, atol=1e-5)
        token_BT[np.arange(3), length_B] = best_B
        length_B += 1
        is_open_B &= ~np.isin(best_B, EOS)
    # Control: a draw at temperature 0.7 goes elsewhere.
    assert np.any(run(params, prompts).token_QGC[:, 0] != greedy.token_QGC[:, 0])


def assert_same(a, b):
    np.testing.assert_array_equal(a.token_QGC, b.token_QGC)
    np.testing.assert_array_equal(a.is_sampled_QGC, b.is_sampled_QGC)
    np.testing.assert_array_equal(a.is_finished_QG, b.is_finished_QG)
    np.testing.assert_allclose(a.logprob_QGC, b.logprob_QGC, atol=1e-5)


def test_samples_do_not_depend_on_the_batch_they_are_drawn_in():
    params, prompts = drawn(ARCH), make_prompts()
    base = run(params, prompts)

    def rows(prompts, order):
        return jax.tree.map(lambda x: x[np.array(order)], prompts)

    assert_same(run(params, rows(prompts, [2, 0, 1])), rows(base, [2, 0, 1]))  # order
    assert_same(run(params, rows(prompts, [1])), rows(base, [1]))  # other prompts
    garbage = np.random.default_rng(3).integers(0, 320, (3, 13)).astype(np.int32)
    is_prompt = np.arange(13) < prompts.length_Q[:, None]
    wide = np.where(is_prompt, np.pad(prompts.token_QP, [(0, 0), (0, 3)]), garbage)
    assert_same(run(params, prompts.replace(token_QP=wide)), base)  # bucket and padding
    fewer = run(params, prompts, num_samples=2)
    assert_same(fewer, jax.tree.map(lambda x: x[:, :2], base))  # number of samples
    # Controls: another key, and another identity of the same prompt, draw other tokens.
    assert np.any(run(params, prompts, key=2).token_QGC != base.token_QGC)
    renamed = run(params, prompts.replace(key_id_Q=np.array([5, 7, 9], np.int32)))
    changed_Q = np.any(renamed.token_QGC != base.token_QGC, axis=(1, 2))
    np.testing.assert_array_equal(changed_Q, [False, True, False])


def test_samples_of_a_prompt_differ():
    """Already in the first token, which all of them draw from the same logits."""
    first_QG = run(drawn(ARCH), make_prompts(), temperature=1.0).token_QGC[:, :, 0]
    assert any(len(np.unique(first_G)) > 1 for first_G in first_QG)


def test_a_completion_ends_with_the_token_that_ends_it():
    rollouts = run(drawn(ARCH), make_prompts())
    is_eos = np.isin(rollouts.token_QGC, EOS) & rollouts.is_sampled_QGC
    length_QG = rollouts.is_sampled_QGC.sum(axis=-1)
    for q, g in np.ndindex(length_QG.shape):
        n, finished = length_QG[q, g], rollouts.is_finished_QG[q, g]
        assert rollouts.is_sampled_QGC[q, g, :n].all()  # no holes
        assert not is_eos[q, g, : n - 1].any()  # none earlier
        assert is_eos[q, g, n - 1] == finished  # recorded, and trained on
        assert finished or n == C  # else cut by the limit
        assert (rollouts.logprob_QGC[q, g, :n] < 0).all()
        assert (rollouts.token_QGC[q, g, n:] == 0).all()
        assert (rollouts.logprob_QGC[q, g, n:] == 0).all()
    assert rollouts.is_finished_QG.any()
    assert not rollouts.is_finished_QG.all()


def test_the_last_token_may_still_end_a_completion():
    # One token in all: every token ends it, or none does.
    params, prompts = drawn(ARCH), make_prompts()
    one = {"max_new_tokens": 1}
    assert run(params, prompts, eos_ids=tuple(range(320)), **one).is_finished_QG.all()
    assert not run(params, prompts, eos_ids=(), **one).is_finished_QG.any()


def test_decoding_stops_when_all_have_ended():
    params, prompts = drawn(ARCH), make_prompts()

    def cpu_s(eos_ids) -> float:
        long = {"eos_ids": eos_ids, "max_new_tokens": 256}
        run(params, prompts, **long)  # compiles
        start = time.process_time()
        run(params, prompts, **long)
        return time.process_time() - start

    # After the first token, or never; the program is the same but for its table of ends.
    assert cpu_s(tuple(range(320))) < 0.25 * cpu_s(())


def test_empty_prompts_fill_up_a_batch():
    params = drawn(ARCH)
    full = make_prompts()
    rollouts = run(params, full.replace(length_Q=np.array([10, 0, 7], np.int32)))
    assert not rollouts.is_sampled_QGC[1].any()
    assert rollouts.is_finished_QG[1].all()
    assert np.isfinite(rollouts.logprob_QGC).all()
    others = jax.tree.map(lambda x: x[[0, 2]], (rollouts, run(params, full)))
    assert_same(*others)


def test_a_cache_that_grows_gives_the_same_samples():
    params, prompts = drawn(ARCH), make_prompts()
    assert spans(256) == [256]
    assert spans(300) == [150, 300]
    whole, grown = (
        run(params, prompts, num_samples=2, max_new_tokens=length, eos_ids=())
        for length in (256, 300)
    )
    np.testing.assert_array_equal(grown.token_QGC[..., :256], whole.token_QGC)
    np.testing.assert_allclose(grown.logprob_QGC[..., :256], whole.logprob_QGC, atol=1e-5)


def test_spans_reach_the_limit_and_no_further():
    assert spans(1) == []
    assert spans(12) == [12]
    assert spans(256) == [256]
    assert spans(1000) == [125, 500, 1000]
    assert spans(4096) == [128, 512, 2048, 4096]
    assert spans(8192) == [256, 1024, 4096, 8192]


def test_the_same_shapes_compile_once(caplog):
    params, prompts = drawn(ARCH), make_prompts()
    run(params, prompts)
    other = make_prompts((1, 9, 3), key_ids=(0, 1, 2), seed=8)

    def compiled(**options) -> list[str]:
        """The sampler's programs that such a call compiles, as jax itself reports them."""
        caplog.clear()
        with jax.log_compiles():
            run(drawn(ARCH, seed=4), other, **options)
        found = re.findall(r"Compiling jit\((\w+)\)", caplog.text)
        return [name for name in found if name in ("read_prompts", "layer_of", "complete")]

    assert compiled(key=3, temperature=1.0) == []
    assert compiled(temperature=0.0) == []
    assert compiled(temperature=np.float32(0.5), compute_dtype=jnp.float32) == []
    assert compiled(max_new_tokens=C - 1) == ["complete"]  # Control: another shape does compile.


def temporary_bytes(*, num_prompts, prompt_length, num_samples, max_new_tokens) -> int:
    """Memory of the decoding program beyond its arguments."""
    lengths = (prompt_length,) * num_prompts
    stage = decode_stage(
        drawn(ARCH),
        make_prompts(lengths, prompt_length, range(num_prompts)),
        arch=ARCH,
        samples_per_prompt=num_samples,
        max_new_tokens=max_new_tokens,
        eos_ids=EOS,
        compute_dtype="float32",
    )
    program = stage.function.lower(*stage.args, **stage.static).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_the_cache_is_written_in_place_and_the_prompt_is_never_copied():
    """What a longer completion adds to the temporary memory is its cache, once; what a longer
    prompt adds is the scores on it, not keys and values per sample."""
    row_bytes = 2 * ARCH.num_layers * ARCH.num_kv_heads * ARCH.head_dim * 4  # a token's cache
    base = {"num_prompts": 2, "num_samples": 16, "prompt_length": 64, "max_new_tokens": 64}
    at_base = temporary_bytes(**base)
    longer = temporary_bytes(**base | {"max_new_tokens": 128})
    assert 1.0 < (longer - at_base) / (2 * 16 * 64 * row_bytes) < 1.4
    wider = temporary_bytes(**base | {"prompt_length": 256})
    assert wider - at_base < 0.4 * (2 * 16 * 192 * row_bytes)


LOGITS = 2.0 * np.random.default_rng(0).normal(size=320).astype(np.float32)
DRAWS = 100_000


@functools.partial(jax.jit, static_argnames="num_draws")
def draw_many(logits_V, temperature, num_draws):
    key_B = row_keys(jax.random.key(7), jnp.arange(num_draws), 1)
    return draw(key_B, 3, jnp.tile(logits_V, (num_draws, 1)), temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_law(temperature):
    token_B, logprob_B = jax.tree.map(np.asarray, draw_many(LOGITS, temperature, DRAWS))
    law_V = np.asarray(jax.nn.log_softmax(LOGITS / temperature))
    np.testing.assert_allclose(logprob_B, law_V[token_B], atol=1e-5)
    count_V = np.bincount(token_B, minlength=320)

    def squares(prob_V):
        """Chi-square statistic over the tokens that expect at least 5 draws."""
        expected_V = DRAWS * prob_V
        often = expected_V >= 5
        return np.sum((count_V - expected_V)[often] ** 2 / expected_V[often]), often.sum()

    # Mean k and variance 2k under the law; 5 sigma.
    statistic, k = squares(np.exp(law_V))
    assert abs(statistic - k) < 5 * np.sqrt(2 * k)
    # Control: the law at a temperature 5% higher is told apart.
    statistic, k = squares(np.exp(np.asarray(jax.nn.log_softmax(LOGITS / (1.05 * temperature)))))
    assert statistic - k > 5 * np.sqrt(2 * k)


def test_a_token_with_no_probability_is_never_drawn():
    """Also where a whole block of the vocabulary has none, and where one token has all."""
    logits_V = np.where(np.arange(320) % 3 == 0, 0.0, -np.inf).astype(np.float32)
    logits_V[160:] = -np.inf
    token_B, logprob_B = jax.tree.map(np.asarray, draw_many(logits_V, 1.0, 4000))
    assert set(token_B) == set(range(0, 160, 3))
    np.testing.assert_allclose(logprob_B, -np.log(54), rtol=1e-5)
    certain_V = np.where(np.arange(320) == 17, 500.0, -500.0).astype(np.float32)
    token_B, logprob_B = draw_many(certain_V, 1.0, 4000)
    assert np.all(token_B == 17)
    assert np.all(logprob_B == 0)


def test_greedy_takes_the_first_of_equal_tokens():
    logits_V = np.zeros(320, np.float32)
    logits_V[[33, 34, 250]] = 4.0
    token_B, logprob_B = draw_many(logits_V, 0.0, 10)
    assert np.all(token_B == 33)
    np.testing.assert_allclose(logprob_B, 4 - np.log(317 + 3 * np.exp(4.0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 2039}, "beyond the model's 2048"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"num_samples": 0}, "at least 1"),
        ({"eos_ids": (1, 320)}, r"\[320\] are outside the vocabulary of 320"),
    ],
)
def test_impossible_requests_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        run(drawn(ARCH), make_prompts(), **changed)
