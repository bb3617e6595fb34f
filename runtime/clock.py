"""The time that answers are measured with: this machine's, or that of a simulated device."""

from __future__ import annotations

import threading
import time


class _Ahead(threading.local):
    """Seconds that the thread's steps of simulated devices took longer than they did here."""

    seconds = 0.0


_ahead = _Ahead()


def now() -> float:
    """Seconds of `time.perf_counter`; in a thread that runs a simulated device, of its time. Only
    differences within one thread mean anything, and they may be shorter than the real ones."""
    return time.perf_counter() + _ahead.seconds


def advance(seconds: float) -> None:
    """Move this thread's time by so much, or back if it is negative."""
    _ahead.seconds += seconds
