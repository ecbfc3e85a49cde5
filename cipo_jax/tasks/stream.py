"""The order in which a run meets its training problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain

from cipo_jax.tasks.problem import Problem


class ProblemStream:
    """Batches of training problems without end, each epoch in a new order; `stream[i]` is batch i.

    A batch never holds a problem twice: what is left at the end of an epoch and fills no batch is
    left out of that epoch. The order depends on the problems and the seed alone, so a number is all
    that a run has to remember.

    Raises: ValueError if there are fewer problems than a batch takes.
    """

    def __init__(self, train: Sequence[Problem], batch_size: int, seed: int) -> None:
        if len(train) < batch_size:
            raise ValueError(
                f"train.prompts_per_step is {batch_size}, but there are only {len(train)} training "
                "problems: lower it, or give more problems."
            )
        self._batches = (
            grain.MapDataset.source(train)
            .shuffle(seed)
            .batch(batch_size, drop_remainder=True, batch_fn=list)
            .repeat()
        )
        self.source = {"num_problems": len(train), "batch_size": batch_size, "seed": seed}
        """What the order depends on, for JSON."""

    def __getitem__(self, index: int) -> list[Problem]:
        batch: list[Problem] = self._batches[index]
        return batch

    def check(self, source: dict[str, Any]) -> None:
        """Raises ValueError if a number into the stream of `source` means another batch here."""
        for name, value in self.source.items():
            if source[name] != value:
                raise ValueError(
                    f"The checkpoint was made with {name} = {source[name]}, this run has {value}: "
                    "resume with the same tasks, train.prompts_per_step and seed, or start a new "
                    "run from its weights."
                )
