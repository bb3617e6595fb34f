"""GGUF tensors as the state dict Hugging Face's model class would hold.

Converters rename tensors, reorder the rows of some, transpose those of GPT-2 and add one to the
norms of Gemma (llama.cpp, `convert_hf_to_gguf.py`); this undoes each. Row orders are undone on the
blocks as they are, so quantised values stay exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.weights import Floats, Weight, concat_rows

_BLOCK = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_GLOBAL = re.compile(r"(\w+)\.(weight|bias)")
# Rope tensors are part of the config; attn_rot_embd repeats what the config says.
_NOT_WEIGHTS = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_transformer_layers")
_REDUNDANT_IN_BLOCK = frozenset({"attn_rot_embd"})


@dataclass(frozen=True)
class _Names:
    """outside: names outside of blocks. prefix: before the layer number. inside: in a block.

    undo: by GGUF name. tables: stacked norms, and the config key of their count. fused: first
    part to (second part, whole), by Hugging Face names.
    """

    outside: Mapping[str, str]
    prefix: str
    inside: Mapping[str, str]
    undo: Mapping[str, Callable[[Weight, Mapping[str, Any]], Weight]] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def hugging_face_weights(
    file: str, architecture: str, config: Mapping[str, Any], weights: Mapping[str, Weight]
) -> dict[str, Weight]:
    """Rename and reorder `weights` (GGUF names) for the model of `config`.

    Raises:
        UnsupportedModel: a tensor this architecture does not have.
        CheckpointError: a tensor whose shape contradicts the config, or an unknown layer.
    """
    names = _ARCHITECTURES[architecture]
    layers: int = next(config[key] for key in _LAYER_COUNTS if key in config)
    result: dict[str, Weight] = {}
    for name, weight in weights.items():
        base, target = _target(file, architecture, names, name, layers)
        if base is None:
            continue
        try:
            changed = names.undo[base](weight, config) if base in names.undo else weight
        except CheckpointError as error:
            raise CheckpointError(f"{file}: tensor {name!r} {error}") from None
        if base in names.tables:
            heads = config[names.tables[base]]
            if weight.shape != (heads, config["head_dim"]):
                raise CheckpointError(
                    f"{file}: tensor {name!r} has the shape {list(weight.shape)}; the config asks "
                    f"for [{heads}, {config['head_dim']}]"
                )
            result |= _split_table(changed, target)
        else:
            result[target] = replace(changed, name=target)
    _fuse(names, result)
    return result


def _target(
    file: str, architecture: str, names: _Names, name: str, layers: int
) -> tuple[str | None, str]:
    """The name without block and suffix (None: not a weight), and the Hugging Face name."""
    if match := _BLOCK.fullmatch(name):
        block, base, suffix = match.groups()
        if int(block) >= layers:
            raise CheckpointError(f"{file}: tensor {name!r} belongs to none of the {layers} layers")
        if base in _REDUNDANT_IN_BLOCK:
            return None, ""
        if base in names.inside:
            return f"{base}.{suffix}", f"{names.prefix}.{int(block)}.{names.inside[base]}.{suffix}"
    elif match := _GLOBAL.fullmatch(name):
        base, suffix = match.groups()
        if base in _NOT_WEIGHTS:
            return None, ""
        if base in names.outside:
            return f"{base}.{suffix}", f"{names.outside[base]}.{suffix}"
    raise UnsupportedModel(
        f"{file}: the architecture {architecture!r} has no tensor {name!r} here; the file holds "
        "another kind of model"
    )


def _fuse(names: _Names, weights: dict[str, Weight]) -> None:
    """Join pairs that Hugging Face keeps in one tensor."""
    for first, (second, whole) in names.fused.items():
        for name in [name for name in weights if name.endswith(f".{first}.weight")]:
            other = name.replace(first, second)
            if other not in weights:
                raise CheckpointError(f"the checkpoint lacks the partner of {name!r}")
            target = name.replace(first, whole)
            weights[target] = concat_rows([weights.pop(name), weights.pop(other)], target)


def _split_table(weight: Weight, target: str) -> dict[str, Weight]:
    """Rows of a table of norms as one-dimensional weights `<target>.norms.<row>.weight`."""
    stem = target.removesuffix(".weight")
    result = {}
    for row in range(weight.shape[0]):
        name = f"{stem}.norms.{row}.weight"
        one = weight.take_rows(slice(row, row + 1), name)
        result[name] = one.map(np.ravel, weight.shape[1:], name)
    return result


def _check_rows(weight: Weight, rows: int) -> None:
    """Before an index is built, so that a hostile config costs no memory."""
    if weight.shape[0] != rows:
        raise CheckpointError(f"has {weight.shape[0]} rows; the config asks for {rows}")


def _unpermute(heads: str) -> Callable[[Weight, Mapping[str, Any]], Weight]:
    """Undo the pairing of rows that ggml's interleaved rotary embedding needs."""

    def undo(weight: Weight, config: Mapping[str, Any]) -> Weight:
        count, width = config[heads], config["head_dim"]
        _check_rows(weight, count * width)
        if width % 2:
            raise CheckpointError(f"has heads of {width} rows; rotary heads have an even number")
        rows = np.arange(count * width).reshape(count, width // 2, 2)
        return weight.take_rows(rows.swapaxes(1, 2).reshape(-1), weight.name)

    return undo


def _interleave_qkv(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """All queries, keys, values to GPT-NeoX's query, key, value of each head in turn."""
    heads, width = config["num_attention_heads"], config["head_dim"]
    _check_rows(weight, 3 * heads * width)
    rows = np.arange(3 * heads * width).reshape(3, heads, width)
    return weight.take_rows(rows.swapaxes(0, 1).reshape(-1), weight.name)


def _transpose(weight: Weight, config: Mapping[str, Any]) -> Weight:
    """To GPT-2's Conv1D form [in, out]."""
    if len(weight.shape) != 2:
        raise CheckpointError(f"has the shape {list(weight.shape)}; a matrix is expected")
    return weight.map(_transposed, weight.shape[::-1], weight.name)


def _transposed(values: Floats) -> Floats:
    return np.ascontiguousarray(values.T)


def _subtract_one(weight: Weight, config: Mapping[str, Any]) -> Weight:
    return weight.map(lambda values: values - np.float32(1), weight.shape, weight.name)


_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_UNPERMUTE = {
    f"attn_{part}.{suffix}": _unpermute(heads)
    for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))
    for suffix in ("weight", "bias")
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = {**_LLAMA, **_QK_NORMS, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
_GEMMA_NORMS = {
    f"{name}.weight": _subtract_one
    for name in (
        "output_norm", "attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm", *_POST_NORMS,
    )
}  # fmt: skip
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_MATRICES = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


def _without(names: Mapping[str, str], *left_out: str) -> dict[str, str]:
    return {name: target for name, target in names.items() if name not in left_out}


_ARCHITECTURES: Mapping[str, _Names] = {
    "llama": _Names(_OUTSIDE, "model.layers", _LLAMA, _UNPERMUTE),
    "smollm3": _Names(_OUTSIDE, "model.layers", _LLAMA, _UNPERMUTE),
    "qwen2": _Names(_OUTSIDE, "model.layers", _LLAMA),
    "qwen3": _Names(_OUTSIDE, "model.layers", {**_LLAMA, **_QK_NORMS}),
    "gemma2": _Names(_OUTSIDE, "model.layers", _without(_GEMMA, *_QK_NORMS), _GEMMA_NORMS),
    "gemma3": _Names(_OUTSIDE, "model.layers", _GEMMA, _GEMMA_NORMS),
    "olmo2": _Names(
        _OUTSIDE,
        "model.layers",
        {**_without(_LLAMA, "attn_norm", "ffn_norm"), **_QK_NORMS, **_POST_NORMS},
    ),
    "phi3": _Names(
        _OUTSIDE,
        "model.layers",
        {
            **_without(_LLAMA, "attn_q", "attn_k", "attn_v", "ffn_gate"),
            "attn_qkv": "self_attn.qkv_proj",
            "ffn_up": "mlp.gate_up_proj",
        },
    ),
    "stablelm": _Names(
        _OUTSIDE,
        "model.layers",
        {
            **_LLAMA,
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
        },
        tables={
            "attn_q_norm.weight": "num_attention_heads",
            "attn_k_norm.weight": "num_key_value_heads",
        },
    ),
    "gpt2": _Names(
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        _GPT2,
        dict.fromkeys(_GPT2_MATRICES, _transpose),
    ),
    "gptneox": _Names(
        {
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
        },
        "gpt_neox.layers",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        {"attn_qkv.weight": _interleave_qkv, "attn_qkv.bias": _interleave_qkv},
    ),
    "openelm": _Names(
        {
            "token_embd": "transformer.token_embeddings",
            "output_norm": "transformer.norm",
            "output": "lm_head",
        },
        "transformer.layers",
        {
            "attn_norm": "attn_norm",
            "attn_qkv": "attn.qkv_proj",
            "attn_q_norm": "attn.q_norm",
            "attn_k_norm": "attn.k_norm",
            "attn_output": "attn.out_proj",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "ffn.gate",
            "ffn_up": "ffn.up",
            "ffn_down": "ffn.proj_2",
        },
        fused={"ffn.gate": ("ffn.up", "ffn.proj_1")},
    ),
}
