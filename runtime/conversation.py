"""A chat of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.result import Chunk, Result

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model


class Conversation:
    """Messages, and a session that has computed them.

    messages: what was said so far; may be changed between turns. A turn is added when its answer
    ends; a failed or abandoned answer adds nothing, a cancelled one what was said.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        self._model = model
        self._session = model.session()
        self._system = system
        self.messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def send(
        self,
        text: str,
        config: GenerationConfig | None = None,
        *,
        cancel: CancelToken | None = None,
        **overrides: Any,
    ) -> Result:
        """Say something and wait for the answer. Raises as `Model.chat`."""
        result = None
        for chunk in self.stream(text, config, cancel=cancel, **overrides):
            result = chunk.result
        assert result is not None  # noqa: S101 - the last chunk has it
        return result

    def stream(
        self,
        text: str,
        config: GenerationConfig | None = None,
        *,
        cancel: CancelToken | None = None,
        **overrides: Any,
    ) -> Iterator[Chunk]:
        """Say something and read the answer piece by piece; the last chunk has the result."""
        question = {"role": "user", "content": text}
        chunks = self._model.stream_chat(
            [*self.messages, question], config, session=self._session, cancel=cancel, **overrides
        )
        return self._follow(question, chunks)

    def _follow(self, question: dict[str, str], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            result = chunk.result
            if result is not None and (result.text or result.finish_reason != "cancelled"):
                # Before the last piece is handed out: its reader may not come back.
                self.messages += [question, {"role": "assistant", "content": result.text}]
            yield chunk
