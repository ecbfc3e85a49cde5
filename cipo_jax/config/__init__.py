"""The configuration of a run: frozen, hashable dataclasses, checked when they are built.

A choice between variants is a choice of dataclass (`kind` names it in YAML), so no field of one
variant exists in another. Nothing is mutated after construction; derived values are properties.
One file a section. `configfile.py` reads and writes them as YAML, `schema.py` checks names and
types, and the text below a field is its help (`meanings.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cipo_jax.config.adapter import AdapterConfig, Lora, NoAdapter, Projection
from cipo_jax.config.correction import (
    Band,
    CipoReimpl,
    Controller,
    Correction,
    CorrectionAdvantage,
    FailuresOnly,
    Fixed,
    Preference,
    Robust,
    Soft,
)
from cipo_jax.config.evaluation import Benchmarking, Evaluation
from cipo_jax.config.importance import (
    Importance,
    MaskedSequence,
    MaskedToken,
    SequenceTis,
    TokenTis,
    Uncorrected,
)
from cipo_jax.config.model import ModelSource, PretrainedModel, RandomModel
from cipo_jax.config.objective import (
    Aggregation,
    Cispo,
    Dapo,
    DrGrpo,
    Grpo,
    Gspo,
    Kl,
    Objective,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    Rloo,
)
from cipo_jax.config.parity import Parity, ParityMask, ParityOff, ParityStop, ParityWarn
from cipo_jax.config.require import require
from cipo_jax.config.sampling import Prompts, Sampling
from cipo_jax.config.storage import Checkpoint, Log
from cipo_jax.config.tasks import FileTask, GeneratedTask, GymTask, HubTask, TaskSource
from cipo_jax.config.training import Adafactor, AdamW, MeshShape, Optimizer, Train
from cipo_jax.config.verify import Verify

__all__ = [
    "Adafactor",
    "AdamW",
    "AdapterConfig",
    "Aggregation",
    "Band",
    "Benchmarking",
    "Checkpoint",
    "CipoReimpl",
    "Cispo",
    "Config",
    "Controller",
    "Correction",
    "CorrectionAdvantage",
    "Dapo",
    "DrGrpo",
    "Evaluation",
    "FailuresOnly",
    "FileTask",
    "Fixed",
    "GeneratedTask",
    "Grpo",
    "Gspo",
    "GymTask",
    "HubTask",
    "Importance",
    "Kl",
    "Log",
    "Lora",
    "MaskedSequence",
    "MaskedToken",
    "MeshShape",
    "ModelSource",
    "NoAdapter",
    "Objective",
    "Optimizer",
    "Parity",
    "ParityMask",
    "ParityOff",
    "ParityStop",
    "ParityWarn",
    "Preference",
    "PretrainedModel",
    "Projection",
    "Prompts",
    "RandomModel",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "Rloo",
    "Robust",
    "Sampling",
    "SequenceTis",
    "Soft",
    "TaskSource",
    "TokenTis",
    "Train",
    "Uncorrected",
    "Verify",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str
    """Folder of the run under `runs/` where --run-dir is not given."""
    seed: int = 0
    """Seed of every random draw of the run: its weights, if they are random, the order of the
    problems, and all samples. Which problems are held out depends on `tasks` alone."""
    model: ModelSource
    """The model that is trained."""
    adapter: AdapterConfig = field(default_factory=NoAdapter)
    """Which of its weights are trained."""
    tasks: TaskSource
    """Where the problems come from."""
    prompts: Prompts = field(default_factory=Prompts)
    """How problems and attempts become token sequences."""
    sampling: Sampling = field(default_factory=Sampling)
    """How completions are drawn."""
    verify: Verify = field(default_factory=Verify)
    """How completions are judged."""
    correction: Correction = field(default_factory=Correction)
    """The second stream: corrections of the policy's own attempts."""
    objective: Objective = field(default_factory=Grpo)
    """The quantity that the policy loss maximises."""
    kl: Kl = field(default_factory=Kl)
    """Penalty on the divergence from the initial policy."""
    importance: Importance = field(default_factory=Uncorrected)
    """Correction of the gap between sampler and trainer."""
    parity: Parity = field(default_factory=ParityWarn)
    """Watch over that gap."""
    optimizer: Optimizer = field(default_factory=AdamW)
    """How gradients change the weights."""
    train: Train = field(default_factory=Train)
    """Number and size of the steps."""
    mesh: MeshShape = field(default_factory=MeshShape)
    """How the work is split over devices."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Measurements on held-out problems."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """When the state is saved."""
    log: Log = field(default_factory=Log)
    """Where metrics go beside metrics.jsonl, and how often rollouts are stored."""

    def __post_init__(self) -> None:
        longest = self.longest_sequence
        require(
            self.train.row_tokens >= longest,
            f"train.row_tokens is {self.train.row_tokens}, but the longest prompt with its "
            f"completion has {longest} tokens and must fit in one row: raise train.row_tokens, or "
            "lower prompts.max_correction_prompt_tokens or sampling.max_new_tokens.",
        )
        require(
            self.correction.context != "foreign" or self.train.prompts_per_step >= 2,
            "correction.context 'foreign' shows an attempt at another problem of the step: "
            f"train.prompts_per_step must be at least 2, it is {self.train.prompts_per_step}.",
        )
        inert = self.correction.advantage == "std" and self.correction.risk_penalty > 0
        require(
            not (self.has_correction and inert),
            "correction.risk_penalty has no effect with correction.advantage 'std': within a group "
            "that shares one anchor the rewards {1, -lambda_r} are a positive affine image of "
            "{1, 0}, and standardising removes it. Use 'raw_std', or set correction.risk_penalty "
            "to 0.",
        )
        require(
            not (isinstance(self.parity, ParityMask) and self.train.updates_per_step > 1),
            f"parity.kind is mask, and train.updates_per_step is {self.train.updates_per_step}: "
            "from the second update on the policies differ by the updates before, and the mask "
            "would be another at each of them. Use one update per step, parity.kind stop, or "
            "importance.kind masked_sequence.",
        )

    @property
    def num_anchors(self) -> int:
        """M, correction prompts per step."""
        return math.floor(self.correction.prompts_per_base_prompt * self.train.prompts_per_step)

    @property
    def has_correction(self) -> bool:
        return self.num_anchors > 0

    @property
    def has_old_logprob(self) -> bool:
        """Whether a batch is scored before its first update: what several updates on it need as the
        denominator of the policy ratio, where the sampler's log-probs are corrected apart."""
        return self.train.updates_per_step > 1 and not isinstance(self.importance, Uncorrected)

    @property
    def trains_on_zero_signal(self) -> bool:
        """Whether the loss has a term for tokens without an advantage."""
        return self.kl.is_in_loss or self.objective.entropy_bonus > 0

    @property
    def correction_weight(self) -> float:
        """lambda_c where there is a correction stream, else 0: plain RLVR is then one program,
        whichever of the two switched the stream off."""
        return self.correction.weight if self.has_correction else 0.0

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt and completion that a row must hold."""
        prompt = self.prompts.max_prompt_tokens
        if self.has_correction:
            prompt = max(prompt, self.prompts.max_correction_prompt_tokens)
        return prompt + self.sampling.max_new_tokens
