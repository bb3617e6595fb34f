"""safetensors from strangers: every malformed kind is refused by name, nothing is read beyond."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.safetensors_file import read_safetensors
from quickdraft.export.emitters.weight_file import WeightFile

Header = dict[str, Any]


def entry(start: int, end: int, shape: list[Any], dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def good() -> Header:
    return {"a": entry(0, 16, [2, 2]), "b": entry(16, 24, [2])}


def write(path: Path, header: Header | bytes, data: int = 24, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + bytes(data))
    return path


def changed(change: Callable[[Header], object]) -> Header:
    header = good()
    change(header)
    return header


MALFORMED: list[tuple[str, Header | bytes, str]] = [
    ("overlap", {**good(), "b": entry(8, 16, [2])}, "overlaps the tensor before it"),
    ("hole", {**good(), "b": entry(20, 28, [2])}, "leaves a hole"),
    ("trailing byte", {"a": entry(0, 16, [2, 2])}, "truncated, or more"),
    ("size mismatch", {**good(), "b": entry(16, 24, [3])}, "needs 12 bytes and has 8"),
    ("reversed offsets", {**good(), "b": entry(24, 16, [2])}, "not a start and an end"),
    ("end beyond the file", {**good(), "b": entry(16, 32, [4])}, "truncated, or more"),
    ("negative offset", {**good(), "b": entry(-8, 0, [2])}, "not a list of whole numbers"),
    ("negative dimension", {**good(), "b": entry(16, 24, [-2])}, "not a list of whole numbers"),
    ("float dimension", {**good(), "b": entry(16, 24, [2.0])}, "not a list of whole numbers"),
    ("bool dimension", {**good(), "b": entry(16, 24, [True])}, "not a list of whole numbers"),
    ("product beyond 2**64", {**good(), "b": entry(16, 24, [1 << 62, 1 << 62])}, "needs"),
    ("product that wraps to 0", {**good(), "b": entry(16, 16, [1 << 32, 1 << 32])}, "needs"),
    ("no values", {**good(), "b": entry(16, 16, [0])}, "has no values"),
    ("many dimensions", {**good(), "b": entry(16, 24, [1] * 9)}, "9 dimensions"),
    ("three offsets", {**good(), "b": {**entry(16, 24, [2]), "data_offsets": [1, 2, 3]}}, "start"),
    ("extra key", {**good(), "b": {**entry(16, 24, [2]), "x": 1}}, "dtype, shape and data_offsets"),
    ("missing key", {**good(), "b": {"dtype": "F32"}}, "dtype, shape and data_offsets"),
    ("entry is a list", {**good(), "b": []}, "dtype, shape and data_offsets"),
    ("empty name", {**good(), "": entry(24, 24, [0])}, "is empty, too long or not printable"),
    ("NUL name", {**good(), "\0": entry(24, 24, [0])}, "is empty, too long or not printable"),
    ("long name", {**good(), "n" * 501: entry(24, 24, [0])}, "is empty, too long"),
    ("no tensors", {"__metadata__": {}}, "names 0 tensors"),
    ("header is a list", b"[]", "its header is not an object"),
    ("header is not JSON", b"{", "its header is not JSON"),
    ("header is not UTF-8", b"\xff\xff", "its header is not UTF-8"),
    ("deep header", b'{"a":' + b"[" * 100_000, "nested deeper than 8"),
    ("NaN in the header", b'{"a": NaN}', "NaN"),
]


@pytest.mark.parametrize(
    ("header", "says"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_malformed_headers(tmp_path: Path, header: Header | bytes, says: str) -> None:
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        read_safetensors(path)
    assert says in str(caught.value)


def test_duplicate_names(tmp_path: Path) -> None:
    """The library takes the last one."""
    one = json.dumps(entry(0, 16, [2, 2]))
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    with pytest.raises(CheckpointError, match="has the key 'a' twice"):
        read_safetensors(write(tmp_path / "x.safetensors", text, data=16))


def test_too_many_tensors(tmp_path: Path) -> None:
    header = {f"t{i}": entry(i, i + 1, [1], "U8") for i in range(20_001)}
    with pytest.raises(CheckpointError, match="names 20001 tensors; 1 to 20000"):
        read_safetensors(write(tmp_path / "x.safetensors", header, data=20_001))


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (2**64 - 1, "its header claims 18446744073709551615 bytes; the format allows 100000000"),
        (100_000_001, "the format allows 100000000"),
        (2**63, "the format allows 100000000"),
        (100_000_000, "truncated?"),
        (1000, "truncated?"),
    ],
)
def test_header_lengths(tmp_path: Path, length: int, says: str) -> None:
    path = write(tmp_path / "x.safetensors", good(), length=length)
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(list(range(9))), b"<!DOCTYPE html><title>404</title>", b"PK\x03\x04zip!"],
)
def test_other_files_under_this_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="another kind of file under this name"):
        read_safetensors(path)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_no_room_for_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="too short for a header"):
        read_safetensors(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", good()).read_bytes()
    path = tmp_path / "x.safetensors"
    for size in range(0, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_safetensors(path)


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "F8_E5M2", "F4", "C64", "X", "", None, 7])
def test_types_we_do_not_read_are_named(tmp_path: Path, dtype: Any) -> None:
    header = {**good(), "b": entry(16, 24, [2], dtype)}
    with pytest.raises(UnsupportedModel, match=r"'b' is stored as .*supported: F32, F16, BF16"):
        read_safetensors(write(tmp_path / "x.safetensors", header))


def test_integers_are_kept_aside_until_asked_for(tmp_path: Path) -> None:
    header = {**good(), "b": entry(16, 24, [1], "I64")}
    weights = read_safetensors(write(tmp_path / "x.safetensors", header))
    with pytest.raises(UnsupportedModel, match="'b' holds integers"):
        weights["b"].dense()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_numbers(tmp_path: Path, bad: float, dtype: type) -> None:
    save_file({"w": np.array([1, bad], dtype)}, tmp_path / "x.safetensors")
    weights = read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="'w' holds NaN or infinite values"):
        weights["w"].dense()


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", good())
    weights = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        weights["b"].dense()


def test_values_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "single": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal((4, 2)).astype(np.float16),
        "vector": random.standard_normal(7).astype(np.float32),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    weights = read_safetensors(tmp_path / "x.safetensors")
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    assert weights["half"].stored_as == "F16"
    for name, array in arrays.items():
        assert np.array_equal(weights[name].dense(), array.astype(np.float32))


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    numbers = np.array([1.0, -2.5, 3.140625, 1e-30], np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype("<u2")
    path = write(tmp_path / "x.safetensors", {"a": entry(0, 8, [4], "BF16")}, data=0)
    path.write_bytes(path.read_bytes() + upper.tobytes())
    expected = (upper.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(read_safetensors(path)["a"].dense(), expected)
    assert expected[0] == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5))
def test_what_we_write_we_read(tmp_path_factory: Any, shapes: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    random = np.random.default_rng(len(shapes))
    arrays = {
        f"t{i}": random.standard_normal(shape).astype(np.float16 if i % 2 else np.float32)
        for i, shape in enumerate(shapes)
    }
    with WeightFile(path) as file:
        for name, array in arrays.items():
            file.add(name, array)
    weights = read_safetensors(path)
    assert list(weights) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(weights[name].dense(), array.astype(np.float32))
