"""Heads that read hidden states hear of the prompt when exact rows come in for predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tiny.refreshing import (
    CONFIG,
    PROMPT,
    Gate,
    answer,
    toy,
    toy_session,
)
from tiny.toy_backend import toy_source

from quickdraft.drafters.base import Observation
from quickdraft.drafters.conversation import common_prefix
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session


class Listener:
    """Knows the tokens whose hidden states it was told, and whether the target saw them."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.known: dict[int, tuple[int, int]] = {}
        self.calls: list[tuple[int, int]] = []

    def begin(self, tokens: Sequence[int], settings: Any) -> None:
        shared = common_prefix(self.tokens, tokens)
        self.tokens = list(tokens)
        self.known = {row: state for row, state in self.known.items() if row < shared}

    def read(self, start: int, states: Any) -> None:
        self.calls.append((start, len(states[1])))
        for row, state in enumerate(states[1], start):
            self.known[row] = tuple(state[:2].astype(int).tolist())

    def observe(self, observation: Observation) -> None:
        for state, token in zip(observation.hidden_states[1], observation.tokens, strict=True):
            self.known[len(self.tokens) - 1] = tuple(state[:2].astype(int).tolist())
            self.tokens.append(token)

    def propose(self, budget: int) -> None:
        return None


def listener_session(gate: Gate, listener: Listener) -> Session:
    return toy_session(gate, [toy_source(drafter=lambda: listener)])


@pytest.mark.parametrize("open_after", [2, 5, None])
def test_drafters_are_told_at_the_swap_what_the_target_saw(open_after: int | None) -> None:
    """Predicted rows have no hidden states; those of the refresh come with its rows."""
    gate, listener = Gate(toy()), Listener()
    session = listener_session(gate, listener)
    tokens, decoder = answer(session, gate=gate, open_after=open_after)
    assert decoder.prediction is not None
    swapped = decoder.prediction.exact_from is not None
    assert swapped == (open_after is not None)
    text = [*PROMPT, *tokens]
    before = set(range(len(PROMPT) - 1))
    if not swapped:
        assert not before & set(listener.known)  # none of the predicted rows
        return
    assert listener.known == {row: (text[row], row) for row in range(len(text) - 1)}
    # The refresh's rows at once, then those that the next step computed, in order.
    (first, count), *rest = listener.calls
    assert first == 0
    assert count + sum(n for _, n in rest) == len(PROMPT) - 1 + open_after


def test_the_next_answer_tells_drafters_what_is_exact_by_then() -> None:
    """The answer ended before the refresh did; its rows are swapped in when the next one begins."""
    gate, listener = Gate(toy(), at=3), Listener()
    session = listener_session(gate, listener)
    run = Decoder(session.backend, session, Plan(CONFIG)).run(PROMPT)
    said = list(next(run).tokens)
    said += next(run).tokens
    assert gate.reached.wait(20)
    said += [token for emission in run for token in emission.tokens]
    assert session.refreshed is not None
    assert session.refreshed.length == 14
    assert not set(range(14)) & set(listener.known)
    gate.open.set()
    longer = [*PROMPT, *said, 7, 8]
    answer(session, longer, CONFIG.replace(prefill="exact"))
    text = longer
    for row in range(len(longer) - 1):
        assert listener.known[row] == (text[row], row)


def test_rows_of_another_text_are_not_told() -> None:
    gate, listener = Gate(toy(), at=3), Listener()
    session = listener_session(gate, listener)
    run = Decoder(session.backend, session, Plan(CONFIG)).run(PROMPT)
    next(run)
    next(run)
    assert gate.reached.wait(20)
    run.close()
    gate.open.set()
    other = [*PROMPT[:5], *(token ^ 3 for token in PROMPT[5:])]
    answer(session, other, CONFIG.replace(prefill="exact"))
    for row in range(len(other) - 1):
        assert listener.known[row] == (other[row], row)
