"""The optimizer, the loop, the shapes of the train step and of the device mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cipo_jax.config.require import require, require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class _Descent:
    """The settings that all optimizers share: the rate and its schedule, decay, and clipping by the
    global gradient norm."""

    learning_rate: float = 1e-6
    """The highest rate, after the warm-up. 1e-6 is inferred from the open re-implementation."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to `final_factor` of the rate by the end of the run."""
    warmup_steps: int = 0
    """Updates over which the rate rises; a run with fewer ends while it rises."""
    final_factor: float = 0.0
    """Share of `learning_rate` that is left at the end of a linear or cosine schedule."""
    weight_decay: float = 0.0
    """Share of each parameter that an update takes away, times the rate; norms and biases have no
    decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it. 1 is inferred from the open
    re-implementation."""

    def __post_init__(self) -> None:
        not_negative = ("learning_rate", "warmup_steps", "final_factor", "weight_decay")
        require_at_least(0, self, "optimizer", *not_negative)
        require_positive(self, "optimizer", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class AdamW(_Descent):
    """Two moments per parameter: 8 bytes in float32, 6 with the first one in bfloat16. Loshchilov
    and Hutter 2019, arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = 0.9
    """Decay of the first moment (the mean gradient) per update, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the second moment (the mean squared gradient) per update, in [0, 1)."""
    eps: float = 1e-8
    """Added to the square root of the second moment."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment is stored. bfloat16 rounds it to nearest, which leaves it
    within beta1 / (1 - beta1) * 2^-8 of itself, 3.5 % at 0.9. The second one stays in float32: a
    step of 1 - beta2 = 0.001 is less than half of bfloat16's last place, so it would never move."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} is {value}; it must be in [0, 1).")
        require_positive(self, "optimizer", "eps")
        require(
            self.first_moment_dtype == "float32" or 1 - self.beta1 >= 2**-6,
            f"optimizer.first_moment_dtype is bfloat16 with beta1 {self.beta1}: rounding to 8 bits "
            "swallows steps of 1 - beta1 below 1/64. Use float32, or a beta1 of 0.98 or less.",
        )


@dataclass(frozen=True, kw_only=True)
class Adafactor(_Descent):
    """No first moment, and a second one kept as row and column means of each matrix: next to no
    bytes per parameter. Shazeer and Stern 2018, arXiv 1804.04235, with a given rate."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: float = 0.8
    """The second moment's decay at update k is 1 - k^-decay_rate, in (0, 1). 0.8 is the paper's."""
    update_clip: float = 1.0
    """Bound on the root mean square of an array's update before the rate. 1 is the paper's."""
    min_factored_dim: int = 128
    """Arrays are factored over their two largest axes where both are at least this long; others
    keep a full second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.decay_rate < 1,
            f"optimizer.decay_rate is {self.decay_rate}; it must be in (0, 1).",
        )
        require_positive(self, "optimizer", "update_clip")
        require_at_least(2, self, "optimizer", "min_factored_dim")


Optimizer = AdamW | Adafactor


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop and the shape of the train step."""

    steps: int = 500
    """Steps of the run: sample, judge, update. 500 is stated of the paper's runs."""
    prompts_per_step: int = 8
    """Q, base prompts per step."""
    updates_per_step: int = 1
    """mu, optimizer updates on each mixed batch."""
    row_tokens: int = 10_240
    """Length T of a packed row; at least the longest correction prompt plus its completion."""
    rows_per_microbatch: int = 1
    """Rows computed at once over the whole mesh; a multiple of data * fsdp * expert."""
    share_prompts: bool = True
    """Completions of one prompt share one copy of it in a row. Exact; switch it off where an
    attention kernel without prefix support is wanted."""
    logprob_chunk: int = 1024
    """Sampled tokens whose logits exist at one time on a device."""
    remat: Literal["none", "products", "attention", "block"] = "block"
    """The part of a layer that the backward pass recomputes: none of it; all but products with
    weights; all but the output of attention; all of it. From the fastest to the one with the
    least memory; docs/memory.md has figures."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matrix products; parameters, softmax and log-probs stay in float32. On CPUs, bfloat16
    is many times slower than float32."""

    def __post_init__(self) -> None:
        require_at_least(
            1,
            self,
            "train",
            "steps",
            "prompts_per_step",
            "updates_per_step",
            "row_tokens",
            "rows_per_microbatch",
            "logprob_chunk",
        )


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices along each axis; their product is the number of devices. -1 for `fsdp`: the rest."""

    data: int = 1
    """Devices that split the rows of a batch and each hold all that the other axes leave of the
    parameters."""
    fsdp: int = -1
    """Devices that split the rows, and each store a piece of every parameter; -1: all devices that
    the other axes leave."""
    expert: int = 1
    """Devices that split the rows, and the experts of a layer in models that have them."""
    tensor: int = 1
    """Devices that split attention heads, the channels of the MLP and the vocabulary."""
    slices: int = 1
    """TPU slices of the job. They split `data`, whose exchange, once per update, is all that
    crosses the network between them."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "mesh", "data", "expert", "tensor", "slices")
        require(
            self.fsdp >= 1 or self.fsdp == -1,
            f"mesh.fsdp is {self.fsdp}; it must be at least 1, or -1 for the devices that are "
            "left.",
        )
        require(
            self.data % self.slices == 0,
            f"mesh.slices is {self.slices}, which does not divide mesh.data {self.data}: slices "
            "split `data`, so make it a multiple of them.",
        )
