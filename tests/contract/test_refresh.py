"""What a refresh promises: from the swap on an answer is computed as if nothing had ever been
predicted, to the last bit, and whatever becomes of the refresh the answer and its session go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import hotpath_models
from tiny.answers import CONTEXT, FACTORIES, VOCAB, decode
from tiny.toy_backend import ToyBackend, hashed, oracle, toy_source, toy_spec
from tiny.toy_predictor import toy_prediction

from quickdraft.drafters.base import DrafterSource, Observation
from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.runtime.backends.base import Backend, CancelToken, StepOutput
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.refresh import FEW
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


def exactly(prompt: Sequence[int], said: Sequence[int], count: int) -> list[int]:
    """`count` tokens after a prompt and what was said, by plain decoding over exact rows."""
    config = GenerationConfig(max_new_tokens=count)
    return decode(LOGITS, [*prompt, *said], config)[0] if count else []


@pytest.mark.parametrize("open_after", [2, 3, 9, 23, None])
@pytest.mark.parametrize("drafters", ["none", "oracle", "several", "all"])
def test_from_the_swap_on_the_answer_is_the_exact_one(
    open_after: int | None, drafters: str
) -> None:
    gate = Gate(toy(), at=2)
    session = toy_session(gate, FACTORIES[drafters](LOGITS, 1) if drafters != "none" else [])
    tokens, decoder = answer(session, gate=gate, open_after=open_after)
    report = decoder.prediction
    assert report is not None
    assert report.rows == len(PROMPT) - 1
    at = report.exact_from
    assert tokens[:at] == OVER_WRONG[:at]
    if at is not None:
        assert at >= 1
        assert tokens[at:] == exactly(PROMPT, tokens[:at], len(tokens) - at)
        assert session.cache.predicted == 0
        assert session.refreshed is None
    if drafters == "none":
        assert at == open_after
    assert report.refresh_ms > 0
    assert report.refresh_error is None
    assert decoder.done == "predicted+refresh"


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


def test_the_swap_computes_what_is_missing_with_the_next_step() -> None:
    gate = Gate(toy())
    session = toy_session(gate)
    _, decoder = answer(session, gate=gate, open_after=3)
    assert decoder.prediction is not None
    assert decoder.prediction.exact_from == 3
    backend = session.backend
    assert isinstance(backend, ToyBackend)
    first, *others = backend.rows[-21:]
    assert 2 <= first <= FEW + 1
    assert others == [1] * 20


def test_steps_say_over_how_many_predicted_rows_they_went() -> None:
    gate = Gate(toy())
    session = toy_session(gate)
    decoder = Decoder(session.backend, session, Plan(CONFIG))
    found = []
    for emission in decoder.run(PROMPT):
        assert emission.record is not None
        found.append(emission.record.predicted_rows)
        if len(found) == 4:
            gate.open.set()
            settle()
    assert found == [len(PROMPT) - 1] * 4 + [0] * 20


@pytest.mark.parametrize(
    ("prefill", "tokens", "opens"),
    [(WRONG, 24, True), (WRONG, 1, False), ("predicted@wrong", 24, False), ("exact", 24, False)],
)
def test_a_refresh_starts_after_the_first_token(prefill: str, tokens: int, opens: bool) -> None:
    opened = threading.Event()

    def second() -> Backend:
        opened.set()
        return toy()

    backend = toy()
    session = Session(backend, None, toy_prediction(backend, second=second))
    config = CONFIG.replace(prefill=prefill, max_new_tokens=tokens)
    run = Decoder(backend, session, Plan(config)).run(PROMPT)
    next(run)
    assert not running()
    assert not opened.is_set()
    next(run, None)
    assert opened.wait(20 if opens else 0.01) == opens
    run.close()


def test_nothing_waits_for_a_refresh() -> None:
    gate = Gate(toy(), at=2)
    tokens, decoder = answer(toy_session(gate))
    assert tokens == OVER_WRONG
    assert decoder.prediction is not None
    assert decoder.prediction.exact_from is None
    assert decoder.prediction.refresh_error is None


@pytest.mark.parametrize("prefill", ["exact", WRONG, "predicted@wrong"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_next_answer_goes_on_from_what_is_exact(steps: int, prefill: str) -> None:
    gate = Gate(toy(), at=steps + 1)
    session = toy_session(gate)
    run = Decoder(session.backend, session, Plan(CONFIG)).run(PROMPT)
    said = [*next(run).tokens, *next(run).tokens]
    if steps < 3:
        assert gate.reached.wait(20)
    else:
        settle()
    said += [token for emission in run for token in emission.tokens]
    if steps < 3:
        assert session.refreshed is not None
        assert session.refreshed.length == 7 * steps
    gate.open.set()
    longer = [*PROMPT, *said, 7, 8]
    config = CONFIG.replace(prefill=prefill)
    tokens, later = answer(session, longer, config, gate, open_after=2)
    if prefill == "exact":
        assert tokens == exactly(longer, [], 24)
        assert (later.done, session.cache.predicted) == ("exact", 0)
        assert later.cached == (7 * steps if steps < 3 else len(longer) - 3)
    elif steps < 3:
        assert later.cached == len(longer) - 3
        assert later.done == prefill.replace("@wrong", "")
        at = later.prediction.exact_from if later.prediction is not None else None
        assert (at is not None) == (prefill == WRONG)
        assert at is None or tokens[at:] == exactly(longer, tokens[:at], 24 - at)


@settings(max_examples=30, deadline=None)
@given(
    turns=st.lists(
        st.tuples(
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
            st.integers(0, 60),
            st.sampled_from(["exact", "predicted", "predicted+refresh", "hybrid:3+refresh"]),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_turns_of_all_kinds_over_right_rows(turns: list[tuple[list[int], int, str]]) -> None:
    session = toy_session(None, [toy_source(oracle(LOGITS))])
    for new, keep, prefill in turns:
        prompt = [*session.tokens[:keep], *new][: CONTEXT - 30]
        tokens, _ = answer(session, prompt, CONFIG.replace(prefill=prefill))
        assert tokens == exactly(prompt, [], 24)


@pytest.mark.parametrize("how", ["cancel", "drop", "time", "fail"])
def test_an_answer_that_does_not_end_stops_its_refresh(how: str) -> None:
    gate = Gate(toy(), at=2)
    session = toy_session(gate)
    cancel = CancelToken()
    deadline = time.perf_counter() + 0.5 if how == "time" else None
    run = Decoder(session.backend, session, Plan(CONFIG, cancel=cancel, deadline=deadline)).run(
        PROMPT
    )
    next(run)
    next(run)
    gate.reached.wait(20)
    if how == "cancel":
        cancel.cancel()
    elif how == "fail":
        gate._backend.closed = True
    elif how == "time":
        time.sleep(0.5)
    if how == "drop":
        run.close()
    elif how == "fail":
        with pytest.raises(BackendError, match="closed"):
            list(run)
        gate._backend.closed = False
    else:
        assert [emission.finish_reason for emission in run] == [
            {"cancel": "cancelled"}.get(how, how)
        ]
    assert not running()
    gate.open.set()
    assert session.refreshed is not None
    assert session.refreshed.length == 7
    tokens, _ = answer(session, config=CONFIG.replace(prefill="exact"))
    assert tokens == exactly(PROMPT, [], 24)


@pytest.mark.parametrize("when", ["open", "step"])
def test_a_refresh_that_fails_is_told_and_the_answer_goes_on(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = toy()

    def fail(*args: object) -> None:
        if in_refresh():
            raise BackendError("the device is gone")

    def second() -> Backend:
        if when == "open":
            fail()
        return backend

    if when == "step":
        backend.before_step = fail
    session = Session(backend, None, toy_prediction(backend, second=second))
    tokens, decoder = answer(session)
    assert tokens == OVER_WRONG
    report = decoder.prediction
    assert report is not None
    assert (report.exact_from, report.refresh_error) == (None, "BackendError: the device is gone")
    assert caplog.text.count("not replaced by exact ones") == 1
    assert "the device is gone" in caplog.text
    longer = [*PROMPT, *tokens, 1]
    exact, _ = answer(session, longer, CONFIG.replace(prefill="exact"))
    assert exact == exactly(longer, [], 24)


def check_swap(backend: Backend, second: Backend, open_after: int) -> None:
    """From the swap on, logits and rows are those of exact prefill, to the last bit where a row's
    bits do not depend on the others."""
    prompt = np.random.default_rng(open_after).integers(0, 320, 90).tolist()
    recorder, gate = Recorder(backend), Gate(second)
    session = Session(recorder, None, toy_prediction(backend, second=lambda: gate))
    config = GenerationConfig(max_new_tokens=30, prefill=WRONG, prefill_chunk_size=32)
    tokens, decoder = answer(session, prompt, config, gate, open_after)
    assert decoder.prediction is not None
    assert decoder.prediction.exact_from == open_after
    text = [*prompt, *tokens]
    exact = [row[1:] for row in recorder.rows if row[0] == 0]
    assert len(exact) == 30 - open_after
    for length, logits in exact:
        cache = backend.new_cache()
        for start in range(0, length, 23):
            chunk = Tree.chain(text[start : min(start + 23, length)])
            output = backend.step(chunk, cache, np.array([len(chunk) - 1]))
            cache.commit(range(len(chunk)))
        np.testing.assert_allclose(output.logits[0], np.frombuffer(logits, np.float32), atol=1e-4)
        if backend.guarantee == "bit_identical":
            assert output.logits[0].tobytes() == logits
    plain = backend.new_cache()
    for token in text[:-1]:
        backend.step(Tree.chain([token]), plain)
        plain.commit([0])
    assert session.cache.length == plain.length
    if isinstance(plain, BlockedCache):
        assert isinstance(session.cache, BlockedCache)
        assert hotpath_models.same_rows(session.cache, plain)


@pytest.mark.parametrize("open_after", [2, 11])
def test_the_swap_of_the_reference(open_after: int) -> None:
    backend = hotpath_models.reference("llama", "fp32")
    check_swap(backend, backend, open_after)


@pytest.mark.native
@pytest.mark.parametrize("open_after", [2, 11])
@pytest.mark.parametrize(
    ("family", "kv_cache"), [("llama", "f16"), ("llama", "int8"), ("gemma2", "f32")]
)
def test_the_swap_of_the_hot_path(family: str, kv_cache: str, open_after: int) -> None:
    two, one = (hotpath_models.backend(family, "int8", kv_cache, threads) for threads in (2, 1))
    assert two.guarantee == "bit_identical"
    check_swap(two, one, open_after)
