"""The constants of a model in config.json, as Hugging Face transformers writes it, in and out.

None is assumed: a config that does not state its rotary base is an error, and so is a feature that
this decoder does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from cipo_jax.model.presets import (
    Architecture,
    Experts,
    FamilyName,
    LinearRopeScaling,
    Llama3RopeScaling,
    SlidingLayers,
    every_nth_sees_all,
    of_family,
)

_CLASSES: dict[FamilyName, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


_UNSUPPORTED = {
    "mlp_bias": "has no biases in its MLP",
    "quantization_config": "trains float weights: use the model before quantisation",
    "attn_logit_softcapping": "caps no logits",
    "final_logit_softcapping": "caps no logits",
    "use_bidirectional_attention": "only looks back",
}
"""Keys that a config must leave out, or set to null, false or 0, and the rule for each."""


@dataclass(frozen=True)
class _ConfigFile:
    """A config, and where it is from, for messages."""

    values: Mapping[str, Any]
    source: str

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def stated(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise ValueError(
                f"{self.source} does not state {key}, and no constant of a model is assumed here. "
                "Add it with the value that the model was trained with."
            )
        return self.values[key]

    def refuse(self, key: str, rule: str) -> NoReturn:
        value = self.values.get(key)
        raise ValueError(f"{self.source}: {key} is {value!r}; this decoder {rule}.")


def architecture_of(config: Mapping[str, Any], source: str) -> Architecture:
    """The constants that a config states.

    Args:
      source: where it is from, for messages.
    Raises: ValueError if a constant is missing, or if it asks for something that the decoder does
      not do.
    """
    file = _ConfigFile(config, source)
    family = _family(file)
    _check_features(file, family)
    num_layers = file.stated("num_hidden_layers")
    own: dict[str, Any] = {}
    if family == "gemma3_text":
        own = _gemma_constants(file, num_layers)
    else:
        own["rope_theta"], own["rope_scaling"] = _rope(file)
        own["is_tied"] = file.stated("tie_word_embeddings")
    if family == "qwen3_moe":
        own["experts"] = _experts(file)
    return of_family(
        family,
        vocab_size=file.stated("vocab_size"),
        model_dim=file.stated("hidden_size"),
        num_layers=num_layers,
        num_heads=file.stated("num_attention_heads"),
        num_kv_heads=file.stated("num_key_value_heads"),
        head_dim=_head_dim(file, family),
        mlp_dim=file.stated("moe_intermediate_size" if "experts" in own else "intermediate_size"),
        norm_eps=float(file.stated("rms_norm_eps")),
        max_position=file.stated("max_position_embeddings"),
        **own,
    )


def _family(file: _ConfigFile) -> FamilyName:
    stated = file.stated("model_type")
    for family in _CLASSES:
        if stated == family:
            return family
    if stated == "gemma3":
        file.refuse("model_type", "reads the text model alone, whose model_type is gemma3_text")
    file.refuse("model_type", f"covers {', '.join(_CLASSES)}")


def _check_features(file: _ConfigFile, family: FamilyName) -> None:
    """Refuses what the decoder does not do.

    Qwen2 may state attention_bias, where it has no meaning: its q, k and v always have biases.
    """
    is_gemma = family == "gemma3_text"
    key, name = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    if file.stated(key) != name:
        file.refuse(key, f"has an MLP gated by {name} for {family}")
    if file.get("attention_bias") and family != "qwen2":
        rule = "has no bias on its output projection, which this flag adds too"
        file.refuse("attention_bias", rule)
    for key, rule in _UNSUPPORTED.items():
        if file.get(key):
            file.refuse(key, rule)
    if not is_gemma:
        rule = f"attends to the whole sequence in models of {family}"
        if file.get("sliding_window") and file.get("use_sliding_window") is not False:
            file.refuse("sliding_window", rule)
        if set(file.get("layer_types") or ()) - {"full_attention"}:
            file.refuse("layer_types", rule)


def _head_dim(file: _ConfigFile, family: FamilyName) -> int:
    """In Llama and Qwen2 the heads share the width by definition, where no other is stated."""
    head_dim: int
    if file.get("head_dim") is not None or family not in ("llama", "qwen2"):
        head_dim = file.stated("head_dim")
        return head_dim
    head_dim, rest = divmod(file.stated("hidden_size"), file.stated("num_attention_heads"))
    if rest:
        file.refuse("num_attention_heads", "needs head_dim where heads do not divide hidden_size")
    return head_dim


def _experts(file: _ConfigFile) -> Experts:
    if file.stated("decoder_sparse_step") != 1:
        file.refuse("decoder_sparse_step", "has experts in every layer")
    if file.get("mlp_only_layers"):
        file.refuse("mlp_only_layers", "has experts in every layer")
    return Experts(
        # transformers 5 writes num_local_experts.
        num_experts=file.get("num_local_experts") or file.stated("num_experts"),
        num_per_token=file.stated("num_experts_per_tok"),
        is_normalised=file.stated("norm_topk_prob"),
    )


def _gemma_constants(file: _ConfigFile, num_layers: int) -> dict[str, Any]:
    theta, scaling, sliding_theta = _gemma_rope(file)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "sliding": SlidingLayers(
            is_sliding=_is_sliding(file, num_layers),
            window=file.stated("sliding_window"),
            rope_theta=sliding_theta,
        ),
        "query_pre_attn_scalar": file.stated("query_pre_attn_scalar"),
        # The head is the embedding by definition, and public configs do not say so.
        "is_tied": file.values.get("tie_word_embeddings", True),
    }


_Scaling = Llama3RopeScaling | LinearRopeScaling | None


def _rope(file: _ConfigFile) -> tuple[float, _Scaling]:
    """Rotary base and scaling. transformers 5 keeps both in `rope_parameters`; before it, the base
    was at the top level and the scaling in `rope_scaling`.
    """
    parameters = {**(file.get("rope_scaling") or {}), **(file.get("rope_parameters") or {})}
    return _rope_of(file.get("rope_theta"), parameters, file)


def _gemma_rope(file: _ConfigFile) -> tuple[float, _Scaling, float]:
    """Base and scaling of the layers that see everything, and the base of the others.
    transformers 5 keeps them in `rope_parameters` by kind of layer; before it, they were at the top
    level.
    """
    by_kind = file.get("rope_parameters") or {}
    full = {**(file.get("rope_scaling") or {}), **(by_kind.get("full_attention") or {})}
    theta, scaling = _rope_of(file.get("rope_theta"), full, file)
    sliding = by_kind.get("sliding_attention") or {}
    sliding_theta, sliding_scaling = _rope_of(
        file.get("rope_local_base_freq"),
        sliding,
        replace(file, source=f"{file.source}, sliding layers"),
    )
    if sliding_scaling is not None:
        raise ValueError(
            f"{file.source}: sliding layers with rotary scaling {sliding}; this decoder scales the "
            "positions of the other layers only."
        )
    return theta, scaling, sliding_theta


def _rope_of(
    stated_theta: Any, parameters: Mapping[str, Any], file: _ConfigFile
) -> tuple[float, _Scaling]:
    """Base and scaling from the base at the top level, if any, and a group of rotary parameters."""
    source = file.source
    thetas = {
        float(value) for value in (stated_theta, parameters.get("rope_theta")) if value is not None
    }
    if len(thetas) != 1:
        found = f"states the bases {sorted(thetas)}" if thetas else "does not state rope_theta"
        raise ValueError(
            f"{source} {found}; rotary positions need one base, at the top level or in "
            "rope_parameters. Set it to the value that the model was trained with."
        )
    theta = thetas.pop()
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", file.get("partial_rotary_factor"))
    if kind not in ("default", "llama3", "linear") or partial not in (None, 1.0):
        raise ValueError(
            f"{source}: rotary positions of type {kind!r} with partial_rotary_factor {partial}; "
            "this decoder turns all channels, with no scaling ('default') or that of 'llama3' or "
            "'linear'."
        )

    def stated(name: str) -> float:
        if parameters.get(name) is None:
            raise ValueError(f"{source}: rotary scaling of type {kind} without {name}.")
        return float(parameters[name])

    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearRopeScaling(factor=stated("factor"))
    return theta, Llama3RopeScaling(
        factor=stated("factor"),
        low_freq_factor=stated("low_freq_factor"),
        high_freq_factor=stated("high_freq_factor"),
        original_max_position=int(stated("original_max_position_embeddings")),
    )


def _is_sliding(file: _ConfigFile, num_layers: int) -> tuple[bool, ...]:
    """Which layers have a window. Before transformers 4.53, every nth layer had none, and the
    config stated n.
    """
    kinds = file.get("layer_types")
    if kinds is None:
        nth = file.get("sliding_window_pattern") or file.get("_sliding_window_pattern")
        if nth is None:
            raise ValueError(
                f"{file.source} states neither layer_types nor sliding_window_pattern: which "
                "layers have a sliding window? Add the one that the model was trained with."
            )
        return every_nth_sees_all(num_layers, nth)
    if len(kinds) != num_layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"{file.source}: layer_types is {kinds}; it must say full_attention or "
            f"sliding_attention for each of {num_layers} layers."
        )
    return tuple(kind == "sliding_attention" for kind in kinds)


def config_of(arch: Architecture, dtype: str) -> dict[str, Any]:
    """The config.json of an architecture, in the older form that all readers know."""
    scaling: dict[str, Any] | None = None
    if isinstance(arch.rope_scaling, LinearRopeScaling):
        scaling = {"rope_type": "linear", "factor": arch.rope_scaling.factor}
    elif arch.rope_scaling is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": arch.rope_scaling.factor,
            "low_freq_factor": arch.rope_scaling.low_freq_factor,
            "high_freq_factor": arch.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": arch.rope_scaling.original_max_position,
        }
    config = {
        "architectures": [_CLASSES[arch.family]],
        "model_type": arch.family,
        "torch_dtype": dtype,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.model_dim,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "rms_norm_eps": arch.norm_eps,
        "rope_theta": arch.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": arch.max_position,
        "tie_word_embeddings": arch.is_tied,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if arch.sliding is None:
        config |= {"hidden_act": "silu", "use_sliding_window": False}
    else:
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": arch.query_pre_attn_scalar,
            "rope_local_base_freq": arch.sliding.rope_theta,
            "sliding_window": arch.sliding.window,
            "layer_types": [
                "sliding_attention" if slides else "full_attention"
                for slides in arch.sliding.is_sliding
            ],
        }
    if arch.experts is None:
        config["intermediate_size"] = arch.mlp_dim
    else:
        config |= {
            "moe_intermediate_size": arch.mlp_dim,
            "num_experts": arch.experts.num_experts,
            "num_experts_per_tok": arch.experts.num_per_token,
            "norm_topk_prob": arch.experts.is_normalised,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config
