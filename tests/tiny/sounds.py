"""WAV files as bytes, right and wrong ones."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

PCM, FLOAT = 1, 3


def wav(
    data: bytes,
    *,
    kind: int = PCM,
    channels: int = 1,
    rate: int = 16_000,
    bits: int = 16,
    claimed: int | None = None,
) -> bytes:
    """A file of one 'fmt ' and one 'data' part; claimed: the length its header gives."""
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * align, align, bits)
    size = len(data) if claimed is None else claimed
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data"
    body += struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def pcm16(samples: NDArray[np.float32], **rest: int) -> bytes:
    """A file of 16-bit samples; samples: [n] or [n, channels], within -1 .. 1."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    return wav(np.round(samples * 32767).astype("<i2").tobytes(), channels=channels, **rest)


def tone(hz: float, seconds: float, rate: int) -> NDArray[np.float32]:
    """A sine of half the full scale."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)
