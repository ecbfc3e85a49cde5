"""The order of the training problems is a function of their number, their count and the seed."""

import itertools

import pytest

from cipo_jax import tasks
from cipo_jax.config import GeneratedTask
from cipo_jax.tasks.stream import ProblemStream

TRAIN = tasks.load(GeneratedTask(num_held_out=68)).train  # 10 distinct sums.


def test_every_epoch_has_every_problem_in_a_new_order():
    stream = ProblemStream(TRAIN, len(TRAIN), 0)
    epochs = [[p.id for p in stream[i]] for i in range(3)]
    for ids in epochs:
        assert sorted(ids) == sorted(p.id for p in TRAIN)
    assert len({tuple(ids) for ids in epochs}) == 3
    assert [p.id for p in ProblemStream(TRAIN, len(TRAIN), 0)[0]] == epochs[0]
    assert [p.id for p in ProblemStream(TRAIN, len(TRAIN), 1)[0]] != epochs[0]


def test_no_batch_holds_a_problem_twice():
    size = len(TRAIN) // 2 + 1
    stream = ProblemStream(TRAIN, size, 0)
    seen = set()
    for i in range(30):
        ids = [p.id for p in stream[i]]
        assert len(set(ids)) == size
        seen.update(ids)
    assert len(seen) == len(TRAIN)


def test_a_batch_depends_on_its_number_and_not_on_those_that_were_read():
    unbroken = ProblemStream(TRAIN, 3, 5)
    expected = [unbroken[i] for i in range(20)]
    late = ProblemStream(TRAIN, 3, 5)
    assert [late[i] for i in range(7, 20)] == expected[7:]
    assert [late[i] for i in reversed(range(20))] == expected[::-1]
    assert late[0] != expected[7]  # Control.
    # An iterator over a new stream stops at nothing: there is always a next epoch.
    assert len(list(itertools.islice(iter(ProblemStream(TRAIN, 3, 5)), 50))) == 50


def test_a_number_of_another_stream_is_refused():
    source = ProblemStream(TRAIN, 3, 5).source
    ProblemStream(TRAIN, 3, 5).check(source)
    with pytest.raises(ValueError, match="batch_size = 3, this run has 4"):
        ProblemStream(TRAIN, 4, 5).check(source)


def test_a_stream_needs_a_batch_of_problems():
    with pytest.raises(ValueError, match="is 3, but there are only 2"):
        ProblemStream(TRAIN[:2], 3, 0)
    with pytest.raises(ValueError, match="only 0 training problems"):
        ProblemStream((), 1, 0)
