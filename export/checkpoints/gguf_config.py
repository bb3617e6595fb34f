"""GGUF hyper-parameters as the config dict of Hugging Face's config.json.

A hyper-parameter of the model's own namespace that nothing here reads is refused by name: to skip
it could mean to run another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.gguf_header import Value
from quickdraft.export.checkpoints.gguf_rope import read_rope_scaling
from quickdraft.export.weights import Weight

MAX_LAYERS = 1_024
MAX_HEADS = 4_096
_HARMLESS = frozenset(
    {
        "vocab_size",
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "attention.causal",
        "mm.tokens_per_image",
    }
)
"""Say nothing new about a text model (causal is checked apart)."""


class Keys:
    """The hyper-parameters of one file, by their names without the architecture prefix."""

    def __init__(self, file: str, metadata: Mapping[str, Value], weights: Mapping[str, Weight]):
        self.file = file
        self.weights = weights
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            self.fail("general.architecture is missing")
        self.architecture = architecture
        self.metadata = metadata
        self.used: set[str] = set()

    def fail(self, problem: str) -> NoReturn:
        """Raise a CheckpointError that names the file."""
        raise CheckpointError(f"{self.file}: {problem}")

    def refuse(self, key: str, value: object, supported: str) -> NoReturn:
        """Raise an UnsupportedModel that names the hyper-parameter."""
        raise UnsupportedModel(
            f"{self.file}: {self.architecture}.{key} is {str(value)[:80]}; supported: {supported}"
        )

    def get(self, key: str) -> Value | None:
        """The raw value, or None; remembers that it was asked for."""
        self.used.add(key)
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        """An integer from 0 to `most`."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(f"{self.architecture}.{key} is missing")
            return default
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(set(value)) == 1:
            value = value[0].item()
        if isinstance(value, np.ndarray):
            self.refuse(key, value, "one value for all layers")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            self.fail(f"{self.architecture}.{key} is {value!r}; it must be from 0 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as the shortest decimal that is the stored float32."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(f"{self.architecture}.{key} is missing")
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self.fail(f"{self.architecture}.{key} is {value!r}; it must be a finite number")
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool | None):
            self.fail(f"{self.architecture}.{key} is {value!r}; it must be true or false")
        return default if value is None else value

    def integers(self, key: str, length: int) -> list[int]:
        """`length` integers; one alone stands for all."""
        value = self.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return [value] * length
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            self.fail(f"{self.architecture}.{key} is not a list of integers")
        if len(value) != length or value.min() < 1:
            self.fail(f"{self.architecture}.{key} must be {length} positive integers")
        return [int(item) for item in value]

    def check_all_used(self) -> None:
        """Refuse hyper-parameters that nothing read."""
        prefix = f"{self.architecture}."
        for name in self.metadata:
            key = name.removeprefix(prefix)
            if name.startswith(prefix) and key not in self.used and key not in _HARMLESS:
                self.refuse(key, self.metadata[name], "files without this hyper-parameter")
        if self.metadata.get(f"{prefix}attention.causal") is False:
            self.refuse("attention.causal", False, "causal models")


def read_config(
    file: str, metadata: Mapping[str, Value], weights: Mapping[str, Weight]
) -> dict[str, Any]:
    """The config of the model in the file. weights: under their GGUF names.

    Raises:
        UnsupportedModel: an architecture or a hyper-parameter that is not implemented.
        CheckpointError: a hyper-parameter is missing, of the wrong type or contradictory.
    """
    keys = Keys(file, metadata, weights)
    if keys.architecture not in _BUILDERS:
        raise UnsupportedModel(
            f"{file}: general.architecture is {keys.architecture[:80]!r}; supported are "
            f"{', '.join(sorted(_BUILDERS))}"
        )
    if "token_embd.weight" not in weights:
        keys.fail("there is no tensor 'token_embd.weight': a vocabulary or adapter, not a model")
    config: dict[str, Any] = _BUILDERS[keys.architecture](keys)
    keys.check_all_used()
    config["vocab_size"] = weights["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in weights
    return config


def _shape(keys: Keys) -> dict[str, Any]:
    """What nearly all configs have."""
    heads = keys.integer("attention.head_count", most=MAX_HEADS)
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    if keys.integer("attention.value_length", head_dim) != head_dim:
        keys.refuse("attention.value_length", keys.get("attention.value_length"), str(head_dim))
    if not (heads and head_dim):
        keys.fail(f"{heads} attention heads of {head_dim} values make no model")
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads, most=MAX_HEADS),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
    }


