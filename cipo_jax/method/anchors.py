"""Which attempts become correction prompts: the preference for prompts of medium difficulty, and
the mixture of right and wrong attempts.

Randomness depends on identities, never on order. Two words are drawn from the generator passed in;
they key a counter-based generator (Philox) whose counter is the prompt's key id, and sample g of
the prompt gets its g-th number. So permuting the prompts permutes the selection and changes nothing
else, and neither does adding a prompt move another prompt's draw.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from cipo_jax.config import Band, Correction, FailuresOnly, Preference, Soft
from cipo_jax.method.buffer import AttemptBuffer, BufferedAttempt

# Products such as 20 * 0.55 land a rounding error beside the integer that was meant.
ROUNDING = 1e-9

_STEP, _BUFFER = 0, 1  # which draws: a word of the Philox counter


@dataclass(frozen=True)
class Sampled:
    """Where an attempt of this step stands: prompt (index in Q) and sample (index in G)."""

    prompt: int
    sample: int


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """An attempt to be corrected. Whether it is right is for the reward, the advantage and the
    controller; the correction prompt shows it only in the comparison `correction.context:
    labelled`.
    """

    key_id: int
    """Identity of its problem."""
    is_right: bool
    num_right: int
    """Right samples of its prompt when it was sampled ..."""
    num_valid: int
    """... out of this many with a known verdict."""
    source: Sampled | BufferedAttempt

    def sampling_key_id(self, samples_per_prompt: int) -> int:
        """Identity for the random numbers of its corrections: its own among all anchors of a step,
        and the same whatever the order of the prompts.

        Raises: ValueError if it does not fit in 32 bits, which is what the sampler folds in.
        """
        slot = self.source.sample if isinstance(self.source, Sampled) else samples_per_prompt
        key_id = self.key_id * (samples_per_prompt + 1) + slot
        if not 0 <= key_id < 2**31:
            raise ValueError(
                f"Key id {self.key_id} of a prompt with {samples_per_prompt} samples gives the "
                f"anchor key id {key_id}, outside [0, 2^31): number the prompts from 0."
            )
        return key_id


def select(
    key_id_Q: Int[np.ndarray, " Q"],
    is_right_QG: Bool[np.ndarray, "Q G"],
    is_valid_QG: Bool[np.ndarray, "Q G"],
    is_finished_QG: Bool[np.ndarray, "Q G"],
    *,
    num_anchors: int,
    ratio: float,
    correction: Correction,
    rng: np.random.Generator,
    buffer: AttemptBuffer | None = None,
) -> list[Anchor]:
    """At most `num_anchors` attempts: right ones first, then wrong ones, then right ones that fill.

        right = min(right candidates, max(floor(ratio * M), 1 if ratio > 0 and M > 1))
        wrong = min(wrong candidates, M - right)
        fill  = right candidates for the places that are left    (`fill_with_right`)

    Each class is taken in the order of `preference`: prompts inside the band before all others, in
    random order (`Band`), or drawn without replacement by weight (`Soft`).

    At least one right attempt is taken while the ratio is positive: floor(0.2 * M) is 0 for M < 5,
    retention would never be measured again, and the ratio would stay where it is for good. (With a
    single place the wrong attempt gets it: there a right one would end all learning of repair.)

    Args:
      key_id_Q: identity of each prompt, distinct within the step.
      is_right_QG: right samples; not read where not valid.
      is_valid_QG: False where the verdict is unknown; such a sample is never an anchor and does not
        count in its prompt's pass rate.
      is_finished_QG: False where the length limit cut the sample (`drop_truncated_anchors`).
      num_anchors: M, the places.
      ratio: rho, the share of correct attempts asked for.
      rng: seeded by the caller from (seed, step, purpose); two words of it are used.
      buffer: correct attempts of earlier steps, the source of right anchors with `anchor_source`
        buffer (then none of this step's is taken).
    Returns: fewer than M anchors where candidates run out, which is legal. `failures_only` never
      takes a right one, not even to fill.
    Raises: ValueError if the buffer is asked for and missing, or the ratio is outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"The ratio of right anchors is {ratio}; it must be in [0, 1].")
    key = rng.integers(0, 2**64, size=2, dtype=np.uint64)
    sampled = _candidates(
        key_id_Q,
        is_right_QG,
        is_valid_QG,
        is_finished_QG,
        drop_truncated=correction.drop_truncated_anchors,
    )
    wrong = [a for a in sampled if not a.is_right]
    if correction.anchor_source == "step":
        right = [a for a in sampled if a.is_right]
    elif buffer is None:
        raise ValueError("correction.anchor_source is 'buffer', but no buffer was given.")
    else:
        right = [_from_buffer(attempt) for attempt in buffer.attempts]

    in_order = _Order(key, correction.preference, num_samples=is_right_QG.shape[1])
    right_left = iter(sorted(right, key=in_order))
    wrong_left = iter(sorted(wrong, key=in_order))

    num_right = math.floor(ratio * num_anchors + ROUNDING)
    if ratio > 0 and num_anchors > 1:
        num_right = max(num_right, 1)
    turns = [(right_left, num_right), (wrong_left, num_anchors)]
    if correction.fill_with_right and not isinstance(correction.controller, FailuresOnly):
        turns.append((right_left, num_anchors))

    limit = correction.max_anchors_per_prompt
    per_prompt: Counter[int] = Counter()
    anchors: list[Anchor] = []
    for candidates, up_to in turns:
        while len(anchors) < up_to and (candidate := next(candidates, None)) is not None:
            if limit == "all" or per_prompt[candidate.key_id] < limit:
                per_prompt[candidate.key_id] += 1
                anchors.append(candidate)
    return anchors


