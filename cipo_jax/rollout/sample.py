"""Rollouts: prompts in, completions with the log-probs of their tokens out.

Token ids only: no text, no reward, no stream. A call runs a handful of compiled programs, which
`stages` states once: `sample` runs them, `plan` compiles them for devices that are not there.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float32, PRNGKeyArray

from cipo_jax.model.decoding import cast, ends_of, layer_of, to_cast
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.records import PromptBatch, Rollouts
from cipo_jax.rollout.decode import complete
from cipo_jax.rollout.prefill import read_prompts


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One compiled program of the sampler, with its arguments and what becomes of its results."""

    name: str
    function: jax.stages.Wrapped
    args: tuple[Any, ...]
    """Arrays to run it on, or `jax.ShapeDtypeStruct`s to compile it for."""
    static: Mapping[str, Any]
    host_args: tuple[int, ...] = ()
    """Positions of arguments that come with this call; the others were in memory before it."""
    num_layers: int | None = None
    """If it runs once for each layer, with the layer's index as its last argument, the number of
    layers; else None."""
    makes: str | None = None
    """Name of its results, if they stay in memory after it."""
    frees: tuple[str, ...] = ()
    """Names of results that are dropped after it."""

    def run(self) -> Any:
        """The results; a tuple with one for each layer if it runs once per layer."""
        if self.num_layers is None:
            return self.function(*self.args, **self.static)
        return tuple(
            self.function(*self.args, layer, **self.static) for layer in range(self.num_layers)
        )


_STACKED_CACHE, _CACHE = "stacked prompt cache", "prompt cache"
_LAYERS, _ENDS = "unstacked layers", "embedding and head"


def stages(
    params: Params,
    prompts: PromptBatch,
    key: PRNGKeyArray | jax.ShapeDtypeStruct,
    temperature: Float32[jax.Array, ""] | jax.ShapeDtypeStruct,
    *,
    arch: Architecture,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    compute_dtype: DTypeLike,
) -> Generator[Stage, Any, Rollouts]:
    """The programs of one call of `sample`, in the order in which they run.

    The generator is sent the results of each (a tuple, if it runs once per layer), and returns the
    rollouts. The arguments are those of `sample`, as arrays or as `jax.ShapeDtypeStruct`s.
    """
    dtype = jnp.dtype(compute_dtype)
    hidden_QD, stacked = yield Stage(
        name="prefill",
        function=read_prompts,
        args=(params, prompts),
        static={"arch": arch, "compute_dtype": dtype},
        host_args=(1,),
        makes=_STACKED_CACHE,
    )
    of_layers = partial(
        Stage,
        function=layer_of,
        static={"dtype": dtype},
        host_args=(1,),
        num_layers=arch.num_layers,
    )
    caches = yield of_layers(
        name="prompt cache", args=(stacked,), makes=_CACHE, frees=(_STACKED_CACHE,)
    )
    # Or it would be in memory a second time for as long as tokens are drawn.
    del stacked
    layers = yield of_layers(name="layers", args=(params.blocks,), makes=_LAYERS)
    ends = ends_of(params)
    uncast = to_cast(ends, dtype)
    if uncast:
        of_dtype = yield Stage(
            name="embedding and head",
            function=cast,
            args=(uncast,),
            static={"dtype": dtype},
            makes=_ENDS,
        )
        ends = replace(ends, **of_dtype)
    rollouts: Rollouts = yield Stage(
        name="decode",
        function=complete,
        args=(ends, layers, prompts, caches, hidden_QD, key, temperature),
        static={
            "arch": arch,
            "samples_per_prompt": samples_per_prompt,
            "max_new_tokens": max_new_tokens,
            "eos_ids": eos_ids,
        },
        host_args=(2, 4, 5, 6),
        frees=(_LAYERS, _CACHE, _ENDS),
    )
    return rollouts


def sample(
    params: Params,
    prompts: PromptBatch,
    key: PRNGKeyArray,
    temperature: ArrayLike,
    *,
    arch: Architecture,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    compute_dtype: DTypeLike,
) -> Rollouts:
    """Draws `samples_per_prompt` completions of each prompt from the model's full distribution.

    A completion ends with the first token of `eos_ids`, which is drawn and recorded like any other,
    or after `max_new_tokens`; decoding stops when all have ended. Each prompt is read once, and its
    keys and values are shared by its samples. The random numbers of a token come from `key`, its
    prompt's `key_id`, the sample's index and the token's, so results do not depend on the order or
    the padding of the batch.

    Rows of `prompts` with length 0 fill up a batch: they are finished from the start and have no
    tokens.

    The same shapes (Q, P, samples, new tokens) reuse the same compiled programs, whatever the
    weights, prompts, key and temperature.

    Args:
      temperature: at 0 the likeliest token is taken, and log-probs are at temperature 1.
      compute_dtype: dtype of the matrix products; logits, softmax and log-probs are float32.
    Raises: ValueError for lengths that the architecture has no positions for, and for
      end-of-sequence ids outside the vocabulary.
    """
    _check(arch, prompts.token_QP.shape[1], samples_per_prompt, max_new_tokens, eos_ids)
    running = stages(
        params,
        prompts,
        key,
        jnp.asarray(temperature, jnp.float32),
        arch=arch,
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        compute_dtype=compute_dtype,
    )
    stage = next(running)
    while True:
        try:
            stage = running.send(stage.run())
        except StopIteration as end:
            rollouts: Rollouts = end.value
            return rollouts


def _check(
    arch: Architecture,
    prompt_length: int,
    samples_per_prompt: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
) -> None:
    if min(prompt_length, samples_per_prompt, max_new_tokens) < 1:
        raise ValueError(
            f"prompt length {prompt_length}, samples_per_prompt {samples_per_prompt} and "
            f"max_new_tokens {max_new_tokens} must each be at least 1."
        )
    if prompt_length + max_new_tokens > arch.max_position:
        raise ValueError(
            f"A prompt of {prompt_length} tokens and {max_new_tokens} new ones need positions "
            f"beyond the model's {arch.max_position}: lower prompts.max_prompt_tokens, "
            "prompts.max_correction_prompt_tokens or sampling.max_new_tokens."
        )
    outside = [token for token in eos_ids if not 0 <= token < arch.vocab_size]
    if outside:
        raise ValueError(
            f"eos_ids {outside} are outside the vocabulary of {arch.vocab_size}: the tokenizer "
            "does not belong to this model."
        )
