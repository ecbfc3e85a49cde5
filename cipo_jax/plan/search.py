"""The largest value of a setting that fits, by doubling and halving. A value that does not fit is
refused in seconds; one that fits costs its compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from cipo_jax.config import Config
from cipo_jax.method.mix import max_rows
from cipo_jax.plan.programs import Phase

Knob = Literal["rows", "prompts", "length"]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one setting that are searched."""

    name: str
    """The setting's name in the configuration."""
    phases: tuple[Phase, ...]
    """The phases whose programs it changes."""
    start: int
    step: int
    most: int
    """The largest value that is allowed and of use."""
    put: Callable[[Config, int], Config]
    """The configuration with another value of the setting."""


def parse_knobs(text: str) -> tuple[Knob, ...]:
    """The knobs of a list with commas; `none` is the empty list.

    Raises: ValueError for an unknown name.
    """
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in get_args(Knob):
            raise ValueError(
                f"--largest {text!r}: {name!r} is none of {', '.join(get_args(Knob))}. Separate "
                "them with commas, or say none."
            )
    return tuple(cast(Knob, name) for name in names)


def largest(fits: Callable[[int], bool], *, start: int, step: int, most: int) -> int:
    """The largest multiple of `step`, at most `most`, that fits; 0 if none does.

    All values up to some threshold are taken to fit. `fits` is asked about 2 log2(answer / step)
    times, first about `start`.
    """
    low, high = 0, most // step + 1  # `low` fits or is 0, `high` does not or is too much
    guess = min(max(1, start // step), high - 1)
    is_bounded = False
    while high - low > 1:
        if fits(guess * step):
            low = guess
        else:
            high, is_bounded = guess, True
        guess = (low + high) // 2 if is_bounded else min(2 * low, high - 1)
    return low * step


def ranges(cfg: Config, row_shards: int, max_position: int) -> dict[Knob, Range]:
    """The range of each knob: rows of a microbatch, prompts of a call, tokens of a completion."""
    per_step = cfg.train.prompts_per_step
    longest = max_position - cfg.longest_sequence + cfg.sampling.max_new_tokens
    if cfg.has_correction:  # the attempt grows with the completion
        grown = (max_position - cfg.longest_sequence) // 2
        longest = cfg.sampling.max_new_tokens + grown
    sampling: tuple[Phase, ...] = ("sample", "correct")
    return {
        "rows": Range(
            name="train.rows_per_microbatch",
            phases=("train",),
            start=cfg.train.rows_per_microbatch,
            step=row_shards,
            most=row_shards * -(-max_rows(cfg) // row_shards),
            put=_with_rows,
        ),
        "prompts": Range(
            name="sampling.prompts_per_call",
            phases=sampling,
            start=cfg.sampling.prompts_per_call,
            step=row_shards,
            most=row_shards * max(1, -(-max(per_step, cfg.num_anchors) // row_shards)),
            put=_with_prompts,
        ),
        "length": Range(
            name="sampling.max_new_tokens",
            phases=("correct", "sample", "train"),
            start=cfg.sampling.max_new_tokens,
            step=1024,
            most=longest,
            put=_with_length,
        ),
    }


def _with_rows(cfg: Config, rows: int) -> Config:
    return replace(cfg, train=replace(cfg.train, rows_per_microbatch=rows))


def _with_prompts(cfg: Config, prompts: int) -> Config:
    return replace(cfg, sampling=replace(cfg.sampling, prompts_per_call=prompts))


def _with_length(cfg: Config, tokens: int) -> Config:
    """Longer completions, with room for them as attempts and in rows."""
    more = tokens - cfg.sampling.max_new_tokens
    in_prompt = more if cfg.has_correction else 0
    return replace(
        cfg,
        sampling=replace(cfg.sampling, max_new_tokens=tokens),
        prompts=replace(
            cfg.prompts,
            max_attempt_tokens=max(1, cfg.prompts.max_attempt_tokens + in_prompt),
            max_correction_prompt_tokens=cfg.prompts.max_correction_prompt_tokens + in_prompt,
        ),
        train=replace(cfg.train, row_tokens=cfg.train.row_tokens + more + in_prompt),
    )
