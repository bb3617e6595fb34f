"""A graph reads only files that were hashed. Numbers are those of docs/bad-inputs.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny.bundles import TINY_FILES, field, onnx_model, onnx_tensor, write_tiny_bundle

from quickdraft.bundle import open_bundle
from quickdraft.errors import BundleError
from quickdraft.onnx_references import external_locations

TENSOR = onnx_tensor("x")
ATTRIBUTE = field(5, TENSOR)
PLACES = {
    "initializer": field(7, field(5, TENSOR)),
    "sparse initializer": field(7, field(15, field(1, TENSOR))),
    "node attribute": field(7, field(1, field(5, ATTRIBUTE))),
    "list attribute": field(7, field(1, field(5, field(10, TENSOR)))),
    "sparse attribute": field(7, field(1, field(5, field(22, field(2, TENSOR))))),
    "graph of a node": field(7, field(1, field(5, field(6, field(5, TENSOR))))),
    "graphs of a node": field(7, field(1, field(5, field(11, field(5, TENSOR))))),
    "function": field(25, field(7, field(5, ATTRIBUTE))),
    "function default": field(25, field(11, ATTRIBUTE)),
    "training": field(20, field(2, field(5, TENSOR))),
    "second graph": field(7, b"") + field(7, field(5, TENSOR)),
    "value before key": field(7, field(5, field(13, field(2, b"x") + field(1, b"location")))),
    "after numbers": b"\x08\x96\x01" + b"\x15abcd" + b"\x11abcdefgh" + field(7, field(5, TENSOR)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_reference_is_found_wherever_a_tensor_can_be(place: str) -> None:
    assert external_locations(PLACES[place], "m") == {"x"}


def test_onnx_agrees(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, raw_data=b"location" * 99)
    tensor.external_data.add(key="location", value="a.bin")
    tensor.external_data.add(key="offset", value="4096")
    inner = onnx.GraphProto(initializer=[tensor])
    node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner)
    model = onnx.helper.make_model(onnx.GraphProto(node=[node]), producer_name="test")
    assert external_locations(model.SerializeToString(), "m") == {"a.bin"}


@given(st.binary(max_size=200))
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\xff" * 30)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert isinstance(external_locations(data, "m"), set)
    except BundleError:
        return


@pytest.mark.parametrize("cut", range(1, len(TINY_FILES["model.onnx"])))
def test_27_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(BundleError, match="cut off or damaged"):
        external_locations(TINY_FILES["model.onnx"][:cut], "m")


@pytest.mark.parametrize(
    "data", [b"\xff" * 30, b"\x08" + b"\xff" * 10 + b"\x01", b"\x3a" + b"\xff" * 9 + b"\x7f"]
)
def test_28_varints_that_overflow_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="cut off or damaged"):
        external_locations(data, "m")


def test_32_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(40):
        data = field(1, field(5, field(6, data)))
    with pytest.raises(BundleError, match="deeper than 64"):
        external_locations(field(7, data), "m")


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (b"", "is empty"),
        (b"<html>", "m"),
        (onnx_model("../other"), "'../other'"),
        (onnx_model("/etc/passwd"), "passwd"),
        (onnx_model("other.bin"), "'other.bin'"),
        (onnx_model("weights/model.bin\0x"), "does not list"),
        (onnx_model("tokenizer.json"), "'tokenizer.json'"),  # listed, but not for this variant
        (onnx_model(""), "does not list"),
        (onnx_model("./weights/model.bin"), "does not list"),
        (onnx_model("*/_ORT_MEM_ADDR_/*"), "does not list"),
        (field(7, field(5, onnx_tensor("x", key="__class__"))), "unknown key b'__class__'"),
        (field(7, field(5, field(13, field(1, b"location") + field(2, b"\xff")))), "not UTF-8"),
    ],
)
def test_29_a_bundle_with_such_a_graph_is_refused(
    tmp_path: Path, graph: bytes, expected: str
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "other.bin").write_bytes(b"never hashed")
    write_tiny_bundle(tmp_path / "bundle", {**TINY_FILES, "model.onnx": graph})
    with pytest.raises(BundleError, match=r"model\.onnx") as caught:
        open_bundle(tmp_path / "bundle")
    assert expected in str(caught.value)
