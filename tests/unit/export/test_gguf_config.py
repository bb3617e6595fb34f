"""Configs read from hyper-parameters, and the models that are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.gguf_file import GgufFile
from tiny.gguf_models import (
    SHAPE,
    byte_level,
    llama_shapes,
    model_file,
    random_arrays,
    sentencepiece,
    tiny_llama,
)

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.checkpoints.gguf import read_gguf

RMS = {**SHAPE, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}
Read = Callable[[GgufFile], Checkpoint]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(file: GgufFile) -> Checkpoint:
        path = tmp_path / "model.gguf"
        path.write_bytes(file.to_bytes())
        return read_gguf(path)

    return write_and_read


def test_gemma2_config(read: Read) -> None:
    norms = ("post_attention_norm", "post_ffw_norm")
    shapes = llama_shapes() | {f"blk.0.{name}.weight": (32,) for name in norms}
    values = {**RMS, "attn_logit_softcapping": 20.0, "attention.sliding_window": 8}
    config = read(model_file("gemma2", values, random_arrays(shapes), sentencepiece())).config
    assert config["attn_logit_softcapping"] == 20.0
    assert config["final_logit_softcapping"] == 30.0
    assert config["hidden_activation"] == "gelu_pytorch_tanh"
    assert "hidden_act" not in config


def test_smollm3_leaves_rope_out_of_every_fourth_layer(read: Read) -> None:
    config = read(model_file("smollm3", {**RMS, "block_count": 8}, random_arrays(llama_shapes())))
    assert config.config["no_rope_layers"] == [1, 1, 1, 0, 1, 1, 1, 0]


def _llama3_divisors(factor: float, low: float, high: float, original: int) -> np.ndarray:
    """As published with Llama 3.1, one frequency at a time."""
    result = []
    for i in range(16):
        wavelength = 2 * np.pi * 10_000.0 ** (2 * i / 32)
        if wavelength < original / high:
            result.append(1.0)
        elif wavelength > original / low:
            result.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result, np.float32)


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [
        (8.0, 1.0, 4.0, 8_192),
        (32.0, 1.0, 4.0, 8_192),
        (4.0, 1.0, 32.0, 1_024),
        (3.0, 2.0, 40.0, 900),
    ],
)
def test_llama3_scaling_is_recovered(
    read: Read, factor: float, low: float, high: float, original: int
) -> None:
    divisors = _llama3_divisors(factor, low, high, original)
    arrays = random_arrays(llama_shapes()) | {"rope_freqs.weight": divisors}
    arrays |= {name: np.ones((32, 32)) for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight")}
    values = {**RMS, "attention.head_count": 1, "attention.head_count_kv": 1}
    scaling = read(model_file("llama", values, arrays)).config["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    if low == 1:
        assert scaling["factor"] == factor
        assert scaling["high_freq_factor"] == pytest.approx(high, rel=1e-3)
        assert scaling["original_max_position_embeddings"] == pytest.approx(original, rel=1e-3)
    again = _llama3_divisors(
        scaling["factor"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )
    assert np.allclose(again, divisors, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, None),
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
            },
        ),
    ],
)
def test_rope_scaling_keys(read: Read, values: dict[str, Any], want: dict[str, Any] | None) -> None:
    file = model_file("qwen2", {**RMS, **values}, random_arrays(llama_shapes()))
    assert read(file).config["rope_scaling"] == want


def test_mistral_is_a_llama_with_a_window(read: Read) -> None:
    values = {**RMS, "attention.sliding_window": 16}
    config = read(model_file("llama", values, random_arrays(llama_shapes()))).config
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 16)


def test_float32_numbers_read_as_people_write_them(read: Read) -> None:
    assert read(tiny_llama()).config["rms_norm_eps"] == 1e-5


ARRAYS = random_arrays(llama_shapes())
BAD: dict[str, tuple[GgufFile, type[CheckpointError], str]] = {
    "architecture": (model_file("mamba", RMS, ARRAYS), UnsupportedModel,
                     "general.architecture is 'mamba'"),
    "no architecture": (GgufFile(byte_level()), CheckpointError,
                        "general.architecture is missing"),
    "no tensors": (model_file("llama", RMS, {}), CheckpointError, "'token_embd.weight'"),
    "experts": (model_file("llama", {**RMS, "expert_count": 8}, ARRAYS), UnsupportedModel,
                "llama.expert_count is 8"),
    "unknown key": (model_file("llama", {**RMS, "logit_scale": 2.0}, ARRAYS), UnsupportedModel,
                    "llama.logit_scale is 2.0"),
    "partial rope": (model_file("llama", {**RMS, "rope.dimension_count": 4}, ARRAYS),
                     UnsupportedModel, "llama.rope.dimension_count is 4"),
    "rope type": (model_file("qwen2", {**RMS, "rope.scaling.type": "ntk"}, ARRAYS),
                  UnsupportedModel, "qwen2.rope.scaling.type is ntk"),
    "strange rope_freqs": (
        model_file("llama", RMS, ARRAYS | {"rope_freqs.weight": np.array([1.0, 9.0, 2.0, 5.0])}),
        UnsupportedModel, "rope_freqs.weight",
    ),
    "short rope_freqs": (
        model_file("llama", RMS, ARRAYS | {"rope_freqs.weight": np.ones(3)}),
        CheckpointError, "must hold 4 values",
    ),
    "uneven heads": (model_file("llama", {**RMS, "attention.head_count": [4, 2]}, ARRAYS),
                     UnsupportedModel, "llama.attention.head_count"),
    "text for a number": (model_file("llama", {**RMS, "block_count": "1"}, ARRAYS),
                          CheckpointError, "llama.block_count is '1'"),
    "missing key": (
        model_file("llama", {k: v for k, v in RMS.items() if k != "context_length"}, ARRAYS),
        CheckpointError, "llama.context_length is missing",
    ),
    "no heads": (model_file("llama", {**RMS, "attention.head_count": 0}, ARRAYS), CheckpointError,
                 "0 attention heads"),
    "billions of layers": (model_file("smollm3", {**RMS, "block_count": 2**31}, ARRAYS),
                           CheckpointError, "block_count is 2147483648"),
    "NaN epsilon": (
        model_file("llama", {**RMS, "attention.layer_norm_rms_epsilon": float("nan")}, ARRAYS),
        CheckpointError, "layer_norm_rms_epsilon is nan",
    ),
    "layer beyond": (
        model_file("llama", RMS, ARRAYS | {"blk.1.attn_norm.weight": np.ones(32)}),
        CheckpointError, "'blk.1.attn_norm.weight' belongs to none",
    ),
    "unknown tensor": (
        model_file("llama", RMS, ARRAYS | {"blk.0.ffn_gate_inp.weight": np.ones((8, 32))}),
        UnsupportedModel, "'blk.0.ffn_gate_inp.weight'",
    ),
    "rows of q": (
        model_file("llama", RMS, ARRAYS | {"blk.0.attn_q.weight": np.ones((24, 32))}),
        CheckpointError, "'blk.0.attn_q.weight' has 24 rows; the config asks for 32",
    ),
    "gigantic heads": (
        model_file(
            "llama", {**RMS, "attention.key_length": 2**24, "attention.value_length": 2**24}, ARRAYS
        ),
        CheckpointError,
        "has 32 rows; the config asks for 67108864",
    ),
    "odd heads": (
        model_file(
            "llama",
            {
                **RMS,
                "attention.key_length": 1,
                "attention.value_length": 1,
                "attention.head_count": 32,
            },
            ARRAYS,
        ),
        CheckpointError,
        "an even number",
    ),
    "olmo3": (model_file("olmo2", {**RMS, "attention.sliding_window": 8}, ARRAYS),
              UnsupportedModel, "olmo2.attention.sliding_window"),
    "not causal": (model_file("qwen2", {**RMS, "attention.causal": False}, ARRAYS),
                   UnsupportedModel, "attention.causal"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_models_are_refused(read: Read, kind: str) -> None:
    file, error, message = BAD[kind]
    tracemalloc.start()
    with pytest.raises(error, match=message) as caught:
        read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith("model.gguf: ")
    assert peak < 8 << 20
