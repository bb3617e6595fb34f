"""No mutation of a GGUF file gives anything but a CheckpointError or a valid parse."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny.gguf_models import tiny_llama

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.gguf import read_gguf
from quickdraft.export.checkpoints.gguf_header import MAGIC, parse_header

GOOD = tiny_llama().to_bytes()
EDITS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4)


def _mutated(edits: list[tuple[int, int]], length: int) -> bytes:
    data = bytearray(GOOD)
    for at, value in edits:
        data[at] = value
    return bytes(data[:length])


@given(EDITS, st.integers(0, len(GOOD)))
@settings(max_examples=400, deadline=5_000)
def test_mutated_header(edits: list[tuple[int, int]], length: int) -> None:
    with contextlib.suppress(CheckpointError):
        header = parse_header(_mutated(edits, length), "m.gguf")
        for info in header.tensors.values():
            assert 0 <= info.offset <= info.offset + info.nbytes <= length


@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=5_000)
def test_random_bytes_after_the_magic(tail: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        parse_header(MAGIC + b"\3\0\0\0" + tail, "r.gguf")


@given(EDITS)
@settings(
    max_examples=150, deadline=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_model(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_mutated(edits, len(GOOD)))
    with contextlib.suppress(CheckpointError):
        checkpoint = read_gguf(path)
        for name in checkpoint.weights:
            checkpoint.weights[name].dense()


def test_the_unchanged_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    assert read_gguf(path).config["model_type"] == "llama"
    with pytest.raises(CheckpointError):
        parse_header(GOOD[:-40], "cut.gguf")
