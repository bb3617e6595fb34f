"""Families without torch: what is read, what is refused, and that blocks survive."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import tiny_checkpoint

from quickdraft.errors import CheckpointError, InputError, UnsupportedModel
from quickdraft.export.architectures.base import Family, find_family
from quickdraft.export.architectures.config import Config
from quickdraft.export.architectures.decoder import DecoderSpec
from quickdraft.export.architectures.rope import read_rope
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.numpy import Recorder
from quickdraft.export.ops import Rope
from quickdraft.export.quantize import quantize
from quickdraft.export.weights import Blocked, Weight, dense_weight
from quickdraft.registry import ARCHITECTURES, lookup

DECODERS = [
    name
    for name in ARCHITECTURES
    if isinstance(lookup("architecture", ARCHITECTURES, name), Family)
]


def family(name: str) -> Family:
    found: Family = lookup("architecture", ARCHITECTURES, name)
    return found


def read(name: str, **config: Any) -> DecoderSpec:
    return find_family({"model_type": name}).read({"model_type": name, **config})


TINY = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4}
STABLELM = {key: value for key, value in TINY.items() if key != "head_dim"}
OPENELM = {
    "num_transformer_layers": 2,
    "head_dim": 8,
    "model_dim": 32,
    "num_query_heads": [4, 4],
    "num_kv_heads": [2, 2],
    "ffn_multipliers": [1.0, 2.0],
}
BASE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(DECODERS, TINY),
    "gpt2": GPT2,
    "openelm": OPENELM,
    **dict.fromkeys(("stablelm", "opt", "gpt_neox"), STABLELM),
    "gemma3": {"text_config": TINY},
}


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_reads_a_config_of_its_sizes_only(name: str) -> None:
    spec = read(name, **BASE[name]).model_spec(num_parameters=7)
    assert spec.num_layers in (2, 4)
    assert spec.num_parameters == 7
    assert spec.family == {"gemma3_text": "gemma3"}.get(name, name)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "'rope_type' is 'dynamic'",
    ),
    ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, "'rope_type' is 'su'"),
    ("llama", {"hidden_act": "quick_gelu"}, "'hidden_act' is 'quick_gelu'"),
    ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
    ("llama", {"is_encoder_decoder": True}, "'is_encoder_decoder' is True"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "'quantization_config' is 'awq'"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "'rope_parameters' differs"),
    ("gemma3", {"text_config": {**TINY, "rope_parameters": {"a": {}}}}, "text_config: 'rope_par"),
    ("gemma3", {"text_config": {**TINY, "rope_scaling": {"type": "su"}}}, "is 'su'"),
    ("mistral", {"layer_types": ["full_attention"] * 4}, "'layer_types'"),
    ("phi3", {"layer_types": ["full_attention"] * 4}, "'layer_types'"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'type' is 'linear'"),
    ("phi3", {"partial_rotary_factor": 0.07}, "'partial_rotary_factor' is 0.07"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "'chunked_attention'"),
    ("gemma2", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'rope_scaling'"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx'"),
    ("gpt2", {"scale_attn_weights": False}, "'scale_attn_weights' is False"),
    ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' is True"),
    ("opt", {"do_layer_norm_before": False}, "'do_layer_norm_before' is False"),
    ("opt", {"word_embed_proj_dim": 32}, "'word_embed_proj_dim' is 32"),
    ("opt", {"_remove_final_layer_norm": True}, "'_remove_final_layer_norm' is True"),
    ("opt", {"layer_norm_elementwise_affine": False}, "'layer_norm_elementwise_affine'"),
    ("gpt_neox", {"rope_theta": 500000.0}, "'rope_theta' is 500000.0"),
    ("gpt_neox", {"partial_rotary_factor": 0.75}, "'partial_rotary_factor' is 0.75"),
    ("stablelm", {"head_dim": 32}, "'head_dim' is 32"),
    ("openelm", {"ffn_with_glu": False}, "'ffn_with_glu' is False"),
    ("openelm", {"normalization_layer_name": "layer_norm"}, "'normalization_layer_name'"),
]


@pytest.mark.parametrize(("name", "change", "says"), REFUSED)
def test_unsupported_values_are_refused_by_key_and_value(
    name: str, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json") as caught:
        read(name, **{**BASE[name], **change})
    assert says in str(caught.value)
    assert "support" in str(caught.value)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_size": "64"}, "'hidden_size' is '64'; it must be an integer"),
    ("llama", {"hidden_size": True}, "'hidden_size' is True; it must be an integer"),
    ("llama", {"hidden_size": 0}, "'hidden_size' is 0; it must be between 1 and"),
    ("llama", {"hidden_size": 1 << 40}, "it must be between 1 and"),
    ("llama", {"hidden_size": None}, "lacks 'hidden_size'"),
    ("llama", {"num_attention_heads": 3, "head_dim": None}, "a divisor of 'hidden_size' 64"),
    ("llama", {"rms_norm_eps": -1e-6}, "a finite number above zero"),
    ("llama", {"rope_theta": math.inf}, "a finite number above zero"),
    ("llama", {"rope_theta": "1e6"}, "'rope_theta' is '1e6'; it must be a number"),
    ("llama", {"attention_bias": 1}, "'attention_bias' is 1; it must be true or false"),
    ("llama", {"rope_scaling": "linear"}, "'rope_scaling' is 'linear'; it must be an object"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling lacks 'factor'"),
    (
        "llama",
        {
            "rope_scaling": {
                "type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            }
        },
        "'high_freq_factor' is 4.0, not above",
    ),
    (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "'short_factor' is 'a list of 1'; it must be a list of 8",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}},
        "neither 'factor' nor 'attention_factor'",
    ),
    ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "no sliding window is set"),
    ("qwen2", {"layer_types": ["full_attention"]}, "it must be a list of 4"),
    ("qwen2", {"max_window_layers": -1}, "'max_window_layers' is -1"),
    ("smollm3", {"no_rope_layers": [1, 2, 1, 1]}, "a list of 0 and 1"),
    ("gemma3", {"text_config": None}, "lacks 'text_config'"),
    ("gpt2", {"n_head": 3}, "a divisor of 'n_embd' 64"),
    ("openelm", {"num_query_heads": 4}, "it must be a list of 2"),
    ("openelm", {"num_kv_heads": [2, 0]}, "'num_kv_heads[1]' is 0"),
]


@pytest.mark.parametrize(("name", "change", "says"), WRONG)
def test_impossible_values_are_refused(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read(name, **{**BASE[name], **change})
    assert not isinstance(caught.value, UnsupportedModel)
    assert says in str(caught.value)


NASTY = [None, True, False, 0, -1, 1, 1 << 30, 1 << 70, 0.5, -0.0, math.nan, math.inf, 1e308]
NASTY += ["", "silu", "default", [], [1], [None] * 4, {}, {"type": "default"}, {"rope_type": 3}]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", DECODERS)
def test_no_value_of_any_key_does_more_than_be_refused(name: str) -> None:
    """Also: no value makes reading slow or large."""
    keys = {*family(name).defaults, *BASE[name], "rope_scaling", "layer_types", "head_dim"}
    for key in sorted(keys):
        for value in NASTY:
            config = {**BASE[name], key: value}
            if name == "gemma3" and key != "text_config":
                config = {"text_config": {**TINY, key: value}}
            with contextlib.suppress(InputError):
                read(name, **config).model_spec()


@pytest.mark.parametrize("name", [None, 7, "t6", "Llama"])
def test_unknown_model_types_list_what_there_is(name: object) -> None:
    with pytest.raises(UnsupportedModel, match=r"'model_type' is .*supported: bart, .*whisper"):
        find_family({} if name is None else {"model_type": name})


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: layer 0 has 4 heads over 3 KV heads"):
        read("llama", **{**TINY, "num_key_value_heads": 3})


def test_null_means_none_where_the_published_default_is_a_number() -> None:
    spec = read("gemma2", **TINY, final_logit_softcapping=None, attn_logit_softcapping=None)
    assert (spec.logit_softcap, spec.attention_softcap) == (None, None)
    assert read("gemma2", **TINY).logit_softcap == 30.0
    assert read("mistral", **TINY, sliding_window=None).model_spec().distinct_windows == (None,)
    assert read("mistral", **TINY).model_spec().distinct_windows == (4096,)


def test_windows_follow_their_patterns() -> None:
    assert read("gemma2", **TINY, sliding_window=8).model_spec().windows == (8, None, 8, None)
    three = read("gemma3_text", **TINY, sliding_window=8, sliding_window_pattern=3)
    assert three.model_spec().windows == (8, 8, None, 8)
    qwen = read("qwen2", **TINY, use_sliding_window=True, sliding_window=8, max_window_layers=3)
    assert qwen.model_spec().windows == (None, None, None, 8)
    assert read("qwen2", **TINY, sliding_window=8).model_spec().windows == (None,) * 4


def test_a_window_as_long_as_the_context_is_none() -> None:
    spec = read("mistral", **TINY, sliding_window=64, max_position_embeddings=64)
    assert spec.model_spec().windows == (None,) * 4


def test_rope_of_transformers_5_is_flattened() -> None:
    modern = read("llama", **TINY, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert modern.layers == read("llama", **TINY, rope_theta=5e5).layers
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    old = read("llama", **TINY, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    assert read("llama", **TINY, rope_parameters=scaled).layers == old.layers


def rope(**scaling: Any) -> Rope:
    values = {"max_position_embeddings": 4096, "rope_scaling": scaling or None}
    return read_rope(Config(values), 8, 10000.0)


def test_rope_frequencies() -> None:
    plain = np.array(rope().frequencies)
    np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(rope(type="linear", factor=4).frequencies, plain / 4, rtol=1e-6)
    llama3 = rope(
        rope_type="llama3",
        factor=8,
        low_freq_factor=1,
        high_freq_factor=4,
        original_max_position_embeddings=1024,
    )
    # Periods 6, 63, 628, 6283 against 1024 / 4 and 1024 / 1: two kept, one blended, one divided.
    blend = (1024 / (2 * math.pi / 0.01) - 1) / 3
    expected = [1, 0.1, (1 - blend) * 0.01 / 8 + blend * 0.01, 0.001 / 8]
    np.testing.assert_allclose(llama3.frequencies, expected, rtol=1e-6)
    yarn = rope(rope_type="yarn", factor=4, original_max_position_embeddings=1024)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert yarn.frequencies[0] == 1
    assert yarn.frequencies[3] == pytest.approx(0.001 / 4)
    long = rope(rope_type="longrope", factor=16, short_factor=[1, 2, 4, 8])
    np.testing.assert_allclose(long.frequencies, plain / [1, 2, 4, 8], rtol=1e-6)
    assert long.attention_factor == pytest.approx(math.sqrt(1 + math.log(16) / math.log(4096)))


def test_yarn_magnitudes_can_be_weighed() -> None:
    weighed = rope(rope_type="yarn", factor=4, mscale=1.0, mscale_all_dim=0.5)
    ratio = (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert weighed.attention_factor == pytest.approx(ratio)
    assert rope(rope_type="yarn", factor=4, attention_factor=1.5).attention_factor == 1.5


def build(name: str, config: dict[str, Any], weights: dict[str, Weight]) -> Recorder:
    recorder, found = Recorder(), family(name)
    found.build(recorder, found.read(config), WeightMap(weights))
    return recorder


def tiny_weights(**config: Any) -> tuple[dict[str, Any], dict[str, Weight]]:
    checkpoint = tiny_checkpoint("llama", **config)
    return dict(checkpoint.config), dict(checkpoint.weights._weights)


def test_missing_tensors_are_named() -> None:
    config, weights = tiny_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model.layers.1.mlp.up_proj"):
        build("llama", config, weights)


def test_wrong_shapes_are_named() -> None:
    config, weights = tiny_weights()
    weights["model.norm.weight"] = dense_weight("model.norm.weight", np.ones(31, np.float32))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' has shape \[31\].*\[32\]"):
        build("llama", config, weights)


def test_tensors_left_over_are_refused() -> None:
    """A bias that the config does not announce would otherwise be dropped silently."""
    config, weights = tiny_weights()
    name = "model.layers.0.self_attn.q_proj.bias"
    weights[name] = dense_weight(name, np.ones(64, np.float32))
    with pytest.raises(UnsupportedModel, match=r"q_proj.bias'.*llama does not use"):
        build("llama", config, weights)


def test_known_buffers_may_be_left_over() -> None:
    config, weights = tiny_weights(tie_word_embeddings=True)
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"):
        weights[name] = dense_weight(name, np.ones(4, np.float32))
    build("llama", config, weights)


@pytest.mark.parametrize("prefix", ["model", "language_model.model", "model.language_model"])
def test_gemma3_is_found_inside_a_multimodal_checkpoint(prefix: str) -> None:
    checkpoint = tiny_checkpoint("gemma2")
    shape = (checkpoint.config["head_dim"],)
    weights = {
        name.replace("model", prefix, 1): weight for name, weight in checkpoint.weights.items()
    }
    for layer in range(2):
        for norm in ("q_norm", "k_norm"):
            name = f"{prefix}.layers.{layer}.self_attn.{norm}.weight"
            weights[name] = dense_weight(name, np.zeros(shape, np.float32))
    vision = "vision_tower.vision_model.post_layernorm.weight"
    weights[vision] = dense_weight(vision, np.ones(4, np.float32))
    text = {**checkpoint.config, "attn_logit_softcapping": None}
    build("gemma3", {"model_type": "gemma3", "text_config": text}, weights)


def blocked(name: str, rows: int, columns: int) -> Weight:
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    data = quantize(values, 4)
    return Weight(name, (rows, columns), "Q4_0", lambda: data)


def test_blocks_survive_being_cut() -> None:
    """Fused matrices of phi3 and gpt_neox: blocks stay blocks, rows keep their values."""
    heads, each, hidden = 4, 8, 32
    fused = blocked("gpt_neox.layers.0.attention.query_key_value.weight", 3 * hidden, hidden)
    config = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": 1,
        "attention_bias": False,
    }
    spec = family("gpt_neox").read(config)
    weights = {fused.name: fused}

    class Anything(WeightMap):
        """Ones for every tensor but the fused one."""

        def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
            return weights.get(name) or dense_weight(name, np.ones(shape, np.float32))

    layer = family("gpt_neox").gather(spec, Anything({})).layers[0]
    expected = fused.dense().reshape(heads, 3, each, hidden)
    for part, linear in enumerate((layer.query, layer.key, layer.value)):
        assert isinstance(linear.weight.load(), Blocked)
        assert linear.weight.stored_as == "Q4_0"
        assert np.array_equal(linear.weight.dense(), expected[:, part].reshape(hidden, hidden))
