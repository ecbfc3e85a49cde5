"""Problems from a file or from the hub: rows become problems, and questions are kept apart."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cipo_jax.config import FileTask, HubTask
from cipo_jax.tasks.problem import Problem, Tasks
from cipo_jax.tasks.references import DatasetTask, Unusable, read_reference
from cipo_jax.tasks.rows import Row, file_rows, hub_rows

log = logging.getLogger(__name__)


def from_files(cfg: FileTask) -> Tasks:
    """The problems of `cfg.path`; evaluated on those of `cfg.held_out_path`, where it is given."""
    train = _problems(cfg, file_rows(Path(cfg.path), setting="path"), name=cfg.path)
    if not cfg.held_out_path:
        return _drawn_apart(cfg, train, name=cfg.path)
    rows = file_rows(Path(cfg.held_out_path), setting="held_out_path")
    return _apart(train, _problems(cfg, rows, name=cfg.held_out_path), name=cfg.path)


def from_hub(cfg: HubTask) -> Tasks:
    """The problems of one split; evaluated on those of `cfg.held_out_split`, where it is given."""
    rows = hub_rows(cfg.dataset, subset=cfg.subset, split=cfg.split)
    train = _problems(cfg, rows, name=cfg.dataset)
    if not cfg.held_out_split:
        return _drawn_apart(cfg, train, name=cfg.dataset)
    rows = hub_rows(cfg.dataset, subset=cfg.subset, split=cfg.held_out_split)
    return _apart(train, _problems(cfg, rows, name=cfg.held_out_split), name=cfg.dataset)


def _problems(cfg: DatasetTask, rows: Iterable[Row], *, name: str) -> dict[str, Problem]:
    """Problems by question; of rows with the same question the first."""
    problems: dict[str, Problem] = {}
    left_out: Counter[str] = Counter()
    num_rows = 0
    for row in rows:
        num_rows += 1
        question = row.text(cfg.question_field, setting="question_field")
        try:
            reference = read_reference(cfg, row)
        except Unusable as reason:
            left_out[str(reason)] += 1
            continue
        problems.setdefault(
            question,
            Problem(
                id=row.where,
                question=question,
                answer_format=cfg.answer_format,
                reference=reference,
            ),
        )
    if not num_rows:
        raise ValueError(f"tasks: {name} is empty; it must hold at least one row.")
    reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
    if not problems:
        raise ValueError(
            f"tasks: none of the {num_rows} rows of {name} suits tasks.judge '{cfg.judge}': "
            f"{reasons}."
        )
    if len(problems) < num_rows:
        log.warning(
            "%s: %d problems from %d rows; left out: repeated questions%s.",
            name,
            len(problems),
            num_rows,
            f", {reasons}" if reasons else "",
        )
    return problems


def _drawn_apart(cfg: DatasetTask, problems: dict[str, Problem], *, name: str) -> Tasks:
    if len(problems) <= cfg.num_held_out:
        raise ValueError(
            f"tasks: {name} has {len(problems)} distinct problems, and holding "
            f"{cfg.num_held_out} of them out leaves none to train on: lower tasks.num_held_out, or "
            "name a file or a split of its own for evaluation."
        )
    # Drawn from sorted questions, so that the order of the rows doesn't matter.
    chosen = random.Random(cfg.split_seed).sample(sorted(problems), cfg.num_held_out)
    return _apart(problems, {question: problems[question] for question in chosen}, name=name)


def _apart(train: dict[str, Problem], held_out: dict[str, Problem], *, name: str) -> Tasks:
    kept = tuple(problem for question, problem in train.items() if question not in held_out)
    if not kept:
        raise ValueError(f"tasks: every training problem of {name} is also held out.")
    return Tasks(train=kept, held_out=tuple(held_out.values()))
