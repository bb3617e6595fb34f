"""Block formats against a scalar decoder written from the layouts, and against `gguf`."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tiny.random_blocks import KINDS, SCALES_AT, random_tensor

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.gguf_blocks import read_tensor
from quickdraft.export.checkpoints.gguf_header import TensorInfo
from quickdraft.export.weights import Blocked, Dense


def _dense(data: bytes, info: TensorInfo) -> np.ndarray:
    loaded = read_tensor(data, "f.gguf", info)
    if isinstance(loaded, Blocked):
        assert loaded.codes.max() < 1 << loaded.bits
        return loaded.to_dense()
    return np.asarray(loaded.values, np.float32)


def _half(block: bytes, at: int) -> np.float32:
    return np.float32(struct.unpack_from("<e", block, at)[0])


def _scalar_q4_1(block: bytes) -> list[np.float32]:
    d, m = _half(block, 0), _half(block, 2)
    codes = [b & 15 for b in block[4:]] + [b >> 4 for b in block[4:]]
    return [d * np.float32(code) + m for code in codes]


def _scalar_q5_0(block: bytes) -> list[np.float32]:
    d, high = _half(block, 0), int.from_bytes(block[2:6], "little")
    low = [b & 15 for b in block[6:]] + [b >> 4 for b in block[6:]]
    return [d * np.float32((c | (high >> i & 1) << 4) - 16) for i, c in enumerate(low)]


def _scalar_k4(block: bytes, group: int) -> tuple[np.float32, np.float32]:
    """Scale and minimum of one group, as ggml's get_scale_min_k4 explains the packing."""
    s = block[4:16]
    if group < 4:
        scale, minimum = s[group] & 63, s[group + 4] & 63
    else:
        scale = s[group + 4] & 15 | s[group - 4] >> 6 << 4
        minimum = s[group + 4] >> 4 | s[group] >> 6 << 4
    return _half(block, 0) * np.float32(scale), _half(block, 2) * np.float32(minimum)


def _scalar_q4_k(block: bytes) -> list[np.float32]:
    result = []
    for group in range(8):
        scale, minimum = _scalar_k4(block, group)
        for i in range(32):
            code = block[16 + group // 2 * 32 + i] >> 4 * (group % 2) & 15
            result.append(scale * np.float32(code) - minimum)
    return result


def _scalar_q6_k(block: bytes) -> list[np.float32]:
    d, result = _half(block, 208), []
    for i in range(256):
        half, j = divmod(i, 128)
        low = block[64 * half + j % 64] >> 4 * (j // 64) & 15
        high = block[128 + 32 * half + j % 32] >> 2 * (j // 32) & 3
        scale = np.float32(np.int8(block[192 + i // 16] - 256 * (block[192 + i // 16] > 127)))
        result.append((d * scale) * np.float32((low | high << 4) - 32))
    return result


@pytest.mark.parametrize(
    ("name", "decode"),
    [
        ("Q4_1", _scalar_q4_1),
        ("Q5_0", _scalar_q5_0),
        ("Q4_K", _scalar_q4_k),
        ("Q6_K", _scalar_q6_k),
    ],
)
def test_against_a_scalar_decoder(name: str, decode: object) -> None:
    data, info = random_tensor(name)
    nbytes = KINDS[name][2]
    blocks = [data[at : at + nbytes] for at in range(0, len(data), nbytes)]
    want = np.array([decode(block) for block in blocks], np.float32)  # type: ignore[operator]
    assert np.array_equal(_dense(data, info), want.reshape(info.shape))


def test_q8_0_by_hand() -> None:
    data = struct.pack("<e", 0.5) + bytes(range(112, 144))
    loaded = read_tensor(data, "f", TensorInfo("t", (1, 32), "Q8_0", 0, 34))
    assert isinstance(loaded, Blocked)
    signed = [byte - 256 * (byte > 127) for byte in range(112, 144)]
    assert loaded.to_dense().tolist() == [[0.5 * value for value in signed]]


@pytest.mark.torch
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_gguf_package_bit_for_bit(name: str, seed: int) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data, info = random_tensor(name, seed=seed)
    raw = np.frombuffer(data, np.uint8).reshape(info.shape[0], -1)
    want = dequantize(raw, GGMLQuantizationType(KINDS[name][0])).astype(np.float32)
    got = _dense(data, info)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_refused_by_tensor_name(name: str, bad: float) -> None:
    data, info = random_tensor(name)
    spoiled = bytearray(data)
    if name in SCALES_AT:
        at = SCALES_AT[name][-1] + KINDS[name][2]
        spoiled[at : at + 2] = np.array(bad, "<f2").tobytes()
        if name in ("Q4_K", "Q5_K"):  # a scale times a zero code would hide an infinity
            spoiled[at + 2 : at + 14] = b"\xff" * 12
        if name == "Q6_K":
            spoiled[at - 16 : at] = b"\1" * 16
    elif name == "F32":
        spoiled[:4] = np.array(bad, "<f4").tobytes()
    else:
        wide = np.array(bad, "<f4").tobytes()[2:]
        spoiled[:2] = wide if name == "BF16" else np.array(bad, "<f2").tobytes()
    with pytest.raises(CheckpointError, match=f"f.gguf: tensor 't' \\({name}\\) holds NaN"):
        read_tensor(bytes(spoiled), "f.gguf", info)


def test_quantised_vectors_become_dense() -> None:
    data, info = random_tensor("Q4_0")
    flat = TensorInfo("t", (info.shape[0] * info.shape[1],), "Q4_0", 0, len(data))
    loaded = read_tensor(data, "f", flat)
    assert isinstance(loaded, Dense)
    assert np.array_equal(loaded.values, _dense(data, info).ravel())


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    from quickdraft.export.checkpoints import gguf_blocks

    data, info = random_tensor("Q5_K", rows=7)
    whole = _dense(data, info)
    monkeypatch.setattr(gguf_blocks, "_CHUNK_VALUES", 512)
    assert np.array_equal(_dense(data, info), whole)
