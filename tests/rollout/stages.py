"""The stages of a call of the sampler, up to the one that draws tokens."""

import jax
import jax.numpy as jnp

from cipo_jax.rollout.sample import Stage, stages


def decode_stage(params, prompts, **options) -> Stage:
    """The last stage, with the arguments that those before it made."""
    running = stages(params, prompts, jax.random.key(0), jnp.float32(0.7), **options)
    stage = next(running)
    while stage.name != "decode":
        stage = running.send(stage.run())
    return stage
