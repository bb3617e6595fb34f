"""Log-mel features of speech models, as OpenAI's Whisper defines them.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 2.2:
windows of 25 ms every 10 ms of sound at 16 kHz, mel filters of equal area on Slaney's scale,
decimal logarithm, kept within 8 of the loudest and scaled to about -1 .. 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quickdraft.errors import OptionError

RATE = 16_000
"""Samples per second that speech models hear."""
HOP = 160
"""Samples from one frame of features to the next."""
_WINDOW = 400
_SMALLEST = 1e-10
_RANGE = 8.0

# Slaney's mel scale: linear below 1000 Hz, then 27 steps for each factor of 6.4.
_BREAK_HZ = 1000.0
_HZ_PER_MEL = 200.0 / 3
_LOG_STEP = np.log(6.4) / 27


def log_mel(samples: NDArray[np.float32], frames: int, bins: int = 80) -> NDArray[np.float32]:
    """Features of a window of sound, float32 [frames, bins].

    samples: float32 [n], 16 kHz, at most frames * HOP of them; silence fills the rest.

    Raises:
        OptionError: more samples than the frames cover, or fewer than 2 frames.
    """
    length = frames * HOP
    if samples.ndim != 1 or len(samples) > length:
        raise OptionError(
            f"{len(samples)} samples do not fit {frames} frames of features, which cover {length}"
        )
    if length <= _WINDOW // 2:
        raise OptionError(f"{frames} frames are less than one window of sound; ask for more")
    padded = np.zeros(length, np.float64)
    padded[: len(samples)] = samples
    padded = np.pad(padded, _WINDOW // 2, mode="reflect")
    windows = sliding_window_view(padded, _WINDOW)[::HOP][:frames]
    spectrum = np.fft.rfft(windows * _hann(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    logs = np.log10(np.maximum(power @ mel_filters(bins), _SMALLEST))
    logs = np.maximum(logs, logs.max() - _RANGE)
    result: NDArray[np.float32] = ((logs + 4.0) / 4.0).astype(np.float32)
    return result


@cache
def _hann() -> NDArray[np.float64]:
    """The periodic form, one sample short of a symmetric one."""
    window: NDArray[np.float64] = np.hanning(_WINDOW + 1)[:-1].astype(np.float64)
    return window


@cache
def mel_filters(bins: int) -> NDArray[np.float64]:
    """Triangles over the frequencies of a spectrum, float64 [201, bins], each of equal area.

    Raises:
        OptionError: no filters, or so many that some would lie between two frequencies.
    """
    if not 1 <= bins <= 128:
        raise OptionError(f"{bins} mel bins; speech models have 1 to 128")
    frequencies = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)
    corners = _hz(np.linspace(0.0, _mel(RATE / 2), bins + 2))
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - lower) / (centre - lower)
    falling = (upper - frequencies[:, None]) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    result: NDArray[np.float64] = triangles * (2.0 / (upper - lower))
    return result


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return float(_BREAK_HZ / _HZ_PER_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = mel - _BREAK_HZ / _HZ_PER_MEL
    result: NDArray[np.float64] = np.where(
        above < 0, mel * _HZ_PER_MEL, _BREAK_HZ * np.exp(_LOG_STEP * np.maximum(above, 0.0))
    )
    return result
