"""Names, row orders and configs: a model written as converters write it comes back as it was.

Each forward conversion here is written from the meaning of the layouts, not from the reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny.gguf_file import GgufFile
from tiny.gguf_models import (
    SHAPE,
    llama_shapes,
    model_file,
    random_arrays,
    sentencepiece,
    tiny_llama,
)

from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.checkpoints.gguf import read_gguf
from quickdraft.export.weights import Blocked

RMS = {**SHAPE, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}
LAYER = {**SHAPE, "attention.layer_norm_epsilon": 1e-5}
Arrays = dict[str, np.ndarray]
Read = Callable[[GgufFile], Checkpoint]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(file: GgufFile) -> Checkpoint:
        path = tmp_path / "model.gguf"
        path.write_bytes(file.to_bytes())
        return read_gguf(path)

    return write_and_read


def _pair_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Halves of a head to neighbours: row i and row i + half become rows 2i and 2i + 1."""
    half = len(values) // heads // 2
    rows = []
    for head in np.split(values, heads):
        for i in range(half):
            rows += [head[i], head[i + half]]
    return np.stack(rows)


def _same(checkpoint: Checkpoint, want: Arrays) -> None:
    assert set(checkpoint.weights) == set(want)
    for name, values in want.items():
        weight = checkpoint.weights[name]
        assert weight.name == name
        assert weight.shape == values.shape, name
        assert np.array_equal(weight.dense(), values), name


def _llama_names(arrays: Arrays) -> Arrays:
    parts = {
        "blk.0.attn_norm": "model.layers.0.input_layernorm",
        "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
        "blk.0.attn_": "model.layers.0.self_attn.",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
        "blk.0.ffn_": "model.layers.0.mlp.",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
    }
    result = {}
    for name, values in arrays.items():
        start = next(part for part in parts if name.startswith(part))
        target = name.replace(start, parts[start])
        for short in ("q", "k", "v", "gate", "up", "down"):
            target = target.replace(f".{short}.", f".{short}_proj.")
        result[target] = values
    return result


@pytest.mark.parametrize("architecture", ["llama", "smollm3"])
def test_llama_rows_and_biases_are_unpaired(read: Read, architecture: str) -> None:
    shapes = llama_shapes() | {"blk.0.attn_q.bias": (32,), "blk.0.attn_k.bias": (16,)}
    arrays = random_arrays(shapes)
    stored = dict(arrays)
    for part, heads in (("q", 4), ("k", 2)):
        for suffix in ("weight", "bias"):
            name = f"blk.0.attn_{part}.{suffix}"
            stored[name] = _pair_rows(arrays[name], heads)
    checkpoint = read(model_file(architecture, RMS, stored))
    _same(checkpoint, _llama_names(arrays))
    assert checkpoint.config["attention_bias"]
    assert checkpoint.config["tie_word_embeddings"]


def test_quantised_rows_move_as_blocks(read: Read) -> None:
    checkpoint = read(tiny_llama())
    weight = checkpoint.weights["model.layers.0.self_attn.q_proj.weight"]
    loaded = weight.load()
    assert isinstance(loaded, Blocked)
    assert (loaded.bits, loaded.group, loaded.zero, loaded.minimum) == (4, 32, 8, None)
    assert weight.stored_as == "Q4_0"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_rows_stay(read: Read, architecture: str) -> None:
    arrays = random_arrays(llama_shapes() | {"output.weight": (280, 32)})
    checkpoint = read(model_file(architecture, RMS, arrays))
    _same(checkpoint, _llama_names(arrays))
    assert not checkpoint.config["tie_word_embeddings"]


def test_gemma_norms_lose_the_added_one(read: Read) -> None:
    norms = ("post_attention_norm", "post_ffw_norm")
    shapes = llama_shapes() | {f"blk.0.{name}.weight": (32,) for name in norms}
    shapes |= {f"blk.0.attn_{part}_norm.weight": (8,) for part in "qk"}
    arrays = {name: np.round(values * 64) / 64 for name, values in random_arrays(shapes).items()}
    stored = {n: v + np.float32(1) if "norm" in n else v for n, v in arrays.items()}
    values = {**RMS, "attention.key_length": 8, "attention.value_length": 8}
    values |= {"attention.sliding_window": 16}
    checkpoint = read(model_file("gemma3", values, stored, sentencepiece(False)))
    renamed = {
        "model.layers.0.pre_feedforward_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.post_attention_norm.weight",
        "model.layers.0.post_feedforward_layernorm.weight": "blk.0.post_ffw_norm.weight",
        "model.layers.0.self_attn.q_norm.weight": "blk.0.attn_q_norm.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for name, source in renamed.items():
        assert np.array_equal(checkpoint.weights[name].dense(), arrays[source]), name
    config = checkpoint.config
    assert config["model_type"] == "gemma3_text"
    assert config["layer_types"] == ["sliding_attention"]
    assert (config["sliding_window"], config["rope_local_base_freq"]) == (16, 10_000.0)
    assert (config["query_pre_attn_scalar"], config["final_logit_softcapping"]) == (8, None)


def test_gpt_neox_heads_are_interleaved(read: Read) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 4, 8, 32), np.float32)
    whole = np.concatenate([np.concatenate([q[h], k[h], v[h]]) for h in range(4)])
    stored = np.concatenate([part.reshape(32, 32) for part in (q, k, v)])
    arrays = {
        "token_embd.weight": np.ones((280, 32)),
        "output.weight": np.ones((280, 32)),
        "blk.0.attn_qkv.weight": stored,
        "blk.0.attn_qkv.bias": stored[:, 0],
    }
    values = {**LAYER, "attention.head_count_kv": 4, "rope.dimension_count": 2}
    values |= {"use_parallel_residual": True}
    checkpoint = read(model_file("gptneox", values, arrays))
    name = "gpt_neox.layers.0.attention.query_key_value"
    assert np.array_equal(checkpoint.weights[f"{name}.weight"].dense(), whole)
    assert np.array_equal(checkpoint.weights[f"{name}.bias"].dense(), whole[:, 0])
    assert checkpoint.config["rotary_pct"] == 0.25
    assert "embed_out.weight" in checkpoint.weights


