"""A study: one configuration in several arms, each over the same seeds, and the page on it.

    STUDY/ARM/seed-N/     a run, as `cipo train` leaves it
    STUDY/study.md        the comparison, with study.json and study.png

Every run is a process of its own, so that none inherits memory or compiled programs; a study that
is started again continues with the runs that are not finished.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cipo_jax.config import configfile, yaml_text
from cipo_jax.config.require import require
from cipo_jax.config.schema import Schema
from cipo_jax.report.run_files import is_finished, read_metrics


@dataclass(frozen=True, kw_only=True)
class EqualTokens:
    """As many steps of this arm as sample the tokens of another one, seed by seed."""

    arm: str
    """Whose sampled tokens are matched."""
    paced_by: str
    """A finished arm with the settings of this one, whose tokens per step say how many steps that
    takes. Lengths drift in training, so the page states the tokens that were really sampled."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm changes in the study's configuration."""

    overrides: Mapping[str, Any]
    equal_tokens: EqualTokens | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its YAML file describes it."""

    name: str
    config: Path
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]
    """In the order in which they run; the first is what the others are compared with."""


Settings = Mapping[str, str | int | float | bool]
"""Values by the dotted names of settings."""


@dataclass(frozen=True, kw_only=True)
class _ArmFields:
    set: Settings = field(default_factory=dict)
    equal_tokens: EqualTokens | None = None


@dataclass(frozen=True, kw_only=True)
class _StudyFields:
    name: str
    config: str
    seeds: tuple[int, ...]
    set: Settings = field(default_factory=dict)
    arms: Mapping[str, _ArmFields | None]

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds is []; name at least one.")
        require(len(self.arms) > 0, "arms is {}; name at least one.")


def read(path: Path, *, arms: Sequence[str] | None = None) -> Study:
    """The study in a YAML file, with all its arms or some of them. Paths in it are relative to it.

    Raises: ValueError that names the file and what is wrong: also any arm whose configuration is.
    """
    tree = yaml_text.read_file(path)
    try:
        fields = Schema(_StudyFields).build(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := set(arms or ()) - fields.arms.keys():
        raise ValueError(
            f"{path} has no arm {', '.join(sorted(unknown))}; it has {', '.join(fields.arms)}."
        )
    study = Study(
        name=fields.name,
        config=path.parent / fields.config,
        seeds=fields.seeds,
        arms={
            name: Arm(
                overrides={**fields.set, **(arm.set if arm else {})},
                equal_tokens=arm.equal_tokens if arm else None,
            )
            for name, arm in fields.arms.items()
            if arms is None or name in arms
        },
    )
    _check(study, path)
    return study


def _check(study: Study, path: Path) -> None:
    if len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"{path}: a seed is listed twice in {list(study.seeds)}.")
    done: set[str] = set()
    for name, arm in study.arms.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{path}: '{name}' can't be the name of an arm's folder.")
        try:
            configfile.load(study.config, _options(arm.overrides))
        except ValueError as error:
            raise ValueError(f"{path}: arm '{name}': {error}") from error
        if arm.equal_tokens:
            for other in (arm.equal_tokens.arm, arm.equal_tokens.paced_by):
                if other not in done:
                    raise ValueError(
                        f"{path}: arm '{name}' needs the tokens of '{other}', which must come "
                        f"before it; there are {', '.join(done) or 'none'}."
                    )
        done.add(name)


def run(study: Study, folder: Path) -> None:
    """Run what is not finished, arm by arm, each over all seeds.

    Raises: RuntimeError with the last lines of a run that failed; the study can be started again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(_runs(study, folder))
    for number, (name, seed, run_dir) in enumerate(runs, start=1):
        label = f"{number} of {len(runs)}: {name}, seed {seed}"
        if is_finished(run_dir):
            print(f"{label}: finished before", flush=True)
            continue
        print(f"{label}: {run_dir}", flush=True)
        overrides = {**study.arms[name].overrides, "seed": seed}
        if equal := study.arms[name].equal_tokens:
            overrides["train.steps"] = equal_steps(folder, equal, seed)
        done = subprocess.run(
            [
                sys.executable, "-m", "cipo_jax.cli", "train", str(study.config),
                "--run-dir", str(run_dir), *_options(overrides),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / "output.txt").open("a") as file:
            file.write(done.stdout)
        if done.returncode or not is_finished(run_dir):
            last = "\n".join(done.stdout.splitlines()[-15:])
            raise RuntimeError(
                f"{label} ended with status {done.returncode}. Its last lines:\n{last}\nThe same "
                "command continues it."
            )


def _runs(study: Study, folder: Path) -> Iterator[tuple[str, int, Path]]:
    for name in study.arms:
        for seed in study.seeds:
            yield name, seed, folder / name / f"seed-{seed}"


def _options(overrides: Mapping[str, Any]) -> list[str]:
    return [
        f"--{name}={json.dumps(v) if not isinstance(v, str) else v}"
        for name, v in overrides.items()
    ]


def equal_steps(folder: Path, equal: EqualTokens, seed: int) -> int:
    """Steps at the pace of one arm that sample as many tokens as all steps of another."""
    wanted = sampled_tokens(folder / equal.arm / f"seed-{seed}")
    pace = sampled_tokens(folder / equal.paced_by / f"seed-{seed}")
    return max(1, round(sum(wanted) / (sum(pace) / len(pace))))


def sampled_tokens(run_dir: Path) -> list[int]:
    """Tokens that a run sampled in each step, both streams together; evaluations don't count."""
    return [step["tokens/sampled"] for step in read_metrics(run_dir)]
