"""The constants of an architecture, and the constants of known public models.

Nothing here has a default: a constant that is not stated is an error, never a guess. Checkpoints
bring their own constants (`hf.py`, `gguf.py`); the presets are for random models, tests and
planning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FamilyName = Literal["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text"]
"""As `model_type` in the config.json of public checkpoints. Seed-Coder and SmolLM2 are llama."""

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class Llama3RopeScaling:
    """Frequencies slower than the original context are divided by `factor`, fast ones are kept, and
    those between are interpolated (Llama 3.1).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True)
class LinearRopeScaling:
    """All frequencies are divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class SlidingLayers:
    """Layers in which a token sees only the last `window` positions, its own among them, and whose
    rotary positions have a base of their own, without scaling.
    """

    is_sliding: tuple[bool, ...]
    """For each layer; the others see everything before."""
    window: int
    rope_theta: float


@dataclass(frozen=True, kw_only=True)
class Experts:
    """In the place of one MLP, several from which a router chooses for each token."""

    num_experts: int
    num_per_token: int
    is_normalised: bool
    """The weights of the chosen experts are divided by their sum."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every constant of a decoder of the Llama shape: RMSNorm before attention and MLP, rotary
    positions, grouped key/value heads, a gated MLP or several. Hashable: it is a static argument of
    `jax.jit`.
    """

    family: FamilyName
    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    """Of each expert where there are several."""
    activation: Activation
    """Of the MLP's gate."""
    experts: Experts | None
    rope_theta: float
    rope_scaling: Llama3RopeScaling | LinearRopeScaling | None
    sliding: SlidingLayers | None
    query_pre_attn_scalar: int
    """Scores are divided by its root. Apart from some Gemma models it is head_dim."""
    norm_eps: float
    norm_offset: float
    """What the stored scale of a norm lacks: Gemma stores scale - 1."""
    has_post_norms: bool
    """Attention and MLP are normed once more before they are added to the stream."""
    is_embed_scaled: bool
    """Embeddings are multiplied by the root of model_dim."""
    is_tied: bool
    """The embedding is also the head."""
    has_qkv_bias: bool
    has_qk_norm: bool
    max_position: int

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every dimension letter of the parameters."""
        return {
            "V": self.vocab_size,
            "L": self.num_layers,
            "D": self.model_dim,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "H": self.head_dim,
            "F": self.mlp_dim,
            "E": self.experts.num_experts if self.experts else 0,
        }

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, which {self.num_kv_heads} num_kv_heads do not "
                "divide: every key/value head serves the same number of query heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}: rotary positions turn pairs of channels, so it must "
                "be even."
            )
        if self.sliding and len(self.sliding.is_sliding) != self.num_layers:
            raise ValueError(
                f"sliding.is_sliding names {len(self.sliding.is_sliding)} layers of "
                f"{self.num_layers}: every layer either slides or does not."
            )
        if self.experts and not 1 <= self.experts.num_per_token <= self.experts.num_experts:
            raise ValueError(
                f"experts.num_per_token is {self.experts.num_per_token} of "
                f"{self.experts.num_experts} experts: choose at least one, and no more than all."
            )


_PLAIN = {
    "activation": "silu",
    "experts": None,
    "sliding": None,
    "norm_offset": 0.0,
    "has_post_norms": False,
    "is_embed_scaled": False,
    "has_qkv_bias": False,
    "has_qk_norm": False,
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _PLAIN,
    "qwen2": _PLAIN | {"has_qkv_bias": True},
    "qwen3": _PLAIN | {"has_qk_norm": True},
    "qwen3_moe": _PLAIN | {"has_qk_norm": True},
    "gemma3_text": _PLAIN
    | {
        "activation": "gelu_tanh",
        "norm_offset": 1.0,
        "has_post_norms": True,
        "is_embed_scaled": True,
        "has_qk_norm": True,
    },
}


def of_family(family: FamilyName, **constants: Any) -> Architecture:
    """An architecture from the constants that a model states and those that its family fixes.

    Scores are divided by the root of head_dim where the model does not state another number: only
    Gemma's configs have one.
    """
    scalar = constants.get("query_pre_attn_scalar", constants["head_dim"])
    fixed = _FAMILIES[family] | {"query_pre_attn_scalar": scalar}
    return Architecture(**fixed | {"family": family} | constants)


def every_nth_sees_all(num_layers: int, nth: int) -> tuple[bool, ...]:
    """`SlidingLayers.is_sliding` where layers nth, 2 nth, ... see everything (counted from 1)."""
    return tuple(bool((layer + 1) % nth) for layer in range(num_layers))


# --- tiny models ---------------------------------------------------------------------------------

# Distinct dimensions and num_heads * head_dim != model_dim, so that no transposed or swapped axis
# can hide in a test.
_TINY = {
    "vocab_size": 320,
    "model_dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 48,
    "max_position": 2048,
}
_TINY_QWEN = _TINY | {
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "norm_eps": 1e-6,
    "is_tied": True,
}

# --- public models -------------------------------------------------------------------------------
# As in the config.json of each; tests/model/test_transformer.py holds the sizes that follow from
# them against those of the public checkpoints.

_LLAMA3_SCALING = Llama3RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
)
_LLAMA3 = {
    "vocab_size": 128_256,
    "rope_theta": 500_000.0,
    "norm_eps": 1e-5,
    "max_position": 131_072,
}
_LLAMA32 = _LLAMA3 | {
    "rope_scaling": Llama3RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192
    ),
    "is_tied": True,
}
_SMOLLM2 = {
    "vocab_size": 49_152,
    "head_dim": 64,
    "rope_scaling": None,
    "norm_eps": 1e-5,
    "is_tied": True,
    "max_position": 8192,
}
_QWEN25 = {
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "norm_eps": 1e-6,
    "max_position": 32_768,
}
_QWEN3 = {
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_kv_heads": 8,
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "norm_eps": 1e-6,
    "max_position": 40_960,
}
_GEMMA3 = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "norm_eps": 1e-6,
    "is_tied": True,
}


def _sliding(num_layers: int, window: int) -> SlidingLayers:
    return SlidingLayers(
        is_sliding=every_nth_sees_all(num_layers, 6), window=window, rope_theta=10_000.0
    )


PRESETS: dict[str, Architecture] = {
    "tiny-llama": of_family(
        "llama",
        **_TINY,
        rope_theta=10_000.0,
        rope_scaling=Llama3RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64
        ),
        norm_eps=1e-5,
        is_tied=False,
    ),
    "tiny-qwen2": of_family("qwen2", **_TINY_QWEN),
    "tiny-qwen3": of_family("qwen3", **_TINY_QWEN),
    "tiny-qwen3-moe": of_family(
        "qwen3_moe",
        **_TINY_QWEN | {"is_tied": False, "mlp_dim": 24},
        experts=Experts(num_experts=6, num_per_token=2, is_normalised=True),
    ),
    "tiny-gemma3": of_family(
        "gemma3_text",
        **_TINY,
        query_pre_attn_scalar=24,
        rope_theta=1_000_000.0,
        rope_scaling=LinearRopeScaling(factor=8.0),
        sliding=SlidingLayers(is_sliding=(True, False, True), window=6, rope_theta=10_000.0),
        norm_eps=1e-6,
        is_tied=True,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": of_family(
        "llama",
        **_SMOLLM2,
        model_dim=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        mlp_dim=1536,
        rope_theta=100_000.0,
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": of_family(
        "llama",
        **_SMOLLM2,
        model_dim=960,
        num_layers=32,
        num_heads=15,
        num_kv_heads=5,
        mlp_dim=2560,
        rope_theta=100_000.0,
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": of_family(
        "llama",
        **_SMOLLM2,
        model_dim=2048,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        mlp_dim=8192,
        rope_theta=130_000.0,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": of_family(
        "llama",
        **_LLAMA32,
        model_dim=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=8192,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": of_family(
        "llama",
        **_LLAMA32,
        model_dim=3072,
        num_layers=28,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=8192,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": of_family(
        "llama",
        **_LLAMA3,
        rope_scaling=_LLAMA3_SCALING,
        is_tied=False,
        model_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14_336,
    ),
    "ByteDance-Seed/Seed-Coder-8B-Instruct": of_family(
        "llama",
        vocab_size=155_136,
        model_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14_336,
        rope_theta=500_000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        is_tied=False,
        max_position=32_768,
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": of_family(
        "qwen2",
        **_QWEN25,
        vocab_size=151_936,
        model_dim=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        mlp_dim=4864,
        is_tied=True,
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": of_family(
        "qwen2",
        **_QWEN25,
        vocab_size=151_936,
        model_dim=1536,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=8960,
        is_tied=True,
    ),
    "Qwen/Qwen2.5-3B-Instruct": of_family(
        "qwen2",
        **_QWEN25,
        vocab_size=151_936,
        model_dim=2048,
        num_layers=36,
        num_heads=16,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=11_008,
        is_tied=True,
    ),
    "Qwen/Qwen2.5-7B-Instruct": of_family(
        "qwen2",
        **_QWEN25,
        vocab_size=152_064,
        model_dim=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        mlp_dim=18_944,
        is_tied=False,
    ),
    "Qwen/Qwen3-0.6B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=1024,
        num_layers=28,
        num_heads=16,
        mlp_dim=3072,
        is_tied=True,
    ),
    "Qwen/Qwen3-1.7B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=2048,
        num_layers=28,
        num_heads=16,
        mlp_dim=6144,
        is_tied=True,
    ),
    "Qwen/Qwen3-4B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=2560,
        num_layers=36,
        num_heads=32,
        mlp_dim=9728,
        is_tied=True,
    ),
    "Qwen/Qwen3-8B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=4096,
        num_layers=36,
        num_heads=32,
        mlp_dim=12_288,
        is_tied=False,
    ),
    "Qwen/Qwen3-14B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=5120,
        num_layers=40,
        num_heads=40,
        mlp_dim=17_408,
        is_tied=False,
    ),
    "Qwen/Qwen3-32B": of_family(
        "qwen3",
        **_QWEN3,
        model_dim=5120,
        num_layers=64,
        num_heads=64,
        mlp_dim=25_600,
        is_tied=False,
    ),
    "Qwen/Qwen3-30B-A3B": of_family(
        "qwen3_moe",
        **_QWEN3 | {"num_kv_heads": 4},
        model_dim=2048,
        num_layers=48,
        num_heads=32,
        mlp_dim=768,
        experts=Experts(num_experts=128, num_per_token=8, is_normalised=True),
        is_tied=False,
    ),
    "google/gemma-3-270m-it": of_family(
        "gemma3_text",
        **_GEMMA3,
        vocab_size=262_144,
        model_dim=640,
        num_layers=18,
        num_heads=4,
        num_kv_heads=1,
        mlp_dim=2048,
        rope_scaling=None,
        sliding=_sliding(18, 512),
        max_position=32_768,
    ),
    "google/gemma-3-1b-it": of_family(
        "gemma3_text",
        **_GEMMA3,
        vocab_size=262_144,
        model_dim=1152,
        num_layers=26,
        num_heads=4,
        num_kv_heads=1,
        mlp_dim=6912,
        rope_scaling=None,
        sliding=_sliding(26, 512),
        max_position=32_768,
    ),
    # The decoder of the model that also reads images.
    "google/gemma-3-4b-it": of_family(
        "gemma3_text",
        **_GEMMA3,
        vocab_size=262_208,
        model_dim=2560,
        num_layers=34,
        num_heads=8,
        num_kv_heads=4,
        mlp_dim=10_240,
        rope_scaling=LinearRopeScaling(factor=8.0),
        sliding=_sliding(34, 1024),
        max_position=131_072,
    ),
}
