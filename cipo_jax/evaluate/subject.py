"""The model that `cipo evaluate` measures: a run's checkpoint, or any model that can be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from cipo_jax.config import MeshShape, PretrainedModel, Prompts, configfile
from cipo_jax.config.model import ModelSource
from cipo_jax.mesh.sharding import make_mesh
from cipo_jax.model.files.load import load_model
from cipo_jax.model.presets import Architecture
from cipo_jax.model.transformer import Params
from cipo_jax.text.prompts import Renderer
from cipo_jax.text.tokenizer import check_fits, eos_ids, load_tokenizer
from cipo_jax.update import policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is measured."""

    name: str
    """As it was asked for; with the step of a run."""
    step: int | None
    """The step of a run's checkpoint; None for a model that is no run."""
    params: Params
    arch: Architecture
    mesh: Mesh
    tokenizer: PreTrainedTokenizerFast
    eos_ids: tuple[int, ...]
    prompts: Prompts
    """How the run renders its prompts, or the defaults."""

    def room(self, max_new_tokens: int) -> int:
        """Tokens that a prompt may have.

        Raises: ValueError if completions leave none.
        """
        room = self.arch.max_position - max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, and {self.name} has "
                f"{self.arch.max_position} positions for prompt and completion: lower it."
            )
        return room

    def renderer(self, max_new_tokens: int) -> Renderer:
        """Prompts as the run renders them, as long as the model has room for."""
        room = self.room(max_new_tokens)
        limits = dataclasses.replace(
            self.prompts,
            max_prompt_tokens=room,
            max_attempt_tokens=max_new_tokens,
            max_correction_prompt_tokens=room,
        )
        return Renderer(self.tokenizer, limits)


def open_subject(
    target: str, *, step: int | None = None, prompts: Mapping[str, Any] | None = None
) -> Subject:
    """A run's folder (its newest checkpoint, or that of `step`; 0 is the model before training), or
    a model: a folder, a .gguf file, a hub id, `package:NAME`.

    Args:
      prompts: fields of `config.Prompts` that differ from the run's, or from the defaults.
    Raises: ValueError that says what is wrong with it.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"There are {jax.process_count()} processes, and an evaluation is one: start it on one "
            "host, with a model that fits its devices."
        )
    mesh = make_mesh(MeshShape())
    config = Path(target) / "config.yaml"
    source: ModelSource = PretrainedModel(path=target)
    rendered = Prompts()
    if config.is_file():
        cfg = configfile.load(config)
        source, rendered = cfg.model, cfg.prompts
        if step == 0:
            params, arch = load_model(source, mesh, seed=cfg.seed)
        else:
            params, arch, step = policy.restore_params(
                cfg, mesh, Path(target) / "checkpoints", step=step
            )
    elif step is None:
        params, arch = load_model(source, mesh)
    else:
        raise ValueError(
            f"--step {step}: {target} is no run's folder (it has no config.yaml), and a model has "
            "no steps."
        )
    tokenizer = load_tokenizer(source)
    check_fits(tokenizer, arch)
    return Subject(
        name=target if step is None else f"{target} step {step}",
        step=step,
        params=params,
        arch=arch,
        mesh=mesh,
        tokenizer=tokenizer,
        eos_ids=eos_ids(source, tokenizer),
        prompts=dataclasses.replace(rendered, **prompts or {}),
    )


def default_output(target: str, subject: Subject) -> Path:
    """`RUN/benchmarks/step-N` for a run, `evaluations/NAME` for a model."""
    if subject.step is not None:
        return Path(target) / "benchmarks" / f"step-{subject.step}"
    name = target.rstrip("/").replace("package:", "").rsplit("/", 1)[-1].removesuffix(".gguf")
    return Path("evaluations") / name