def _rotated(keys: Keys, head_dim: int) -> float:
    """The part of each head that rotates."""
    return keys.integer("rope.dimension_count", head_dim) / head_dim


def _decoder(
    keys: Keys, model_type: str, class_name: str, theta: float = 10_000.0
) -> dict[str, Any]:
    """A decoder of Llama's kind: rotary in whole heads, RMS norms, gated MLP."""
    shape = _shape(keys)
    if _rotated(keys, shape["head_dim"]) != 1:
        keys.refuse("rope.dimension_count", keys.get("rope.dimension_count"), "whole heads")
    base = keys.number("rope.freq_base", theta)
    return {
        "model_type": model_type,
        "architectures": [f"{class_name}ForCausalLM"],
        **shape,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "rope_scaling": read_rope_scaling(keys, base, shape["head_dim"]),
        "attention_bias": "blk.0.attn_q.bias" in keys.weights,
    }


def _llama(keys: Keys) -> dict[str, Any]:
    if keys.integer("expert_count", 0) > 0:
        keys.refuse("expert_count", keys.get("expert_count"), "models without experts")
    keys.get("expert_used_count")
    window = keys.integer("attention.sliding_window", 0)
    name = ("mistral", "Mistral") if window else ("llama", "Llama")
    config = _decoder(keys, *name)
    config["mlp_bias"] = "blk.0.ffn_up.bias" in keys.weights
    if window:
        config["sliding_window"] = window
    return config


def _qwen2(keys: Keys) -> dict[str, Any]:
    return {**_decoder(keys, "qwen2", "Qwen2"), "use_sliding_window": False}


def _qwen3(keys: Keys) -> dict[str, Any]:
    return {**_decoder(keys, "qwen3", "Qwen3"), "use_sliding_window": False}


def _olmo2(keys: Keys) -> dict[str, Any]:
    return _decoder(keys, "olmo2", "Olmo2")


def _smollm3(keys: Keys) -> dict[str, Any]:
    config = _decoder(keys, "smollm3", "SmolLM3")
    layers = range(1, config["num_hidden_layers"] + 1)
    # Every fourth layer has no rotary embedding; the format has no key for it.
    config["no_rope_layers"] = [int(layer % 4 != 0) for layer in layers]
    config["use_sliding_window"] = False
    return config


