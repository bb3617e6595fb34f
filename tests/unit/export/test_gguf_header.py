"""The header parser on good files, and on every bad kind we know of."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tiny.gguf_file import (
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    GgufFile,
    Tensor,
    array,
    pair,
    tensor,
    text,
)  # fmt: skip

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints import gguf_header
from quickdraft.export.checkpoints.gguf_header import open_file, parse_header

FULL = 2**64 - 1
ONE = np.arange(8, dtype=np.float32)


def _pairs(*pairs: bytes) -> bytes:
    return GgufFile([*pairs]).to_bytes() + b"\0" * 16


def _tensors(*tensors: Tensor, cut: int = 0) -> bytes:
    return GgufFile([], [*tensors], cut=cut).to_bytes()


def _align(value: int) -> bytes:
    return _pairs(pair("general.alignment", U32, value))


# llama.cpp's test-gguf kinds first, under its names; then items of our own list of bad inputs.
BAD: dict[str, tuple[bytes, type[CheckpointError], str]] = {
    "header_bad_magic": (GgufFile(magic=b"GGXF").to_bytes(), CheckpointError, "not a GGUF file"),
    "header_version_1": (GgufFile(version=1).to_bytes(), UnsupportedModel, "version 1"),
    "header_version_0": (GgufFile(version=0).to_bytes(), UnsupportedModel, "version 0"),
    "header_version_future": (GgufFile(version=4).to_bytes(), UnsupportedModel, "version 4"),
    "header_n_tensors": (GgufFile(tensor_count=FULL).to_bytes(), CheckpointError, "tensor count"),
    "header_n_kv": (GgufFile(pair_count=FULL).to_bytes(), CheckpointError, "key/value count"),
    "header_empty": (b"GGUF", CheckpointError, "version.*truncated"),
    "kv_key_size": (
        _pairs(struct.pack("<Q", FULL) + b"key"), CheckpointError, "key 0 claims",
    ),
    "kv_bad_type": (_pairs(text("key") + struct.pack("<I", 13) + b"\0" * 8), CheckpointError,
                    "'key' has the unknown type 13"),
    "kv_bad_array_type": (_pairs(text("key") + struct.pack("<IIQ", 9, 99, 0)), CheckpointError,
                          "array of the unknown type 99"),
    "kv_bad_string_size": (_pairs(text("key") + struct.pack("<IQ", STRING, FULL)), CheckpointError,
                           "value of 'key' claims"),
    "kv_duplicate_key": (_pairs(pair("a", U32, 1), pair("a", U32, 2)), CheckpointError,
                         "'a' appears twice"),
    "kv_alignment_0": (_align(0), CheckpointError, "general.alignment is 0"),
    "kv_alignment_13": (_align(13), CheckpointError, "general.alignment is 13"),
    "kv_alignment_2_31": (_align(2**31), CheckpointError, "general.alignment is 2147483648"),
    "kv_alignment_4": (_align(4), CheckpointError, "general.alignment is 4"),
    "kv_alignment_text": (_pairs(pair("general.alignment", STRING, "32")), CheckpointError,
                          "general.alignment is not an integer"),
    "tensors_name_size": (_tensors(tensor("n" * 64, ONE)), CheckpointError, "tensor 0 claims 64"),
    "tensors_n_dims": (_tensors(Tensor("t", [1] * 5, b"\0" * 4)), CheckpointError, "5 dimensions"),
    "tensors_n_dims_0": (_tensors(Tensor("t", [], b"")), CheckpointError, "0 dimensions"),
    "tensors_n_dims_huge": (_tensors(Tensor("t", [8], b"\0" * 32, dimensions=2**32 - 1)),
                            CheckpointError, "dimensions"),
    "tensors_shape_negative": (_tensors(Tensor("t", [-8], b"\0" * 32)), CheckpointError,
                               "every size must be positive"),
    "tensors_shape_zero": (_tensors(Tensor("t", [8, 0], b"\0" * 32)), CheckpointError,
                           "every size must be positive"),
    "tensors_ne_too_big": (_tensors(Tensor("t", [2**62], b"\0" * 32)), CheckpointError, "needs"),
    "tensors_product_wraps": (_tensors(Tensor("t", [2**32, 2**32], b"\0" * 32)), CheckpointError,
                              "needs"),
    "tensors_product_wraps_to_0": (_tensors(Tensor("t", [2**61, 8, 2**61, 8], b"\0" * 32)),
                                   CheckpointError, "needs"),
    "tensors_bad_type": (_tensors(Tensor("t", [8], b"\0" * 32, kind=255)), CheckpointError,
                         "unknown type 255"),
    "tensors_removed_type": (_tensors(Tensor("t", [8], b"\0" * 32, kind=4)), CheckpointError,
                             "unknown type 4"),
    "tensors_other_type": (_tensors(Tensor("t", [256], b"\0" * 84, kind=10)), UnsupportedModel,
                           "stored as Q2_K"),
    "tensors_row_not_blocks": (_tensors(Tensor("t", [33], b"\0" * 64, kind=2)), CheckpointError,
                               "not a multiple of the 32"),
    "tensors_offset_huge": (_tensors(Tensor("t", [8], b"\0" * 32, offset=FULL)), CheckpointError,
                            "offset"),
    "tensors_offset_wraps": (_tensors(Tensor("t", [8], b"\0" * 32, offset=FULL - 31)),
                             CheckpointError, "truncated"),
    "tensors_offset_unaligned": (_tensors(Tensor("t", [8], b"\0" * 64, offset=8)), CheckpointError,
                                 "not a multiple of the alignment"),
    "tensors_duplicate_name": (_tensors(tensor("t", ONE), tensor("t", ONE)), CheckpointError,
                               "'t' appears twice"),
    "tensors_overlap": (_tensors(tensor("a", ONE), Tensor("b", [8], b"", offset=0)),
                        CheckpointError, "overlaps"),
    "tensors_partial_overlap": (
        _tensors(Tensor("a", [16], b"\0" * 64), Tensor("b", [8], b"", offset=32)),
        CheckpointError, "'b' overlaps tensor 'a'",
    ),
    "tensors_inconsistent_alignment": (
        GgufFile([pair("general.alignment", U32, 64)], [tensor("a", ONE), tensor("b", ONE)],
                 alignment=32).to_bytes(),
        CheckpointError, "not a multiple of the alignment 64",
    ),
    "data_one_byte_short": (_tensors(tensor("t", ONE), cut=1), CheckpointError, "truncated"),
    "data_missing": (_tensors(tensor("t", ONE), cut=32), CheckpointError, "truncated"),
    "tensor_name_empty": (_tensors(tensor("", ONE)), CheckpointError, "empty or holds control"),
    "tensor_name_nul": (_tensors(tensor("a\0", ONE)), CheckpointError, "empty or holds control"),
    "key_empty": (_pairs(pair("", U32, 1)), CheckpointError, "key 0 is empty"),
    "key_not_utf8": (_pairs(text(b"\xff\xfe") + struct.pack("<II", U32, 1)), CheckpointError,
                     "not valid UTF-8"),
    "text_not_utf8": (_pairs(text("k") + struct.pack("<I", STRING) + text(b"\xff")),
                      CheckpointError, "value of 'k' is not valid UTF-8"),
    "array_item_not_utf8": (_pairs(array("k", STRING, ["a", b"\xff"])), CheckpointError,
                            "item 1 of the array 'k' is not valid UTF-8"),
    "bool_2": (_pairs(text("k") + struct.pack("<IB", BOOL, 2)), CheckpointError, "boolean"),
    "array_count_2_62": (_pairs(array("k", U32, [], count=2**62)), CheckpointError, "'k' has"),
    "array_of_strings_2_62": (_pairs(array("k", STRING, [], count=2**62)), CheckpointError,
                              "'k' has"),
    "array_count_beyond_file": (_pairs(array("k", STRING, ["a"], count=2**20)), CheckpointError,
                                "1048576 strings.*truncated"),
    "numbers_beyond_file": (_pairs(array("k", F32, [1.0], count=2**20)), CheckpointError,
                            "1048576 values.*truncated"),
    "array_item_beyond_file": (_pairs(array("k", STRING, []) [:-8] + struct.pack("<QQ", 1, 2**62)),
                               CheckpointError, "item 0 of the array 'k'"),
    "string_length_2_63": (_pairs(text("k") + struct.pack("<IQ", STRING, 2**63)), CheckpointError,
                           "claims 9223372036854775808 bytes"),
    "array_of_arrays": (_pairs(text("k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1)),
                        CheckpointError, "array of arrays"),
    "tensors_20_001": (GgufFile(tensor_count=20_001).to_bytes() + b"\0" * 700_000,
                       CheckpointError, "limit is 20000"),
    "pairs_10_001": (GgufFile(pair_count=10_001).to_bytes() + b"\0" * 200_000, CheckpointError,
                     "limit is 10000"),
    "html_page": (b"<!DOCTYPE html><html><body>404</body></html>", CheckpointError, "HTML"),
    "html_page_indented": (b"\n\n  <html><body>404</body></html>", CheckpointError, "HTML"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\n", CheckpointError,
                        "Git LFS"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, CheckpointError, "zip archive"),
    "pickle": (b"\x80\x04\x95" + b"\0" * 60, CheckpointError, "pickle"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 60, CheckpointError, "gzip"),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + b"\0" * 8, CheckpointError, "safetensors"),
    "json": (b'{"error": "not found"}', CheckpointError, "JSON"),
    "old_ggml": (b"tjgg" + b"\0" * 60, CheckpointError, "before GGUF"),
    "zeros": (b"\0" * 4096, CheckpointError, "zeros"),
    "random": (b"\x13\x37" * 32, CheckpointError, "starts with 13 37 13 37"),
    "big_endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel, "big-endian"),
    "byte_swapped": (b"FUGG" + b"\0" * 60, CheckpointError, "big-endian"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_header_is_refused_quickly(kind: str) -> None:
    data, error, message = BAD[kind]
    start = time.process_time()
    with pytest.raises(error, match=message) as caught:
        parse_header(data, "bad.gguf")
    assert time.process_time() - start < 1
    assert str(caught.value).startswith("bad.gguf: ")


@pytest.fixture
def good() -> bytes:
    pairs = [
        pair("general.architecture", STRING, "llama"),
        pair("general.alignment", U32, 64),
        pair("flag", BOOL, True),
        array("words", STRING, ["a", "", "日本"]),
        array("numbers", I32, [1, -2, 3]),
    ]
    tensors = [tensor("a", ONE.reshape(2, 4)), tensor("b", ONE)]
    return GgufFile(pairs, tensors, alignment=64).to_bytes()


def test_good_header(good: bytes) -> None:
    header = parse_header(good, "good.gguf")
    assert header.version == 3
    assert header.alignment == 64
    assert header.metadata["flag"] is True
    assert header.metadata["words"] == ("a", "", "日本")
    numbers = header.metadata["numbers"]
    assert isinstance(numbers, np.ndarray)
    assert numbers.dtype == np.int32
    assert numbers.tolist() == [1, -2, 3]
    info = header.tensors["a"]
    assert info.shape == (2, 4)
    assert good[info.offset : info.offset + info.nbytes] == ONE.tobytes()


def test_version_2_and_no_content() -> None:
    header = parse_header(GgufFile(version=2).to_bytes(), "empty.gguf")
    assert not header.metadata
    assert not header.tensors


def test_truncation_anywhere_is_refused(good: bytes) -> None:
    end = max(info.offset + info.nbytes for info in parse_header(good, "x").tensors.values())
    for length in range(end):
        with pytest.raises(CheckpointError):
            parse_header(good[:length], "cut.gguf")


@pytest.mark.parametrize("over", [False, True])
def test_limits_hold_exactly(monkeypatch: pytest.MonkeyPatch, over: bool) -> None:
    monkeypatch.setattr(gguf_header, "MAX_PAIRS", 2)
    monkeypatch.setattr(gguf_header, "MAX_TENSORS", 2)
    monkeypatch.setattr(gguf_header, "MAX_ELEMENTS", 3)
    for file in (
        GgufFile([pair(str(i), U32, i) for i in range(2 + over)]),
        GgufFile([], [tensor(str(i), ONE) for i in range(2 + over)]),
        GgufFile([array("a", STRING, ["x"]), array("b", I32, [0] * (2 + over))]),
    ):
        if not over:
            parse_header(file.to_bytes(), "x")
            continue
        with pytest.raises(CheckpointError, match="limit"):
            parse_header(file.to_bytes(), "x")


def test_metadata_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_METADATA_BYTES", 100)
    data = GgufFile([pair("k", STRING, "x" * 100)]).to_bytes()
    with pytest.raises(CheckpointError, match="exceeds the limit of 100 bytes"):
        parse_header(data, "x")


def test_big_lists_parse_fast_and_in_bounded_memory() -> None:
    words = [f"token {i}" for i in range(300_000)]
    data = GgufFile([array("words", STRING, words)]).to_bytes()
    start = time.process_time()
    header = parse_header(data, "big.gguf")
    assert time.process_time() - start < 1
    assert header.metadata["words"] == tuple(words)
    tracemalloc.start()
    parse_header(data, "big.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < gguf_header.PARSE_MEMORY_BYTES * len(words) / gguf_header.MAX_ELEMENTS


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, message in (
        ("", "folder"),
        ("nothing.gguf", "no such file"),
        ("empty.gguf", "empty"),
        ("pipe.gguf", "not a regular file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_file(tmp_path / name)
