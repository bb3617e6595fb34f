"""CTranslate2's Whisper: every tensor in its place, and everything wrong refused."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ctranslate2 as tiny

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.pipeline import read_checkpoint


def test_weights_get_the_names_of_transformers(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny.write_folder(tmp_path))
    found, given_ = checkpoint.weights, tiny.variables()
    joined = given_["encoder/layer_0/self_attention/linear_0/weight"]
    for index, letter in enumerate("qkv"):
        name = f"model.encoder.layers.0.self_attn.{letter}_proj.weight"
        rows = joined[index * tiny.WIDTH : (index + 1) * tiny.WIDTH]
        np.testing.assert_array_equal(found[name].dense(), rows)
    joined = given_["decoder/layer_0/attention/linear_1/weight"]
    name = "model.decoder.layers.0.encoder_attn.v_proj.weight"
    np.testing.assert_array_equal(found[name].dense(), joined[tiny.WIDTH :])
    np.testing.assert_array_equal(
        found["model.encoder.conv1.weight"].dense(), given_["encoder/conv1/weight"]
    )
    assert "model.decoder.layers.0.self_attn.k_proj.bias" not in found
    # What is joined, less the biases of keys, which are zeros.
    assert len(found) == len(given_) - 4 + 2 * (5 - 2) + (3 - 2)


def test_config_and_tokens_are_found(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny.write_folder(tmp_path))
    config, generation = checkpoint.config, checkpoint.generation
    assert config["model_type"] == "whisper"
    assert (config["d_model"], config["encoder_ffn_dim"]) == (tiny.WIDTH, tiny.INNER)
    assert (config["num_mel_bins"], config["max_source_positions"]) == (tiny.BINS, tiny.SOURCE)
    assert config["decoder_start_token_id"] == tiny.VOCAB - 3
    assert generation["no_timestamps_token_id"] == tiny.VOCAB - 2
    assert generation["begin_suppress_tokens"] == [3]
    assert generation["is_multilingual"] is False
    assert "lang_to_id" not in generation
    assert checkpoint.tokenizer.eos_token_ids == (tiny.VOCAB - 4,)


def test_8_bit_rows_are_divided_by_their_scales(tmp_path: Path) -> None:
    variables = tiny.variables(np.float32)
    name = "decoder/layer_0/ffn/linear_1/weight"
    values = variables[name]
    scale = (127 / np.abs(values).max(axis=1)).astype(np.float32)
    variables[name] = np.round(values * scale[:, None]).astype(np.int8)
    variables[f"{name}_scale"] = scale
    checkpoint = read_checkpoint(tiny.write_folder(tmp_path, tiny.serialise(variables)))
    found = checkpoint.weights["model.decoder.layers.0.fc2.weight"].dense()
    np.testing.assert_allclose(found, values, atol=float((0.51 / scale).max()))


GOOD = tiny.serialise(tiny.variables())


def without(name: str) -> bytes:
    return tiny.serialise({k: v for k, v in tiny.variables().items() if k != name})


def with_(**changed: object) -> bytes:
    found = tiny.variables()
    found.update({name.replace("__", "/"): np.asarray(value) for name, value in changed.items()})
    return tiny.serialise(found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[:-5], "cut off|twice|damaged"),
        (GOOD[:5000], "cut off"),
        (tiny.serialise(tiny.variables(), version=7), "format 7"),
        (tiny.serialise(tiny.variables(), spec="TransformerSpec"), "TransformerSpec"),
        (GOOD.replace(struct.pack("<I", len(tiny.variables())), b"\xff\xff\xff\x7f", 1), "claims"),
        (without("encoder/layer_0/ffn/linear_0/weight"), "no layers of the encoder"),
        (without("decoder/layer_0/ffn/linear_1/bias"), "no tensor"),
        (without("encoder/num_heads"), "no whole number"),
        (with_(decoder__activation=np.int8(0)), "GELU"),
        (with_(decoder__pre_norm=np.int8(0)), "norms"),
        (with_(encoder__conv1__bias=np.zeros(8, np.int16)), "stored as I16"),
        (tiny.serialise(tiny.variables(), {"a": "nothing"}), "stands for"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tiny.write_folder(tmp_path, data))


def test_values_that_are_not_numbers_are_refused_when_loaded(tmp_path: Path) -> None:
    data = with_(encoder__conv1__bias=np.full(8, np.nan, np.float32))
    weight = read_checkpoint(tiny.write_folder(tmp_path, data)).weights["model.encoder.conv1.bias"]
    with pytest.raises(CheckpointError, match="not finite"):
        weight.dense()


def test_a_bias_of_keys_is_refused(tmp_path: Path) -> None:
    name = "decoder__layer_0__attention__linear_1__bias"
    with pytest.raises(UnsupportedModel, match="bias of its keys"):
        read_checkpoint(tiny.write_folder(tmp_path, with_(**{name: np.ones(16, np.float32)})))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|startoftranscript|>", "<|start|>"))
    with pytest.raises(CheckpointError, match="no token"):
        read_checkpoint(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    folder = tiny.write_folder(tmp_path_factory.mktemp("damage"), bytes(changed))
    with suppress(CheckpointError):
        for weight in read_checkpoint(folder).weights.values():
            weight.dense()
