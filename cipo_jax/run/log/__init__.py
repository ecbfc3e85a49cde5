"""What a run writes down: metrics, rollouts, its environment, and what the terminal shows.

It takes plain numbers, strings and lists. It knows neither jax nor the method, and a name of a
metric means something to it only in `FIGURES`, the few that the terminal shows.

    metrics.jsonl      one line a step, flushed; an undefined figure is null
    tensorboard/       the same figures
    rollouts/          one parquet file a step, `RolloutRow` is its schema
    environment.json   versions, machine, devices, commit
"""

from cipo_jax.run.log.environment import environment
from cipo_jax.run.log.rollout_row import RolloutRow
from cipo_jax.run.log.run_log import RunLog

__all__ = ["RolloutRow", "RunLog", "environment"]
