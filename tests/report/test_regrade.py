"""Stored rollouts judged again: what a change of the verifier would have changed."""

import math
from pathlib import Path

import pytest

from cipo_jax.config import Log, Verify
from cipo_jax.report.regrade import regrade
from cipo_jax.run.log import RolloutRow, RunLog
from cipo_jax.verify import NumberReference, Status, VerifierPool
from cipo_jax.verify.wire import encode_reference

SEVEN = encode_reference(NumberReference(answer="7"))


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(Verify(workers=1)) as pool:
        yield pool


def row(step: int, completion: str, status: str, **fields) -> RolloutRow:
    values = {
        "step": step, "stream": "base", "problem_id": "p", "group": 0, "sample": 0,
        "prompt": "3 + 4?", "completion": completion, "prompt_ids": [1], "token_ids": [2],
        "logprobs": [-0.5], "is_finished": True, "anchor": None, "is_anchor_right": None,
        "reference": SEVEN, "status": status, "reason": "ok", "answer": None,
        "reward": {"right": 1.0, "wrong": 0.0}.get(status, math.nan), "advantage": 0.0,
    }  # fmt: skip
    return RolloutRow(**{**values, **fields})


def store(run_dir: Path, *steps: list[RolloutRow]) -> None:
    settings = Log(tensorboard=False)
    with RunLog(run_dir, settings, first_step=0, num_steps=len(steps)) as log:
        for step, rows in enumerate(steps, 1):
            log.rollouts(step, rows)


def test_the_same_verifier_changes_nothing(tmp_path: Path, pool: VerifierPool) -> None:
    store(tmp_path, [row(1, "It is 7.", "right"), row(1, "It is 8.", "wrong", sample=1)])
    found = regrade(tmp_path, pool)
    assert found.changes == []
    assert (found.num_groups, found.num_groups_changed) == (1, 0)
    assert found.table().startswith("2 samples of 1 step judged again: none changed\n")
    assert found.table().count("changed") == 1


def test_what_would_have_changed(tmp_path: Path, pool: VerifierPool) -> None:
    store(
        tmp_path,
        [
            row(1, "It is 7.", "wrong"),  # an answer that the old verifier missed
            row(1, "It is 8.", "wrong", sample=1),
            row(1, "7", "right", group=1, problem_id="q"),
            row(
                1, "So 7.", "unknown", stream="correction", anchor="It is 7.", is_anchor_right=False
            ),
            row(
                1, "So 7.", "right", stream="correction", group=1, problem_id="q", anchor="7",
                is_anchor_right=True,
            ),
        ],
        [row(2, "It is 7, not 8", "right")],
    )  # fmt: skip
    found = regrade(tmp_path, pool)
    assert [(c.step, c.stream, c.group, c.before, c.after) for c in found.changes] == [
        (1, "base", 0, Status.WRONG, Status.RIGHT),
        (1, "correction", 0, Status.UNKNOWN, Status.RIGHT),
        (2, "base", 0, Status.RIGHT, Status.WRONG),
    ]
    assert (found.num_groups, found.num_groups_changed) == (5, 3)
    assert found.num_anchors_changed == 1
    assert found.table().splitlines() == [
        "6 samples of 2 steps judged again: 3 changed",
        "  step 1, base, problem p, sample 0: wrong (ok), now right (ok)",
        "  step 1, correction, problem p, sample 0: unknown (ok), now right (ok)",
        "  step 2, base, problem p, sample 0: right (ok), now wrong (wrong_answer)",
        "",
        "stream      then     now        samples",
        "base        right    right            1",
        "base        right    wrong            1  changed",
        "base        wrong    right            1  changed",
        "base        wrong    wrong            1",
        "base        right of those judged: 50.0% then, 50.0% now",
        "correction  right    right            1",
        "correction  unknown  right            1  changed",
        "correction  right of those judged: 100.0% then, 100.0% now",
        "",
        "3 of 5 groups would have had other advantages",
        "1 correction group started from an attempt that changes between right and not right",
    ]


@pytest.mark.parametrize("length", [0, 3000])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, pool: VerifierPool, length: int) -> None:
    store(tmp_path, [row(1, "It is 7.", "right")], [row(2, "It is 7.", "right")])
    (tmp_path / "rollouts/step_000003.tmp").write_bytes(b"PAR1")  # of a run that goes on
    assert regrade(tmp_path, pool).num_steps == 2
    last = tmp_path / "rollouts/step_000002.parquet"
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"step_000002\.parquet can't be read .* move it out"):
        regrade(tmp_path, pool)


def test_a_run_without_rollouts_says_how_to_get_them(tmp_path: Path, pool: VerifierPool) -> None:
    with pytest.raises(FileNotFoundError, match=r"log\.rollouts_every must be at least 1"):
        regrade(tmp_path, pool)
