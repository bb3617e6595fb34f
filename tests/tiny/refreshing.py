"""Refreshes that wait at a gate, and answers over them, on the toy backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from tiny.answers import CONTEXT, VOCAB, decode
from tiny.toy_backend import ToyBackend, hashed, toy_spec
from tiny.toy_predictor import toy_prediction

from quickdraft.drafters.base import DrafterSource
from quickdraft.drafters.tree import Tree
from quickdraft.runtime.backends.base import Backend, CancelToken, StepOutput
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session

LOGITS = hashed(VOCAB)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6]
WRONG = "predicted@wrong+refresh"
CONFIG = GenerationConfig(max_new_tokens=24, prefill_chunk_size=7, prefill=WRONG)
OVER_WRONG = decode(
    LOGITS, [*(token ^ 1 for token in PROMPT[:-1]), PROMPT[-1]], CONFIG.replace(prefill="exact")
)[0]
"""The answer over wrong rows of all of the prompt but its last token."""


def running() -> bool:
    """Whether a refresh runs anywhere."""
    return any(t.name.startswith("quickdraft-refresh") for t in threading.enumerate())


def settle() -> None:
    """Wait until no refresh runs."""
    until = time.monotonic() + 20
    while running():
        assert time.monotonic() < until, "a refresh does not end"
        time.sleep(0.001)


def in_refresh() -> bool:
    """Whether it is a refresh that asks."""
    return threading.current_thread().name.startswith("quickdraft-refresh")


class Gate:
    """A second backend whose refresh waits in its step number `at` until the gate is opened, or it
    is cancelled."""

    def __init__(self, backend: Backend, at: int = 1) -> None:
        self._backend = backend
        self._left = at
        self.open = threading.Event()
        self.reached = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(
        self,
        tree: Tree,
        cache: Any,
        rows: Any = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> StepOutput:
        if in_refresh():
            self._left -= 1
            if self._left <= 0:
                self.reached.set()
                while not self.open.wait(0.001):
                    assert cancel is not None
                    cancel.check()
        return self._backend.step(tree, cache, rows, cancel, **options)


class Recorder:
    """A backend that keeps, of every step of an answer, the predicted rows, the rows and the last
    logits."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.rows: list[tuple[int, int, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, tree: Tree, cache: Any, *args: Any, **options: Any) -> StepOutput:
        output = self._backend.step(tree, cache, *args, **{**options, "full_logits": True})
        if not in_refresh():
            length = cache.length + len(tree)
            self.rows.append((cache.predicted, length, output.logits[-1].tobytes()))
        return output


def toy() -> ToyBackend:
    return ToyBackend(LOGITS, toy_spec(VOCAB, CONTEXT))


def toy_session(gate: Gate | None = None, sources: Sequence[DrafterSource] = ()) -> Session:
    backend = toy()
    prediction = toy_prediction(backend, second=None if gate is None else lambda: gate)
    return Session(backend, Drafting(sources, backend), prediction)


def answer(
    session: Session,
    prompt: Sequence[int] = PROMPT,
    config: GenerationConfig = CONFIG,
    gate: Gate | None = None,
    open_after: int | None = None,
) -> tuple[list[int], Decoder]:
    """The answer. A refresh that waits at the gate is let go after so many emissions, and given
    all the time it needs."""
    decoder = Decoder(session.backend, session, Plan(config))
    tokens: list[int] = []
    for number, emission in enumerate(decoder.run(prompt), 1):
        tokens += emission.tokens
        if number == open_after:
            assert gate is not None
            gate.open.set()
            settle()
    assert not running()
    return tokens, decoder
