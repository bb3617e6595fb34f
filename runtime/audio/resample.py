"""Sound at another rate: a low-pass filter evaluated at the new instants.

Smith, "Digital Audio Resampling" (2002): a sinc under a window, here that of Blackman and Harris
(Harris, "On the Use of Windows for Harmonic Analysis", 1978), which damps what lies beyond half the
rate by 92 dB. A sample of the result depends on its own place in the sound alone, so a sound read
in pieces gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_ZEROS = 16
"""Zero crossings of the filter on either side."""
_BLACKMAN_HARRIS = (0.35875, 0.48829, 0.14128, 0.01168)
_ROLLOFF = 0.945
"""Where the filter begins to close, of half the lower rate."""
_BLOCK = 8192


@dataclass(frozen=True)
class Ratio:
    """up samples out for every down in, in lowest terms."""

    up: int
    down: int

    @staticmethod
    def between(source: int, target: int) -> Ratio:
        """That of two rates in Hz."""
        common = math.gcd(source, target)
        return Ratio(target // common, source // common)

    def length(self, count: int) -> int:
        """How many samples a sound of `count` becomes; at least one of any."""
        return -(-count * self.up // self.down)


def resample(
    read: Callable[[int, int], Samples], length: int, ratio: Ratio, start: int, count: int
) -> Samples:
    """Samples start .. start + count of a sound at another rate, float32; fewer at its end.

    read: gives samples start .. start + count of the sound at its own rate, `length` in all.
    """
    count = max(0, min(count, ratio.length(length) - start))
    if ratio.up == ratio.down:
        return read(start, count)
    result = np.empty(count, np.float32)
    filters = _filters(ratio)
    taps = filters.shape[1]
    for done in range(0, count, _BLOCK):
        places = np.arange(start + done, start + min(done + _BLOCK, count), dtype=np.int64)
        moments = places * ratio.down
        first = moments // ratio.up - taps // 2 + 1
        low, high = int(first[0]), int(first[-1]) + taps
        around = np.zeros(high - low, np.float32)
        inside = max(low, 0)
        found = read(inside, min(high, length) - inside)
        around[inside - low : inside - low + len(found)] = found
        rows = sliding_window_view(around, taps)[first - low]
        result[done : done + len(places)] = np.einsum(
            "nk,nk->n", rows, filters[moments % ratio.up], dtype=np.float32
        )
    return result


@cache
def _filters(ratio: Ratio) -> Samples:
    """Filter taps by phase, float32 [up, taps], taps even; each row sums to one."""
    cutoff = _ROLLOFF * min(1.0, ratio.up / ratio.down)
    half = math.ceil(_ZEROS / cutoff)
    phases = np.arange(ratio.up) / ratio.up
    distance = np.arange(1 - half, half + 1)[None, :] - phases[:, None]
    angle = np.pi * np.clip(distance / half, -1.0, 1.0)
    window = sum(a * np.cos(term * angle) for term, a in enumerate(_BLACKMAN_HARRIS))
    taps = np.sinc(cutoff * distance) * window
    result: Samples = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
    return result
