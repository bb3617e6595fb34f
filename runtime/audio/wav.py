"""WAV files, read strictly and piece by piece.

The standard library's reader knows no floats and believes what headers claim. Format: Microsoft,
"Multimedia Programming Interface and Data Specifications 1.0" (1991) and the note on
WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import AudioError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 49: "GSM", 80: "MPEG", 85: "MP3"}
_MOST_CHANNELS = 64
_MOST_CHUNKS = 1_000
_UNKNOWN_LENGTH = 0xFFFFFFFF
"""What programs write that do not know yet how long the sound will be."""
_CONVERT = "convert it, for example with: ffmpeg -i IN -ar 16000 -ac 1 -c:a pcm_s16le OUT.wav"


@dataclass(frozen=True)
class _Format:
    kind: int
    channels: int
    rate: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.bits // 8


class WavFile:
    """One open file. rate: samples a second; frames: how many per channel."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            AudioError: it is not a WAV file, damaged, or of a kind that is not read.
        """
        self._path = path
        self._file: BinaryIO = path.open("rb")
        try:
            self._format, self._start, size = _parse(path, self._file)
        except BaseException:
            self._file.close()
            raise
        self.rate = self._format.rate
        self.channels = self._format.channels
        self.frames = size // self._format.frame_bytes

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples start .. start + count, float32 [n, channels]; fewer at the end.

        Raises:
            AudioError: the file has become shorter, or the system cannot read it.
        """
        fmt = self._format
        count = max(0, min(count, self.frames - start))
        try:
            self._file.seek(self._start + start * fmt.frame_bytes)
            raw = self._file.read(count * fmt.frame_bytes)
        except OSError as error:
            raise AudioError(f"{self._path} cannot be read: {error.strerror or error}") from error
        if len(raw) != count * fmt.frame_bytes:
            raise AudioError(f"{self._path} ended while it was read; is it still being written?")
        return _decode(raw, fmt).reshape(count, fmt.channels)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _parse(path: Path, file: BinaryIO) -> tuple[_Format, int, int]:
    """The format, where the samples begin, and how many bytes they are."""
    total = path.stat().st_size
    head = file.read(12)
    if head[:4] in (b"RF64", b"RIFX"):
        raise AudioError(f"{path} is a WAV file of the kind {head[:4].decode()}; {_CONVERT}")
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        raise AudioError(
            f"{path} is not a WAV file: it begins with {head[:12]!r}, not with 'RIFF....WAVE'; "
            "give a sound file, or name it after what it is"
        )
    found: _Format | None = None
    for _ in range(_MOST_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            break
        name, size = struct.unpack("<4sI", header)
        here = file.tell()
        if name == b"data":
            if found is None:
                raise AudioError(f"{path} has samples before it says of what format they are")
            return found, here, _data_size(path, found, size, total - here)
        if size > total - here:
            raise AudioError(
                f"{path} is damaged: its part {name!r} claims {size} bytes and {total - here} are "
                "left; copy or record it again"
            )
        if name == b"fmt ":
            found = _parse_format(path, file.read(size))
        file.seek(here + size + size % 2)
    raise AudioError(f"{path} is a WAV file without samples (no 'data' part); record it again")


def _data_size(path: Path, fmt: _Format, claimed: int, left: int) -> int:
    """Bytes of samples; a length nobody knew when it was written reaches to the end."""
    size = left if claimed == _UNKNOWN_LENGTH else claimed
    if size > left:
        raise AudioError(
            f"{path} is cut off: its header claims {size} bytes of sound and {left} are there; "
            f"copy it again, or if that is all there is, {_CONVERT}"
        )
    return size - size % fmt.frame_bytes


def _parse_format(path: Path, data: bytes) -> _Format:
    if len(data) < 16:
        raise AudioError(f"{path} is damaged: its part 'fmt ' has {len(data)} bytes of 16")
    kind, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", data)
    if kind == _EXTENSIBLE and len(data) >= 26:
        kind = struct.unpack_from("<H", data, 24)[0]
    fmt = _Format(kind, channels, rate, bits)
    if kind not in (_PCM, _FLOAT):
        name = _NAMES.get(kind, "unknown")
        raise AudioError(f"{path} holds sound of format {kind} ({name}); {_CONVERT}")
    if bits not in ((8, 16, 24, 32) if kind == _PCM else (32, 64)):
        raise AudioError(f"{path} has samples of {bits} bits, which is not read; {_CONVERT}")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise AudioError(f"{path} has {channels} channels; 1 to {_MOST_CHANNELS} are read")
    if align != fmt.frame_bytes:
        raise AudioError(
            f"{path} is damaged: {channels} channels of {bits} bits do not make {align} bytes"
        )
    return fmt


def _decode(raw: bytes, fmt: _Format) -> NDArray[np.float32]:
    """All samples one after another, full scale being 1."""
    if fmt.kind == _FLOAT:
        # What is too large for float32 becomes infinite, which is refused where it is read.
        with np.errstate(over="ignore"):
            return np.frombuffer(raw, f"<f{fmt.bits // 8}").astype(np.float32)
    if fmt.bits == 8:  # the one unsigned kind
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128.0) / 128.0
    if fmt.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0]
        return values.astype(np.float32) / np.float32(2**31)
    values = np.frombuffer(raw, f"<i{fmt.bits // 8}")
    return values.astype(np.float32) / np.float32(2 ** (fmt.bits - 1))
