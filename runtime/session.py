"""A conversation as the model sees it: tokens and their keys and values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quickdraft.drafters.conversation import common_prefix
from quickdraft.errors import InputError
from quickdraft.kvcache.base import KvCache
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.speculation import Speculation


class Session:
    """State kept from one answer to the next; what a new prompt shares with it is not run again.

    One answer at a time. Sessions of one model may run in different threads.
    backend: the one that fills the cache; keys and values mean nothing to another.
    tokens: all tokens known; the cache holds the first `cache.length` of them. speculation: its
    drafters, None to decode plainly.
    """

    def __init__(self, backend: Backend, drafting: Drafting | None = None) -> None:
        self.backend = backend
        self.cache: KvCache = backend.new_cache()
        self.speculation = Speculation(drafting) if drafting and drafting.sources else None
        self.tokens: list[int] = []
        self._lock = threading.Lock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the session for one answer.

        Raises:
            InputError: another answer runs in it.
        """
        if not self._lock.acquire(blocking=False):
            raise InputError(
                "this session is already answering; finish, cancel or close that answer first, "
                "or use one session per thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    def rewind(self, prompt: Sequence[int]) -> int:
        """Keep what the cache shares with `prompt` and forget the rest; the prompt's last token is
        never kept, because its logits are needed. Returns the number of rows kept."""
        held = self.tokens[: self.cache.length]
        kept = min(common_prefix(held, prompt), len(prompt) - 1)
        self.cache.truncate(kept)
        self.tokens = list(prompt)
        return kept

    def clear(self) -> None:
        """Forget everything."""
        with self.busy():
            self.cache.truncate(0)
            self.tokens = []
