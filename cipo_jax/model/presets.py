"""The constants of an architecture, and the constants of known public models.

Nothing here has a default: a constant that is not stated is an error, never a guess. Checkpoints
bring their own constants (`hf.py`, `gguf.py`); the presets are for random models, tests and
planning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
    """Several MLPs in place of one; a router chooses some for each token."""

    num_experts: int
    num_per_token: int
    is_normalised: bool
    """The weights of the chosen experts are divided by their sum."""


DIMENSIONS = {
    "V": "vocab_size",
    "L": "num_layers",
    "D": "model_dim",
    "N": "num_heads",
    "K": "num_kv_heads",
    "H": "head_dim",
    "F": "mlp_dim",
}
"""Dimension letter -> the constant of `Architecture` that states its length."""


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
    """The width of each expert where there are several."""
    activation: Activation
    """The function of the MLP's gate."""
    experts: Experts | None
    rope_theta: float
    rope_scaling: Llama3RopeScaling | LinearRopeScaling | None
    sliding: SlidingLayers | None
    query_pre_attn_scalar: int
    """Scores are divided by its root. Apart from some Gemma models it is head_dim."""
    norm_eps: float
    norm_offset: float
    """Added to the stored scale of a norm: Gemma stores scale - 1."""
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
        lengths = {letter: getattr(self, name) for letter, name in DIMENSIONS.items()}
        return lengths | {"E": self.experts.num_experts if self.experts else 0}

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


# --- tables --------------------------------------------------------------------------------------


def _model(family: FamilyName, **constants: Any) -> Architecture:
    """`of_family`, with dimensions by their letters."""
    return of_family(family, **{DIMENSIONS.get(name, name): x for name, x in constants.items()})


_llama3_scaling = partial(Llama3RopeScaling, low_freq_factor=1.0, high_freq_factor=4.0)


def _gemma3_layers(num_layers: int, window: int) -> SlidingLayers:
    return SlidingLayers(
        is_sliding=every_nth_sees_all(num_layers, 6), window=window, rope_theta=10_000.0
    )


# Distinct dimensions and N * H != D, so that no transposed or swapped axis can hide in a test.
_tiny = partial(_model, L=3, D=32, N=4, K=2, H=16, V=320, max_position=2048)
_tiny_qwen = partial(_tiny, rope_theta=1_000_000.0, rope_scaling=None, norm_eps=1e-6)

# Public models, as in the config.json of each; tests/model/test_transformer.py holds the sizes that
# follow from them against those of the public checkpoints.
_smollm2 = partial(
    _model, "llama", H=64, V=49_152, rope_scaling=None, norm_eps=1e-5, is_tied=True,
    max_position=8192,
)  # fmt: skip
_llama3 = partial(
    _model, "llama", K=8, V=128_256, rope_theta=500_000.0, norm_eps=1e-5, max_position=131_072
)
_llama32 = partial(
    _llama3, rope_scaling=_llama3_scaling(factor=32.0, original_max_position=8192), is_tied=True
)
_qwen25 = partial(
    _model, "qwen2", rope_theta=1_000_000.0, rope_scaling=None, norm_eps=1e-6, max_position=32_768
)
_qwen3_or_moe = partial(
    _model, H=128, V=151_936, rope_theta=1_000_000.0, rope_scaling=None, norm_eps=1e-6,
    max_position=40_960,
)  # fmt: skip
_qwen3 = partial(_qwen3_or_moe, "qwen3", K=8)
_gemma3 = partial(
    _model, "gemma3_text", H=256, query_pre_attn_scalar=256, rope_theta=1_000_000.0, norm_eps=1e-6,
    is_tied=True,
)  # fmt: skip
_gemma3_text_only = partial(_gemma3, K=1, V=262_144, rope_scaling=None, max_position=32_768)

