"""Where the text of an answer goes as it is decided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from quickdraft.errors import OptionError
from quickdraft.runtime.result import Chunk, Result


@runtime_checkable
class TextSink(Protocol):
    """Receives an answer as it is decided."""

    def put(self, text: str) -> None:
        """Take the next piece of text."""

    def end(self) -> None:
        """The answer is complete."""


def drain(chunks: Iterator[Chunk], callback: Any) -> Result:
    """Run an answer to its end, handing its text to the callback."""
    put = callback.put if isinstance(callback, TextSink) else callback
    if put is not None and not callable(put):
        raise OptionError(f"callback is {callback!r}; give a function, or an object with put, end")
    result = None
    for chunk in chunks:
        if chunk.text and put is not None:
            put(chunk.text)
        result = chunk.result
    assert result is not None  # the last chunk of a stream that did not raise has it  # noqa: S101
    if isinstance(callback, TextSink):
        callback.end()
    return result
