"""Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from quickdraft.runtime.backends.base import CancelToken


@contextmanager
def stop_on_interrupt() -> Iterator[CancelToken]:
    """A token that the first SIGINT cancels; the second one interrupts as usual.

    The answer then ends at a step, with its cache whole: a KeyboardInterrupt could fall between
    any two instructions. Where SIGINT is ignored, or outside the main thread, it is left alone.
    """
    token = CancelToken()
    previous = signal.getsignal(signal.SIGINT)
    if (
        previous in (signal.SIG_IGN, None)
        or threading.current_thread() is not threading.main_thread()
    ):
        yield token
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        # The interrupted code may hold the token's lock, so another thread has to wait for it.
        threading.Thread(target=token.cancel, daemon=True).start()

    signal.signal(signal.SIGINT, stop)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, previous)
