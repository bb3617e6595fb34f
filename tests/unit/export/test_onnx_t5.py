"""T5 read back out of quantised graphs: the very values, and clear words for other graphs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import onnx_t5 as tiny

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.onnx_tensors import read_graph
from quickdraft.export.packing import kernel_format
from quickdraft.export.pipeline import read_checkpoint
from quickdraft.export.quantize import weight_format
from quickdraft.export.weights import Blocked


def test_every_value_is_found_again(tmp_path: Path) -> None:
    expected = tiny.write_folder(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert set(checkpoint.weights) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.weights[name].dense(), values, err_msg=name)
    assert isinstance(checkpoint.weights["lm_head.weight"].load(), Blocked)
    assert weight_format("auto", checkpoint.source.kind).keep


@pytest.mark.parametrize("scale", [0.00721, 6e-6, 1e6])
def test_scales_are_rounded_where_blocks_can_hold_them(tmp_path: Path, scale: float) -> None:
    expected = tiny.write_folder(tmp_path)
    path = tmp_path / "decoder.onnx"
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if "/lm_head/" in node.name)
    name = node.input[1].removesuffix("_quantized") + "_scale"
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    factor = np.float32(scale) / onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(scale, np.float32), name))
    onnx.save(model, path)
    weight = read_checkpoint(tmp_path).weights["lm_head.weight"]
    wanted = expected["lm_head.weight"] * factor
    np.testing.assert_allclose(weight.dense(), wanted, rtol=5e-4)
    assert kernel_format(weight.load()) == ("w8" if scale == 0.00721 else "f32")


def test_config_follows_from_shapes(tmp_path: Path) -> None:
    tiny.write_folder(tmp_path)
    config = read_checkpoint(tmp_path).config
    found = [config[name] for name in ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff")]
    assert found == [tiny.VOCAB, tiny.WIDTH, tiny.HEADS, tiny.KEYS, tiny.INNER]
    assert (config["num_layers"], config["num_decoder_layers"]) == (1, 1)
    assert config["feed_forward_proj"] == "gated-gelu"
    assert config["tie_word_embeddings"] is False


def test_zero_points_are_read_in_both_forms(tmp_path: Path) -> None:
    tiny.write_folder(tmp_path)
    path = tmp_path / "encoder.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        found = read_graph(path).values(tensor.name)
        np.testing.assert_array_equal(found, onnx.numpy_helper.to_array(tensor))


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    tiny.write_folder(tmp_path)
    model = onnx.load(tmp_path / "encoder.onnx")
    for tensor in model.graph.initializer:
        tensor.name = f"t{tensor.name.replace('weight', 'w')}"
    for node in model.graph.node:
        node.name = ""
    for name in ("encoder.onnx", "decoder.onnx"):
        onnx.save(model, tmp_path / name)
    with pytest.raises(UnsupportedModel, match="not those of a T5"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x3a\xff\xff\xff\xff\x07"])
def test_files_that_are_not_graphs_are_refused(tmp_path: Path, data: bytes) -> None:
    tiny.write_folder(tmp_path)
    (tmp_path / "decoder.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"decoder\.onnx"):
        read_checkpoint(tmp_path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    tiny.write_folder(folder)
    changed = bytearray((folder / "encoder.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / "encoder.onnx").write_bytes(bytes(changed))
    with suppress(CheckpointError):
        for weight in read_checkpoint(folder).weights.values():
            weight.dense()
