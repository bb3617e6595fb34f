"""A sound file as one channel at the rate speech models hear, read in windows.

Only what is asked for is in memory, so a file may be hours long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import AudioError, MissingExtra
from quickdraft.runtime.audio.mel import RATE
from quickdraft.runtime.audio.resample import Ratio, resample
from quickdraft.runtime.audio.wav import WavFile

_RATES = (1_000, 768_000)


class SoundFile(Protocol):
    """An open file: samples a second, channels, samples per channel."""

    rate: int
    channels: int
    frames: int

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples start .. start + count, float32 [n, channels], full scale 1; fewer at the end."""

    def close(self) -> None:
        """Release the file."""


class Sound:
    """A sound file being read. len(): samples at 16 kHz."""

    def __init__(self, path: Path, file: SoundFile) -> None:
        """Take over an open file.

        Raises:
            AudioError: it is silent by having no samples, or has an unlikely rate.
        """
        self.path = path
        self._file = file
        low, high = _RATES
        if not low <= file.rate <= high:
            raise AudioError(
                f"{path} claims {file.rate} samples a second; {low} to {high} are read"
            )
        if file.frames < 1:
            raise AudioError(f"{path} has no samples: the recording is empty")
        self._ratio = Ratio.between(file.rate, RATE)

    def __len__(self) -> int:
        return self._ratio.length(self._file.frames)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self._file.frames / self._file.rate

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples start .. start + count at 16 kHz, float32, all channels averaged; fewer at the
        end. The same bits however a sound is cut.

        Raises:
            AudioError: samples there are not numbers, or the file cannot be read.
        """
        return resample(self._read, self._file.frames, self._ratio, start, count)

    def _read(self, start: int, count: int) -> NDArray[np.float32]:
        samples = self._file.read(start, count)
        bad = ~np.isfinite(samples).all(axis=1)
        if bad.any():
            when = (start + int(bad.argmax())) / self._file.rate
            raise AudioError(
                f"{self.path} has samples that are not finite numbers, the first at {when:.3f} s; "
                "the program that wrote it went wrong there"
            )
        if samples.shape[1] == 1:
            return np.ascontiguousarray(samples[:, 0])
        return np.asarray(samples.mean(axis=1, dtype=np.float64), np.float32)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_sound(path: Path) -> Sound:
    """Open a WAV file, or any other kind that the package soundfile reads (FLAC, OGG, MP3).

    Raises:
        AudioError: there is no such file, or it is not sound that can be read.
        MissingExtra: it is not a WAV file and the extra `audio` is not installed.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if not head:
            raise AudioError(f"{path} is empty (0 bytes)")
        named_wav = path.suffix.lower() in (".wav", ".wave")
        reader: Callable[[Path], SoundFile] = WavFile
        if not named_wav and head != b"RIFF":
            reader = _open_other
        opened = reader(path)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return Sound(path, opened)
    except BaseException:
        opened.close()
        raise


def _open_other(path: Path) -> SoundFile:
    try:
        from quickdraft.runtime.audio.libsndfile import LibsndfileReader
    except ImportError as error:
        raise MissingExtra("soundfile", "audio") from error
    return LibsndfileReader(path)
