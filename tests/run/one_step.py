"""What tests of a single step share: prompts, problems by number, figures without a real update."""

import jax.numpy as jnp

from cipo_jax.config import Prompts
from cipo_jax.method.gaps import Gaps
from cipo_jax.run.iteration import Iteration
from cipo_jax.run.metrics import step_metrics
from cipo_jax.update.metrics import UpdateMetrics

PROMPTS = Prompts(
    max_prompt_tokens=64, max_attempt_tokens=64, max_correction_prompt_tokens=288,
    correction_template="attempt_first",
)  # fmt: skip


class Batches:
    """The same batch of problems whatever its number."""

    def __init__(self, problems) -> None:
        self._problems = problems

    def __getitem__(self, index: int):
        return self._problems


def figures(it: Iteration, cfg) -> dict:
    """What is logged of an iteration, beside figures of an update that found nothing."""
    scalars = dict.fromkeys(UpdateMetrics.__dataclass_fields__, jnp.float32(0))
    update = UpdateMetrics(**scalars | {"gaps": Gaps.none()})
    metrics = step_metrics(it, [update], cfg=cfg, is_sandboxed=None, train_s=1.0, step_s=1.0)
    return metrics.to_log()