def test_gpt2_matrices_are_conv1d(read: Read) -> None:
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((32, 96), np.float32)  # Conv1D holds [in, out]
    arrays = {
        "token_embd.weight": np.ones((280, 32)),
        "position_embd.weight": np.ones((64, 32)),
        "blk.0.attn_qkv.weight": conv.T,
        "blk.0.attn_qkv.bias": conv[0],
    }
    values = {**LAYER, "attention.head_count_kv": 4}
    checkpoint = read(model_file("gpt2", values, arrays))
    weight = checkpoint.weights["transformer.h.0.attn.c_attn.weight"]
    assert weight.shape == (32, 96)
    assert np.array_equal(weight.dense(), conv)
    assert np.array_equal(checkpoint.weights["transformer.h.0.attn.c_attn.bias"].dense(), conv[0])
    assert checkpoint.config["n_positions"] == 64
    assert checkpoint.config["activation_function"] == "gelu_new"


def test_phi3_keeps_what_is_fused(read: Read) -> None:
    arrays = {
        "token_embd.weight": np.ones((280, 32)),
        "blk.0.attn_qkv.weight": np.ones((64, 32)),
        "blk.0.ffn_up.weight": np.ones((96, 32)),
        "rope_factors_long.weight": np.array([1.5, 2.5]),
        "rope_factors_short.weight": np.array([1.0, 1.25]),
    }
    values = {**RMS, "rope.dimension_count": 4, "attention.sliding_window": 0}
    values |= {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.2247449}
    checkpoint = read(model_file("phi3", values, arrays, sentencepiece()))
    assert {
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
    } < set(checkpoint.weights)
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "longrope",
        "long_factor": [1.5, 2.5],
        "short_factor": [1.0, 1.25],
    }
    assert checkpoint.config["partial_rotary_factor"] == 0.5
    assert checkpoint.config["sliding_window"] is None


def test_stablelm_norms_are_split_by_head(read: Read) -> None:
    shapes = llama_shapes() | {
        "blk.0.attn_q_norm.weight": (4, 8),
        "blk.0.attn_k_norm.weight": (2, 8),
    }
    del shapes["blk.0.ffn_norm.weight"]
    arrays = random_arrays(shapes)
    values = {**LAYER, "rope.dimension_count": 2, "use_parallel_residual": True}
    checkpoint = read(model_file("stablelm", values, arrays))
    for part, heads in (("q", 4), ("k", 2)):
        for head in range(heads):
            name = f"model.layers.0.self_attn.{part}_layernorm.norms.{head}.weight"
            want = arrays[f"blk.0.attn_{part}_norm.weight"][head]
            assert np.array_equal(checkpoint.weights[name].dense(), want)
    config = checkpoint.config
    assert (config["qk_layernorm"], config["use_parallel_residual"]) == (True, True)
    assert not config["use_qkv_bias"]


def test_openelm_lists_and_fused_gate(read: Read) -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((96, 32), np.float32)
    arrays = {
        "token_embd.weight": np.ones((280, 32)),
        "blk.0.ffn_gate.weight": whole[:48],
        "blk.0.ffn_up.weight": whole[48:],
        "blk.0.attn_q_norm.weight": np.ones(8),
        "blk.1.attn_q_norm.weight": np.ones(8),
    }
    values = {
        **RMS,
        "block_count": 2,
        "attention.head_count": [4, 6],
        "feed_forward_length": [48, 64],
    }
    values |= {"attention.head_count_kv": [1, 2], "attention.key_length": 8}
    checkpoint = read(model_file("openelm", values, arrays, sentencepiece()))
    name = "transformer.layers.0.ffn.proj_1.weight"
    assert np.array_equal(checkpoint.weights[name].dense(), whole)
    assert not any(".ffn.gate" in key or ".ffn.up" in key for key in checkpoint.weights)
    config = checkpoint.config
    assert (config["num_query_heads"], config["num_kv_heads"]) == ([4, 6], [1, 2])
    assert [round(m * 32) for m in config["ffn_multipliers"]] == [48, 64]


def test_olmo2_has_only_norms_after(read: Read) -> None:
    shapes = llama_shapes()
    for name in ("attn_norm", "ffn_norm"):
        del shapes[f"blk.0.{name}.weight"]
    shapes |= {"blk.0.post_attention_norm.weight": (32,), "blk.0.post_ffw_norm.weight": (32,)}
    checkpoint = read(model_file("olmo2", RMS, random_arrays(shapes)))
    assert "model.layers.0.post_feedforward_layernorm.weight" in checkpoint.weights
    assert "model.layers.0.post_attention_layernorm.weight" in checkpoint.weights
