"""FLAC, OGG, MP3 and the rest, through the package soundfile (libsndfile)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from quickdraft.errors import AudioError


class LibsndfileReader:
    """One open file; see runtime.audio.sound.SoundFile."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            AudioError: the library does not know or like it.
        """
        self._path = path
        try:
            self._file = soundfile.SoundFile(path)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{path} is not sound that can be read ({error.error_string}); give a WAV, FLAC, "
                "OGG or MP3 file"
            ) from error
        self.rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.frames = int(self._file.frames)

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """Samples start .. start + count, float32 [n, channels]; fewer at the end.

        Raises:
            AudioError: the file is damaged there.
        """
        count = max(0, min(count, self.frames - start))
        try:
            self._file.seek(start)
            found = self._file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            when = start / self.rate
            raise AudioError(
                f"{self._path} is damaged after {when:.1f} s ({error.error_string})"
            ) from error
        if len(found) != count:
            raise AudioError(
                f"{self._path} is cut off: it claims {self.frames / self.rate:.1f} s of sound and "
                f"ends after {(start + len(found)) / self.rate:.1f} s; copy it again"
            )
        return np.asarray(found, np.float32)

    def close(self) -> None:
        """Release the file."""
        self._file.close()
