"""The optimizer, the loop, the shape of the train step and the device mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require


@dataclass(frozen=True, kw_only=True)
class _Descent:
    """What all optimizers share: the rate and its schedule, decay, and clipping by the global
    gradient norm."""

    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to `final_factor` of the rate by the end of the run."""
    warmup_steps: int = 0
    """Updates over which the rate rises; a run with fewer ends while it rises."""
    final_factor: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate >= 0, "optimizer.learning_rate can't be negative.")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps can't be negative.")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm must be positive.")


@dataclass(frozen=True, kw_only=True)
class AdamW(_Descent):
    """Two moments per parameter: 8 bytes in float32, 6 with the first one in bfloat16."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored first moment. In bfloat16 it is rounded to nearest, which leaves it within
    beta1 / (1 - beta1) * 2^-8 of itself, 3.5 % at 0.9. The second one stays in float32: a step of
    1 - beta2 = 0.001 is less than half of bfloat16's last place, so it would stand still."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} is {value}; in [0, 1).")
        require(
            self.first_moment_dtype == "float32" or 1 - self.beta1 >= 2**-6,
            f"optimizer.first_moment_dtype is bfloat16 with beta1 {self.beta1}: rounding to 8 bits "
            "swallows steps of 1 - beta1 below 1/64. Use float32, or a beta1 of 0.98 or less.",
        )


@dataclass(frozen=True, kw_only=True)
class Adafactor(_Descent):
    """No first moment, and a second one kept as row and column means of each matrix: next to no
    bytes per parameter."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: float = 0.8
    """The second moment's decay at update k is 1 - k^-decay_rate."""
    update_clip: float = 1.0
    """Bound on the root mean square of an array's update before the rate."""
    min_factored_dim: int = 128
    """Arrays are factored over their two largest axes where both are at least this long; others
    keep a full second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay_rate < 1, f"optimizer.decay_rate is {self.decay_rate}; in (0, 1).")
        require(self.update_clip > 0, "optimizer.update_clip must be positive.")
        require(self.min_factored_dim >= 2, "optimizer.min_factored_dim is at least 2.")


Optimizer = AdamW | Adafactor


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop and the shape of the train step."""

    steps: int = 500
    prompts_per_step: int = 8
    """B, base prompts per step."""
    updates_per_step: int = 1
    """mu, optimizer updates on each mixed batch."""
    row_tokens: int = 10_240
    """Length T of a packed row; at least the longest correction prompt plus its completion."""
    rows_per_microbatch: int = 1
    """Rows computed at once over the whole mesh; a multiple of data * fsdp * expert."""
    share_prompts: bool = True
    """Completions of one prompt share one copy of it in a row. Exact; switch it off where an
    attention kernel without prefix support is wanted."""
    skip_zero_signal: bool = True
    """Leave sequences with zero advantage out of the batch when nothing else (a KL penalty) would
    train on them. Exact: they stay in the denominators."""
    logprob_chunk: int = 1024
    """Sampled tokens whose logits exist at one time on a device."""
    remat: Literal["none", "products", "attention", "block"] = "block"
    """What the backward pass recomputes: nothing; all but products with weights; all but the output
    of attention; all of a layer. From the fastest to the smallest; docs/memory.md has figures."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of matrix products; parameters, softmax and log-probs stay in float32. On CPUs, bfloat16 is
    many times slower than float32."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "prompts_per_step",
            "updates_per_step",
            "row_tokens",
            "rows_per_microbatch",
            "logprob_chunk",
        ):
            require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; >= 1.")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; their product is the number of devices. -1 for `fsdp`: the rest."""

    data: int = 1
    fsdp: int = -1
    expert: int = 1
    """Of models with experts: each device of the axis has a share of them."""
    tensor: int = 1
    slices: int = 1
    """Of a job on several TPU slices. They split `data`, whose exchange, once per update, is all
    that crosses the network between them."""

    def __post_init__(self) -> None:
        require(
            self.slices >= 1 and self.data % self.slices == 0,
            f"mesh.slices is {self.slices}, which does not divide mesh.data {self.data}: slices "
            "split `data`, so make it a multiple of them.",
        )
        require(
            min(self.data, self.expert, self.tensor) >= 1 and (self.fsdp >= 1 or self.fsdp == -1),
            f"mesh: sizes are at least 1 (fsdp may be -1 for the rest), got {self}.",
        )