def one_right_per_prompt(
    key_id_Q: Int[np.ndarray, " Q"],
    is_right_QG: Bool[np.ndarray, "Q G"],
    is_valid_QG: Bool[np.ndarray, "Q G"],
    is_finished_QG: Bool[np.ndarray, "Q G"],
    *,
    drop_truncated: bool,
    rng: np.random.Generator,
) -> list[Anchor]:
    """A random right sample of each prompt that has one: what a step leaves to the buffer."""
    key = rng.integers(0, 2**64, size=2, dtype=np.uint64)
    right = [
        a
        for a in _candidates(
            key_id_Q, is_right_QG, is_valid_QG, is_finished_QG, drop_truncated=drop_truncated
        )
        if a.is_right
    ]
    uniform = Soft(exponent=0.0)
    in_order = _Order(key, uniform, num_samples=is_right_QG.shape[1])
    first: dict[int, Anchor] = {}
    for anchor in sorted(right, key=in_order):
        first.setdefault(anchor.key_id, anchor)
    return list(first.values())


def is_in_band(num_right: int, num_valid: int, band: Band) -> bool:
    """Whether a pass rate lies in the band; counts are compared, not quotients."""
    lowest = math.ceil(num_valid * band.low - ROUNDING)
    highest = math.floor(num_valid * band.high + ROUNDING)
    return lowest <= num_right <= highest


def soft_weight(num_right: int, num_valid: int, soft: Soft) -> float:
    """Weight of a prompt in the soft preference.

        w = floor + (4 p (1 - p))^exponent,   p = (num_right + 1/2) / (num_valid + 1)

    p (1 - p) is, up to a constant, the mean squared group advantage without standardisation: how
    much a prompt can teach. The half a success added to both sides keeps it off 0.
    """
    rate = (num_right + 0.5) / (num_valid + 1)
    return float(soft.floor + (4 * rate * (1 - rate)) ** soft.exponent)


def _candidates(
    key_id_Q: np.ndarray,
    is_right_QG: np.ndarray,
    is_valid_QG: np.ndarray,
    is_finished_QG: np.ndarray,
    *,
    drop_truncated: bool,
) -> list[Anchor]:
    is_right_QG = is_right_QG & is_valid_QG
    is_candidate_QG = is_valid_QG & is_finished_QG if drop_truncated else is_valid_QG
    num_right_Q = is_right_QG.sum(axis=1)
    num_valid_Q = is_valid_QG.sum(axis=1)
    return [
        Anchor(
            key_id=int(key_id_Q[q]),
            is_right=bool(is_right_QG[q, g]),
            num_right=int(num_right_Q[q]),
            num_valid=int(num_valid_Q[q]),
            source=Sampled(prompt=int(q), sample=int(g)),
        )
        for q, g in zip(*np.nonzero(is_candidate_QG), strict=True)
    ]


def _from_buffer(attempt: BufferedAttempt) -> Anchor:
    return Anchor(
        key_id=attempt.key_id,
        is_right=True,
        num_right=attempt.num_right,
        num_valid=attempt.num_valid,
        source=attempt,
    )


class _Order:
    """Sort key of candidates: preferred ones first, by the ring of an exponential clock.

    The clock of a candidate with weight w rings at -log(u) / w, u uniform. Taking candidates as
    their clocks ring is drawing without replacement by weight (Efraimidis and Spirakis 2006); with
    equal weights it is a shuffle.
    """

    def __init__(self, key: np.ndarray, preference: Preference, *, num_samples: int) -> None:
        self._key = key
        self._preference = preference
        self._num_samples = num_samples
        self._uniform: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, anchor: Anchor) -> tuple[bool, float]:
        match self._preference:
            case Band():
                last = not is_in_band(anchor.num_right, anchor.num_valid, self._preference)
                weight = 1.0
            case Soft():
                last = False
                weight = soft_weight(anchor.num_right, anchor.num_valid, self._preference)
        return last, -math.log1p(-self._draw(anchor)) / weight

    def _draw(self, anchor: Anchor) -> float:
        """The uniform number in [0, 1) that belongs to this attempt."""
        if isinstance(anchor.source, Sampled):
            which, index = _STEP, anchor.source.sample
        else:
            which, index = _BUFFER, 0
        if (anchor.key_id, which) not in self._uniform:
            counter = np.array([0, 0, which, anchor.key_id], dtype=np.uint64)
            philox = np.random.Philox(key=self._key, counter=counter)
            self._uniform[anchor.key_id, which] = np.random.Generator(philox).random(
                self._num_samples
            )
        return float(self._uniform[anchor.key_id, which][index])
