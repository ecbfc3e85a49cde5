"""Where the trainer's log-probs are not the sampler's: the evidence, and what it says of the cause.

When parity trips (`config/parity.py`), the same batch is scored again with the very parameters that
sampled it, once as it was and once in float32, and it is sampled again with the same keys. All of
it goes into a bundle in the run folder, from which the split can be made again elsewhere.

    parity/step_000012/record.json   the split by cause, limits, shapes, versions, devices
    parity/step_000012/arrays.npz    the packed rows: ids, positions, segments, all log-probs
    parity/step_000012/config.yaml   the configuration, resolved
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cipo_jax.config import Config, ParityMask, ParityOff, ParityStop, ParityWarn, configfile
from cipo_jax.method.gaps import bucket_masks
from cipo_jax.records import Batch
from cipo_jax.run.log import environment
from cipo_jax.run.metrics import parity_figures
from cipo_jax.update.metrics import UpdateMetrics

MAX_BUNDLES = 4
"""Bundles of a run that goes on: what trips for the fifth time is known by then."""

Limits = ParityWarn | ParityMask | ParityStop


class ParityError(RuntimeError):
    """The trainer's log-probs are not the sampler's, and `parity.kind` is stop."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One batch, and its log-probs from everyone who was asked, [B, T], nats."""

    batch: Batch
    rescored_BT: np.ndarray
    """By the trainer, with the parameters that sampled: what a learning rate of 0 would see."""
    float32_BT: np.ndarray
    """The same, computed in float32 throughout."""
    resampled: Batch | None
    """The batch of a second sampling with the same parameters and keys; None if there was none."""
    logged: Mapping[str, float]
    """Mean and largest gap that the train step found, nats."""

    def used(self) -> Evidence:
        """The rows in use alone."""
        num_rows = int(self.batch.num_rows)
        return Evidence(
            batch=_used_rows(self.batch),
            rescored_BT=np.asarray(self.rescored_BT)[:num_rows],
            float32_BT=np.asarray(self.float32_BT)[:num_rows],
            resampled=None if self.resampled is None else _used_rows(self.resampled),
            logged=self.logged,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """How large the gap is in each reading of the batch, and what follows."""

    gaps: Mapping[str, Mapping[str, float]]
    """Name of a reading or of a bucket of tokens to its mean and largest gap in nats."""
    cause: str

    def __str__(self) -> str:
        lines = [
            f"  {name:<18} mean {gap['mean']:.3g}  max {gap['max']:.3g}"
            for name, gap in self.gaps.items()
        ]
        return "\n".join([f"cause: {self.cause}", *lines])


def split_by_cause(evidence: Evidence, *, limits: Limits) -> Split:
    """What the gap is due to: the first of these that explains it.

    - sampler: sampled again with the same parameters and keys, the batch comes out otherwise. The
      sampler used other parameters (a stale copy), or does not repeat itself.
    - parameters: scored again with the parameters that sampled, the gap is within the limits. They
      changed between sampling and the update.
    - dtype: half of the mean gap or more is rounding, the trainer against itself in float32.
    - first token, last token, or a bucket of positions or prompt lengths: without its tokens the
      gap is within the limits.
    - everywhere: none of these, as with another temperature or other weights.

    Args:
      limits: those that were exceeded.
    """
    batch, resampled = evidence.batch, evidence.resampled
    is_target_BT = np.asarray(batch.is_target_BT)

    def between(one_BT: np.ndarray, other_BT: np.ndarray, where_BT: np.ndarray) -> dict[str, float]:
        gap = np.abs(np.asarray(one_BT, np.float64) - other_BT)[where_BT & is_target_BT]
        return {"mean": float(gap.mean()), "max": float(gap.max())} if gap.size else _NOTHING

    everything_BT = np.ones_like(is_target_BT)
    sampler_BT, rescored_BT = np.asarray(batch.sampler_logprob_BT), evidence.rescored_BT
    buckets = {name: np.asarray(mask) for name, mask in bucket_masks(batch).items()}
    del buckets["all"]
    found = {
        "logged": dict(evidence.logged),
        "learning rate 0": between(rescored_BT, sampler_BT, everything_BT),
        "float32": between(evidence.float32_BT, sampler_BT, everything_BT),
        "rounding": between(rescored_BT, evidence.float32_BT, everything_BT),
        **{name: between(rescored_BT, sampler_BT, mask) for name, mask in buckets.items()},
    }
    rest = {name: between(rescored_BT, sampler_BT, ~mask) for name, mask in buckets.items()}
    if resampled is not None:
        found["sampled again"] = _resampling_gap(batch, resampled)

    def is_within(gap: Mapping[str, float]) -> bool:
        return gap["mean"] <= limits.mean_nats and gap["max"] <= limits.max_nats

    explaining = [
        name
        for name, gap in rest.items()
        if is_within(gap) and (is_target_BT & ~buckets[name]).any()
    ]
    if resampled is not None and not is_within(found["sampled again"]):
        cause = "sampler"
    elif is_within(found["learning rate 0"]):
        cause = "parameters"
    elif found["rounding"]["mean"] >= 0.5 * found["learning rate 0"]["mean"]:
        cause = "dtype"
    elif explaining:
        cause = _BUCKET_CAUSES.get(explaining[0], explaining[0])
    else:
        cause = "everywhere"
    return Split(gaps=found, cause=cause)


_NOTHING = {"mean": 0.0, "max": 0.0}
_BUCKET_CAUSES = {"first": "first token", "last": "last token"}


def _resampling_gap(batch: Batch, again: Batch) -> dict[str, float]:
    """Between the log-probs of both samplings; infinite where the tokens are not the same."""
    is_same = np.array_equal(batch.token_BT, again.token_BT) and np.array_equal(
        batch.is_target_BT, again.is_target_BT
    )
    if not is_same:
        return {"mean": np.inf, "max": np.inf}
    gap = np.abs(batch.sampler_logprob_BT - again.sampler_logprob_BT)[batch.is_target_BT]
    return {"mean": float(gap.mean()), "max": float(gap.max())} if gap.size else _NOTHING


def has_room(folder: Path, cfg: Config) -> bool:
    """Whether a step that trips is to be looked into: always where it ends the run, and for the
    first bundles of a run that goes on."""
    match cfg.parity:
        case ParityOff():
            return False
        case ParityStop():
            return True
        case _:
            return len(list((folder / "parity").glob("step_*"))) < MAX_BUNDLES


def logged(metrics: UpdateMetrics) -> dict[str, float]:
    """Mean and largest gap that an update found, nats."""
    figures = parity_figures(metrics)
    return {
        "mean": math.nan if figures.logprob_abs_mean is None else figures.logprob_abs_mean,
        "max": figures.logprob_abs_max,
    }


def report(
    evidence: Evidence, folder: Path, step: int, *, cfg: Config, devices: Mapping[str, Any]
) -> str:
    """Store the evidence, and say what it shows."""
    path, split = write_bundle(evidence, folder, step, cfg=cfg, devices=devices)
    return (
        f"step {step}: the trainer's log-probs are not the sampler's (parity.kind is "
        f"{cfg.parity.kind}). {split}\nevidence: {path}"
    )


def write_bundle(
    evidence: Evidence, folder: Path, step: int, *, cfg: Config, devices: Mapping[str, Any]
) -> tuple[Path, Split]:
    """Make the split and store it with all that it was made from, in `folder`/parity.

    Args:
      evidence: only the rows in use are stored.
      folder: of the run.
      step: counted from 1, as in metrics.jsonl.
    """
    assert not isinstance(cfg.parity, ParityOff)
    evidence = evidence.used()
    split = split_by_cause(evidence, limits=cfg.parity)
    path = folder / "parity" / f"step_{step:06d}"
    unfinished = path.with_name(f"unfinished_{step:06d}")
    for old in (path, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fields = {f.name: getattr(evidence.batch, f.name) for f in dataclasses.fields(Batch)}
    arrays = {name: x for name, x in fields.items() if x is not None}
    if evidence.resampled is not None:
        arrays["resampled_token_BT"] = evidence.resampled.token_BT
        arrays["resampled_is_target_BT"] = evidence.resampled.is_target_BT
        arrays["resampled_logprob_BT"] = evidence.resampled.sampler_logprob_BT
    np.savez_compressed(
        unfinished / "arrays.npz",
        allow_pickle=False,
        rescored_BT=evidence.rescored_BT,
        float32_BT=evidence.float32_BT,
        **arrays,
    )
    record = {
        "step": step,
        "cause": split.cause,
        "gaps": split.gaps,
        "logged": dict(evidence.logged),
        "parity": dataclasses.asdict(cfg.parity),
        "shapes": {name: list(np.shape(x)) for name, x in arrays.items()},
        "devices": dict(devices),
        **environment(),
    }
    (unfinished / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    configfile.dump(cfg, unfinished / "config.yaml")
    unfinished.rename(path)
    return path, split


def split_of_bundle(path: Path) -> Split:
    """The split, made again from a stored bundle."""
    cfg = configfile.load(path / "config.yaml")
    assert not isinstance(cfg.parity, ParityOff)
    record = json.loads((path / "record.json").read_text())
    with np.load(path / "arrays.npz") as stored:
        arrays = dict(stored)
    batch = Batch(**{name: arrays[name] for name in Batch.__dataclass_fields__ if name in arrays})
    resampled = None
    if "resampled_token_BT" in arrays:
        resampled = dataclasses.replace(
            batch,
            token_BT=arrays["resampled_token_BT"],
            is_target_BT=arrays["resampled_is_target_BT"],
            sampler_logprob_BT=arrays["resampled_logprob_BT"],
        )
    evidence = Evidence(
        batch=batch,
        rescored_BT=arrays["rescored_BT"],
        float32_BT=arrays["float32_BT"],
        resampled=resampled,
        logged=record["logged"],
    )
    return split_by_cause(evidence, limits=cfg.parity)


def _used_rows(batch: Batch) -> Batch:
    num_rows = int(batch.num_rows)
    used = {name: np.asarray(x_BT)[:num_rows] for name, x_BT in batch.per_token().items()}
    return dataclasses.replace(batch, **used)
