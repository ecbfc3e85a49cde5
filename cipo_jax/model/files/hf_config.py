"""The constants of a model in config.json, as Hugging Face transformers writes it, in and out.

None is assumed: a config that does not state its rotary base is an error, and so is a feature that
this decoder does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def architecture_of(config: Mapping[str, Any], source: str) -> Architecture:
    """The constants that a config states.

    Args:
      source: where it stands, for messages.
    Raises: ValueError if a constant is missing, or if it asks for something that the decoder does
      not do.
    """

    def stated(key: str) -> Any:
        if config.get(key) is None:
            raise ValueError(
                f"{source} does not state {key}, and no constant of a model is assumed here. Add "
                "it with the value that the model was trained with."
            )
        return config[key]

    def refuse(key: str, rule: str) -> NoReturn:
        raise ValueError(f"{source}: {key} is {config.get(key)!r}; this decoder {rule}.")

    family = stated("model_type")
    if family == "gemma3":
        refuse("model_type", "reads the text model alone, whose model_type is gemma3_text")
    if family not in _CLASSES:
        refuse("model_type", f"covers {', '.join(_CLASSES)}")
    is_gemma = family == "gemma3_text"
    key, name = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    if stated(key) != name:
        refuse(key, f"has an MLP gated by {name} for {family}")
    # Of Qwen2, attention_bias would be a key without a meaning: its q, k and v always have biases.
    if config.get("attention_bias") and family != "qwen2":
        refuse("attention_bias", "has no bias on its output projection, which this flag adds too")
    if config.get("mlp_bias"):
        refuse("mlp_bias", "has no biases in its MLP")
    if config.get("quantization_config"):
        refuse("quantization_config", "trains float weights: use the model before quantisation")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            refuse(key, "caps no logits")
    if config.get("use_bidirectional_attention"):
        refuse("use_bidirectional_attention", "only looks back")
    if not is_gemma:
        if config.get("sliding_window") and config.get("use_sliding_window") is not False:
            refuse("sliding_window", f"attends to the whole sequence in models of {family}")
        if set(config.get("layer_types") or ()) - {"full_attention"}:
            refuse("layer_types", f"attends to the whole sequence in models of {family}")

    num_layers, num_heads = stated("num_hidden_layers"), stated("num_attention_heads")
    if config.get("head_dim") is not None or family not in ("llama", "qwen2"):
        head_dim = stated("head_dim")
    else:  # by definition in Llama and Qwen2, not by default
        head_dim, rest = divmod(stated("hidden_size"), num_heads)
        if rest:
            refuse("num_attention_heads", "needs head_dim where heads do not divide hidden_size")
    of_gemma: dict[str, Any] = {}
    experts, mlp_dim = None, "intermediate_size"
    if is_gemma:
        theta, scaling, sliding_theta = _gemma_rope(config, source)
        sliding = SlidingLayers(
            is_sliding=_is_sliding(config, num_layers, source),
            window=stated("sliding_window"),
            rope_theta=sliding_theta,
        )
        of_gemma = {"query_pre_attn_scalar": stated("query_pre_attn_scalar"), "sliding": sliding}
    else:
        theta, scaling = _rope(config, source)
    if family == "qwen3_moe":
        if stated("decoder_sparse_step") != 1:
            refuse("decoder_sparse_step", "has experts in every layer")
        if config.get("mlp_only_layers"):
            refuse("mlp_only_layers", "has experts in every layer")
        experts = Experts(
            # transformers 5 has another name for it.
            num_experts=config.get("num_local_experts") or stated("num_experts"),
            num_per_token=stated("num_experts_per_tok"),
            is_normalised=stated("norm_topk_prob"),
        )
        mlp_dim = "moe_intermediate_size"
    return of_family(
        family,
        vocab_size=stated("vocab_size"),
        model_dim=stated("hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=stated("num_key_value_heads"),
        head_dim=head_dim,
        mlp_dim=stated(mlp_dim),
        experts=experts,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(stated("rms_norm_eps")),
        # Gemma's head is the embedding by definition, and its public configs do not say so.
        is_tied=config.get("tie_word_embeddings", True)
        if is_gemma
        else stated("tie_word_embeddings"),
        max_position=stated("max_position_embeddings"),
        **of_gemma,
    )


def _rope(
    config: Mapping[str, Any], source: str
) -> tuple[float, Llama3RopeScaling | LinearRopeScaling | None]:
    """Rotary base and scaling. transformers 5 keeps both in `rope_parameters`; before it, the base
    stood at the top level and the scaling in `rope_scaling`.
    """
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return _rope_of(config.get("rope_theta"), parameters, config, source)


def _gemma_rope(
    config: Mapping[str, Any], source: str
) -> tuple[float, Llama3RopeScaling | LinearRopeScaling | None, float]:
    """Base and scaling of the layers that see everything, and the base of the others.
    transformers 5 keeps them in `rope_parameters` by kind of layer; before it, they stood at the
    top level.
    """
    by_kind = config.get("rope_parameters") or {}
    full = {**(config.get("rope_scaling") or {}), **(by_kind.get("full_attention") or {})}
    theta, scaling = _rope_of(config.get("rope_theta"), full, config, source)
    sliding = by_kind.get("sliding_attention") or {}
    sliding_theta, sliding_scaling = _rope_of(
        config.get("rope_local_base_freq"), sliding, config, f"{source}, sliding layers"
    )
    if sliding_scaling is not None:
        raise ValueError(
            f"{source}: sliding layers with rotary scaling {sliding}; this decoder scales the "
            "positions of the other layers only."
        )
    return theta, scaling, sliding_theta


def _rope_of(
    stated_theta: Any, parameters: Mapping[str, Any], config: Mapping[str, Any], source: str
) -> tuple[float, Llama3RopeScaling | LinearRopeScaling | None]:
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
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind not in ("default", "llama3", "linear") or partial not in (None, 1.0):
        raise ValueError(
            f"{source}: rotary positions of type {kind!r} with partial_rotary_factor {partial}; "
            "this decoder turns all channels, with no scaling ('default') or that of 'llama3' or "
            "'linear'."
        )
    if kind == "default":
        return theta, None

    def stated(name: str) -> float:
        if parameters.get(name) is None:
            raise ValueError(f"{source}: rotary scaling of type {kind} without {name}.")
        return float(parameters[name])

    if kind == "linear":
        return theta, LinearRopeScaling(factor=stated("factor"))
    return theta, Llama3RopeScaling(
        factor=stated("factor"),
        low_freq_factor=stated("low_freq_factor"),
        high_freq_factor=stated("high_freq_factor"),
        original_max_position=int(stated("original_max_position_embeddings")),
    )


def _is_sliding(config: Mapping[str, Any], num_layers: int, source: str) -> tuple[bool, ...]:
    """Which layers have a window. Before transformers 4.53, every nth layer had none, and the
    config stated n.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        nth = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        if nth is None:
            raise ValueError(
                f"{source} states neither layer_types nor sliding_window_pattern: which layers "
                "have a sliding window? Add the one that the model was trained with."
            )
        return every_nth_sees_all(num_layers, nth)
    if len(kinds) != num_layers or set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"{source}: layer_types is {kinds}; it must say full_attention or sliding_attention "
            f"for each of {num_layers} layers."
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