PRESETS: dict[str, Architecture] = {
    "tiny-llama": _tiny(
        "llama",
        F=48,
        rope_theta=10_000.0,
        rope_scaling=_llama3_scaling(factor=8.0, original_max_position=64),
        norm_eps=1e-5,
        is_tied=False,
    ),
    "tiny-qwen2": _tiny_qwen("qwen2", F=48, is_tied=True),
    "tiny-qwen3": _tiny_qwen("qwen3", F=48, is_tied=True),
    "tiny-qwen3-moe": _tiny_qwen(
        "qwen3_moe",
        F=24,
        experts=Experts(num_experts=6, num_per_token=2, is_normalised=True),
        is_tied=False,
    ),
    "tiny-gemma3": _tiny(
        "gemma3_text",
        F=48,
        query_pre_attn_scalar=24,
        rope_theta=1_000_000.0,
        rope_scaling=LinearRopeScaling(factor=8.0),
        sliding=SlidingLayers(is_sliding=(True, False, True), window=6, rope_theta=10_000.0),
        norm_eps=1e-6,
        is_tied=True,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(
        L=30, D=576, N=9, K=3, F=1536, rope_theta=100_000.0
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(
        L=32, D=960, N=15, K=5, F=2560, rope_theta=100_000.0
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(
        L=24, D=2048, N=32, K=32, F=8192, rope_theta=130_000.0
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _llama32(L=16, D=2048, N=32, H=64, F=8192),
    "meta-llama/Llama-3.2-3B-Instruct": _llama32(L=28, D=3072, N=24, H=128, F=8192),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(
        L=32, D=4096, N=32, H=128, F=14_336, is_tied=False,
        rope_scaling=_llama3_scaling(factor=8.0, original_max_position=8192),
    ),
    "ByteDance-Seed/Seed-Coder-8B-Instruct": _model(
        "llama", L=32, D=4096, N=32, K=8, H=128, F=14_336, V=155_136, is_tied=False,
        rope_theta=500_000.0, rope_scaling=None, norm_eps=1e-6, max_position=32_768,
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(
        L=24, D=896, N=14, K=2, H=64, F=4864, V=151_936, is_tied=True
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(
        L=28, D=1536, N=12, K=2, H=128, F=8960, V=151_936, is_tied=True
    ),
    "Qwen/Qwen2.5-3B-Instruct": _qwen25(
        L=36, D=2048, N=16, K=2, H=128, F=11_008, V=151_936, is_tied=True
    ),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(
        L=28, D=3584, N=28, K=4, H=128, F=18_944, V=152_064, is_tied=False
    ),
    "Qwen/Qwen3-0.6B": _qwen3(L=28, D=1024, N=16, F=3072, is_tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(L=28, D=2048, N=16, F=6144, is_tied=True),
    "Qwen/Qwen3-4B": _qwen3(L=36, D=2560, N=32, F=9728, is_tied=True),
    "Qwen/Qwen3-8B": _qwen3(L=36, D=4096, N=32, F=12_288, is_tied=False),
    "Qwen/Qwen3-14B": _qwen3(L=40, D=5120, N=40, F=17_408, is_tied=False),
    "Qwen/Qwen3-32B": _qwen3(L=64, D=5120, N=64, F=25_600, is_tied=False),
    "Qwen/Qwen3-30B-A3B": _qwen3_or_moe(
        "qwen3_moe", L=48, D=2048, N=32, K=4, F=768, is_tied=False,
        experts=Experts(num_experts=128, num_per_token=8, is_normalised=True),
    ),
    "google/gemma-3-270m-it": _gemma3_text_only(
        L=18, D=640, N=4, F=2048, sliding=_gemma3_layers(18, window=512)
    ),
    "google/gemma-3-1b-it": _gemma3_text_only(
        L=26, D=1152, N=4, F=6912, sliding=_gemma3_layers(26, window=512)
    ),
    # The decoder of the model that also reads images.
    "google/gemma-3-4b-it": _gemma3(
        L=34, D=2560, N=8, K=4, F=10_240, V=262_208, sliding=_gemma3_layers(34, window=1024),
        rope_scaling=LinearRopeScaling(factor=8.0), max_position=131_072,
    ),
}  # fmt: skip
