"""The replay ratio against numbers worked by hand, and its invariants on any sequence."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipo_jax.config import CipoReimpl, FailuresOnly, Fixed, Robust
from cipo_jax.method.controller import ControllerState, initial, update

ADAPTIVE = [CipoReimpl(), Robust()]
RETENTIONS = st.one_of(st.none(), st.floats(0, 1))


def run(cfg, retentions, *, num_samples=64):
    states = [initial(cfg)]
    for retention in retentions:
        states.append(update(states[-1], retention, num_samples, cfg))
    return states[1:]


def test_reimpl_vector() -> None:
    # tau .8, gains .8, .3, .05, from .3:
    #  R .9    c 0: .3 * (1 - .08)                         = .276
    #  R .7    c 1: .276 * (1 + .08 + .3 * .2 + .05)       = .276 * 1.19 = .32844
    #  R .6    c 2: .32844 * (1 + .16 + .3 * .1 + .1)      = .32844 * 1.29 = .423688
    #  none    held
    #  R .85   c 0: .423688 * (1 - .04)                    = .40674
    #  R 1.0   c 0: .40674 * (1 - .16)                     = .341662
    states = run(CipoReimpl(), [0.9, 0.7, 0.6, None, 0.85, 1.0])
    expected = [0.276, 0.32844, 0.423688, 0.423688, 0.40674, 0.341662]
    assert [s.ratio for s in states] == pytest.approx(expected, abs=1e-6)
    assert [s.persistence for s in states] == [0, 1, 2, 2, 0, 0]


def test_reimpl_at_a_constant_half() -> None:
    # c = 1, 2, 3, 3: factors 1.24 + .05 c = 1.29, 1.34, 1.39, 1.39: .387, .51858, .72083, > .8.
    ratios = [s.ratio for s in run(CipoReimpl(), [0.5] * 4)]
    assert ratios == pytest.approx([0.387, 0.519, 0.721, 0.8], abs=5e-4)


def test_reimpl_stands_still_only_at_the_target() -> None:
    assert [s.ratio for s in run(CipoReimpl(), [0.8] * 50)] == [0.3] * 50


def test_the_known_defect_and_its_cure() -> None:
    """Just under the target, persistence alone drives the re-implementation's rule to its maximum:
    factors 1 + .008 + .05 c give .3 * 1.058 * 1.108 * 1.158^6 = .848 > .8 after 8 steps."""
    ratios = [s.ratio for s in run(CipoReimpl(), [0.79] * 8)]
    assert ratios[6] < 0.8
    assert ratios[7] == 0.8
    assert [s.ratio for s in run(Robust(), [0.79] * 8)] == pytest.approx([0.3] * 8)


def test_robust_vector() -> None:
    # tau .8, eta .3, dead band .02, step bound .25.
    #  R .8  Rbar .8,  e 0:                                      .3
    #  R .5  Rbar .71, e .09, drop .09, c 1:
    #        step = .8 * .09 + .3 * .09 + .05 = .149:            .3 exp(.149) = .348202
    #  R .0  Rbar .497, e .303, drop .213, c 2:
    #        .2424 + .0639 + .1 = .4063, bounded to .25:         .348202 exp(.25) = .447100
    #  R 1.0 Rbar .6479, e .1521, c 3: .12168 + .15, bounded:    .447100 exp(.25) = .574088
    states = run(Robust(), [0.8, 0.5, 0.0, 1.0])
    expected = [0.3, 0.348202, 0.447100, 0.574088]
    assert [s.ratio for s in states] == pytest.approx(expected, abs=1e-5)
    assert [s.retention for s in states] == pytest.approx([0.8, 0.71, 0.497, 0.6479])
    assert [s.persistence for s in states] == [0, 1, 2, 3]


def test_robust_waits_for_enough_samples() -> None:
    start = initial(Robust())
    assert update(start, 0.1, 15, Robust()) == start
    assert update(start, 0.1, 16, Robust()) != start


def test_the_settings_of_the_robust_rule_by_hand() -> None:
    assert update(initial(Robust()), 0.1, 4, Robust(min_samples=4)).ratio > 0.3
    assert update(initial(Robust()), 0.1, 3, Robust(min_samples=4)).ratio == 0.3
    # R .79: e .01, c 1: .8 * .01 + .05 = .058; inside the default dead band of .02 nothing moves.
    assert run(Robust(dead_band=0.0), [0.79])[-1].ratio == pytest.approx(0.3 * math.exp(0.058))
    assert run(Robust(), [0.79])[-1].ratio == pytest.approx(0.3)
    # R .8, then .0: Rbar .56, e .24, drop .24, c 1: .8 * .24 + .3 * .24 + .05 = .314.
    for bound, step in ((0.1, 0.1), (0.25, 0.25), (1.0, 0.314)):
        ratio = run(Robust(max_log_step=bound), [0.8, 0.0])[-1].ratio
        assert ratio == pytest.approx(0.3 * math.exp(step))
    # No average: Rbar 0, e .8, drop .8, c 1.
    ratio = run(Robust(smoothing=1.0, max_log_step=1.0), [0.8, 0.0])[-1].ratio
    assert ratio == pytest.approx(min(0.8, 0.3 * math.exp(0.64 + 0.24 + 0.05)))


@pytest.mark.parametrize("cfg", ADAPTIVE)
def test_an_undefined_retention_changes_nothing(cfg) -> None:
    state = run(cfg, [0.9, 0.4])[-1]
    assert update(state, None, 0, cfg) == state


@pytest.mark.parametrize("cfg", ADAPTIVE)
@settings(max_examples=100, deadline=None)
@given(retentions=st.lists(RETENTIONS, max_size=20))
def test_the_ratio_stays_in_its_bounds(cfg, retentions) -> None:
    for state in run(cfg, retentions):
        assert cfg.ratio_min <= state.ratio <= cfg.ratio_max


@pytest.mark.parametrize("cfg", ADAPTIVE)
@settings(max_examples=100, deadline=None)
@given(history=st.lists(RETENTIONS, max_size=6), one=st.floats(0, 1), other=st.floats(0, 1))
def test_lower_retention_never_gives_a_lower_ratio(cfg, history, one, other) -> None:
    state = [initial(cfg), *run(cfg, history)][-1]
    low, high = (update(state, r, 64, cfg).ratio for r in sorted((one, other)))
    assert low >= high - 1e-12


def test_fixed_and_failures_only_never_move() -> None:
    assert {s.ratio for s in run(Fixed(ratio=0.25), [0.1, None, 1.0])} == {0.25}
    assert {s.ratio for s in run(FailuresOnly(), [0.1, None, 1.0])} == {0.0}


def test_a_ratio_held_at_zero_stays_there() -> None:
    cfg = CipoReimpl(ratio_start=0.0, ratio_min=0.0, ratio_max=0.0)
    assert {s.ratio for s in run(cfg, [0.0, 0.5])} == {0.0}


@pytest.mark.parametrize("cfg", [*ADAPTIVE, Fixed(), FailuresOnly()])
def test_json_carries_the_state_exactly(cfg) -> None:
    for state in [initial(cfg), *run(cfg, [0.1, 0.7, None, 1 / 3])]:
        again = ControllerState.from_json(json.loads(json.dumps(state.to_json())))
        assert again == state
        assert update(again, 0.62, 64, cfg) == update(state, 0.62, 64, cfg)


@pytest.mark.parametrize("retention", [-0.1, 1.1, float("nan")])
def test_impossible_retentions_are_refused(retention) -> None:
    with pytest.raises(ValueError, match="Retention is"):
        update(initial(CipoReimpl()), retention, 8, CipoReimpl())
