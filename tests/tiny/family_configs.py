"""Two tiny configs or more of every family, by a name of their own: (model_type, config)."""

from __future__ import annotations

from typing import Any

from tiny.checkpoint import BOS, EOS, VOCAB_SIZE

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Large enough to show in the logits.
    "rms_norm_eps": 1e-3,
    "layer_norm_eps": 1e-3,
    "pad_token_id": None,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_WIDE = {**_COMMON, "head_dim": 12, "num_attention_heads": 6, "num_key_value_heads": 3}
_MULTIHEAD = {**_COMMON, "num_key_value_heads": 4}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LINEAR = {"rope_type": "linear", "factor": 2.5}
_GEMMA = {**_COMMON, "head_dim": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "layer_norm_epsilon": 1e-3,
}
_OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 256,
}
_NEOX = {**_COMMON, "rotary_pct": 0.5}
_LONG = [1.0 + 0.3 * i for i in range(8)]


def _longrope(pairs: int) -> dict[str, Any]:
    short, long = _LONG[:pairs], [5.0 * value for value in _LONG[:pairs]]
    return {"type": "longrope", "short_factor": short, "long_factor": long}


_OPENELM = {
    "model_type": "openelm",
    "vocab_size": VOCAB_SIZE,
    "model_dim": 32,
    "num_transformer_layers": 3,
    "head_dim": 8,
    "num_query_heads": [4, 6, 8],
    "num_kv_heads": [1, 2, 2],
    "ffn_multipliers": [0.5, 1.3, 2.0],
    "ffn_dim_divisor": 16,
    "max_context_length": 256,
    "rope_freq_constant": 10000,
    "activation_fn_name": "swish",
    "ffn_with_glu": True,
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _COMMON),
    "llama-biases-tied-llama3": (
        "llama",
        {
            **_MULTIHEAD,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_scaling": _LLAMA3,
        },
    ),
    "llama-wide-heads-linear": ("llama", {**_WIDE, "rope_scaling": _LINEAR}),
    "llama-yarn": ("llama", {**_COMMON, "rope_scaling": _YARN, "rope_theta": 500000.0}),
    "llama-longrope": (
        "llama",
        {**_COMMON, "rope_scaling": {**_longrope(4), "factor": 4.0}, "hidden_act": "gelu"},
    ),
    "mistral-window": ("mistral", {**_COMMON, "sliding_window": 7}),
    "mistral-full": ("mistral", {**_WIDE, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", _COMMON),
    "qwen2-window-tied-yarn": (
        "qwen2",
        {
            **_COMMON,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_scaling": {**_YARN, "attention_factor": 1.2, "beta_fast": 16.0},
        },
    ),
    "qwen3": ("qwen3", _WIDE),
    "qwen3-biases-tied-layer-types": (
        "qwen3",
        {
            **_WIDE,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma2": ("gemma2", {**_GEMMA, "sliding_window": 6}),
    "gemma2-uncapped": (
        "gemma2",
        {
            **_GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "gemma3": ("gemma3_text", {**_GEMMA, "sliding_window": 6, "sliding_window_pattern": 2}),
    "gemma3-linear": (
        "gemma3_text",
        {
            **_GEMMA,
            "sliding_window": 9,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "final_logit_softcapping": 20.0,
        },
    ),
    "phi3-window": ("phi3", {**_COMMON, "sliding_window": 8}),
    "phi3-longrope-partial": (
        "phi3",
        {
            **_COMMON,
            "hidden_size": 64,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "rope_scaling": _longrope(6),
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", _MULTIHEAD),
    "olmo2-grouped-biases-linear": (
        "olmo2",
        {**_COMMON, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "smollm3": ("smollm3", {**_COMMON, "no_rope_layer_interval": 2}),
    "smollm3-window-untied": (
        "smollm3",
        {
            **_COMMON,
            "no_rope_layers": [1, 0, 0],
            "use_sliding_window": True,
            "sliding_window": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_scaling": _YARN,
        },
    ),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-untied": (
        "gpt2",
        {
            **_GPT2,
            "n_inner": 48,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
    ),
    "opt": ("opt", _OPT),
    "opt-no-bias": ("opt", {**_OPT, "enable_bias": False, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox-serial": (
        "gpt_neox",
        {
            **_NEOX,
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
        },
    ),
    "stablelm": ("stablelm", {**_COMMON, "partial_rotary_factor": 0.5}),
    "stablelm-parallel-normed": (
        "stablelm",
        {
            **_COMMON,
            "hidden_size": 64,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "openelm": ("openelm", _OPENELM),
    "openelm-untied-plain": (
        "openelm",
        {
            **_OPENELM,
            "share_input_output_layers": False,
            "normalize_qk_projections": False,
            "num_query_heads": [4, 4, 4],
            "num_kv_heads": [4, 2, 1],
        },
    ),
}