def _gemma(keys: Keys, model_type: str, class_name: str, theta: float) -> dict[str, Any]:
    config = _decoder(keys, model_type, class_name, theta)
    layers = config["num_hidden_layers"]
    del config["hidden_act"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    # The 27B models scale scores by the width per head; the format has no key for it.
    scaled_by_width = layers == {"gemma2": 46, "gemma3_text": 62}[model_type]
    config["query_pre_attn_scalar"] = (
        config["hidden_size"] // config["num_attention_heads"]
        if scaled_by_width
        else config["head_dim"]
    )
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        config[key] = keys.number(key, 0.0) or None
    return config


def _layer_types(keys: Keys, layers: int, period: int) -> list[str]:
    """Which layers slide: each but every `period`-th, unless the file has its own pattern."""
    pattern = keys.get("attention.sliding_window_pattern")
    slides = [bool((layer + 1) % period) for layer in range(layers)]
    if isinstance(pattern, np.ndarray) and pattern.dtype.kind == "b" and len(pattern) == layers:
        slides = pattern.tolist()
    elif pattern is not None and pattern != period:
        keys.refuse("attention.sliding_window_pattern", pattern, f"{period} or one flag a layer")
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _gemma2(keys: Keys) -> dict[str, Any]:
    config = _gemma(keys, "gemma2", "Gemma2", 10_000.0)
    config["sliding_window"] = keys.integer("attention.sliding_window", 4_096)
    config["layer_types"] = _layer_types(keys, config["num_hidden_layers"], 2)
    # The format stores neither cap in old files; the model always has both.
    config["attn_logit_softcapping"] = config["attn_logit_softcapping"] or 50.0
    config["final_logit_softcapping"] = config["final_logit_softcapping"] or 30.0
    return config


def _gemma3(keys: Keys) -> dict[str, Any]:
    config = _gemma(keys, "gemma3_text", "Gemma3", 1_000_000.0)
    config["sliding_window"] = keys.integer("attention.sliding_window")
    config["layer_types"] = _layer_types(keys, config["num_hidden_layers"], 6)
    config["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 10_000.0)
    return config


def _phi3(keys: Keys) -> dict[str, Any]:
    shape = _shape(keys)
    base = keys.number("rope.freq_base", 10_000.0)
    rotated = keys.integer("rope.dimension_count", shape["head_dim"])
    context = shape["max_position_embeddings"]
    config: dict[str, Any] = {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        **shape,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "partial_rotary_factor": rotated / shape["head_dim"],
        "sliding_window": keys.integer("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": keys.integer(
            "rope.scaling.original_context_length", context
        ),
    }
    config["rope_scaling"] = read_rope_scaling(keys, base, rotated)
    return config


def _stablelm(keys: Keys) -> dict[str, Any]:
    shape = _shape(keys)
    base = keys.number("rope.freq_base", 10_000.0)
    parallel = "blk.0.ffn_norm.weight" not in keys.weights
    if keys.flag("use_parallel_residual", parallel) and not parallel:
        keys.fail("stablelm.use_parallel_residual is set, but there is 'blk.0.ffn_norm.weight'")
    return {
        "model_type": "stablelm",
        "architectures": ["StableLmForCausalLM"],
        **shape,
        "hidden_act": "silu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "rope_theta": base,
        "partial_rotary_factor": _rotated(keys, shape["head_dim"]),
        "rope_scaling": read_rope_scaling(keys, base, shape["head_dim"]),
        "use_qkv_bias": "blk.0.attn_q.bias" in keys.weights,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in keys.weights,
        "use_parallel_residual": parallel,
    }


def _gptneox(keys: Keys) -> dict[str, Any]:
    shape = _shape(keys)
    base = keys.number("rope.freq_base", 10_000.0)
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        **shape,
        "hidden_act": "gelu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "rotary_emb_base": base,
        "rope_theta": base,
        "rotary_pct": _rotated(keys, shape["head_dim"]),
        "rope_scaling": read_rope_scaling(keys, base, shape["head_dim"]),
        "use_parallel_residual": keys.flag("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in keys.weights,
    }


def _gpt2(keys: Keys) -> dict[str, Any]:
    shape = _shape(keys)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": shape["hidden_size"],
        "n_layer": shape["num_hidden_layers"],
        "n_head": shape["num_attention_heads"],
        "n_positions": shape["max_position_embeddings"],
        "n_ctx": shape["max_position_embeddings"],
        "n_inner": shape["intermediate_size"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
    }


def _openelm(keys: Keys) -> dict[str, Any]:
    layers = keys.integer("block_count", most=MAX_LAYERS)
    width = keys.integer("embedding_length")
    if not (layers and width):
        keys.fail(f"{layers} layers of width {width} make no model")
    head_dim = keys.integer("attention.key_length")
    keys.integer("attention.value_length", head_dim)
    if _rotated(keys, max(head_dim, 1)) != 1:
        keys.refuse("rope.dimension_count", keys.get("rope.dimension_count"), "whole heads")
    inner = keys.integers("feed_forward_length", layers)
    context = keys.integer("context_length")
    return {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "num_transformer_layers": layers,
        "model_dim": width,
        "head_dim": head_dim,
        "num_query_heads": keys.integers("attention.head_count", layers),
        "num_kv_heads": keys.integers("attention.head_count_kv", layers),
        # The widths are stored, so multipliers with a divisor of 1 give them back exactly.
        "ffn_multipliers": [size / width for size in inner],
        "ffn_dim_divisor": 1,
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": "blk.0.attn_q_norm.weight" in keys.weights,
        "share_input_output_layers": "output.weight" not in keys.weights,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_freq_constant": keys.number("rope.freq_base", 10_000.0),
        "rope_max_length": 2 * context,
        "max_context_length": context,
    }


_BUILDERS: Mapping[str, Callable[[Keys], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "stablelm": _stablelm,
    "openelm": _openelm,
}
