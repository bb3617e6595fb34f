"""What a refresh promises: from the swap on an answer is computed as if nothing had ever been
predicted, to the last bit, and whatever becomes of the refresh the answer and its session go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import hotpath_models
from tiny.answers import CONTEXT, FACTORIES, VOCAB, decode
from tiny.refreshing import (
    CONFIG,
    LOGITS,
    OVER_WRONG,
    PROMPT,
    WRONG,
    Gate,
    Recorder,
    answer,
    in_refresh,
    running,
    settle,
    toy,
    toy_session,
)
from tiny.toy_backend import ToyBackend, oracle, toy_source
from tiny.toy_predictor import toy_prediction

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.runtime import refresh
from quickdraft.runtime.backends.base import Backend, CancelToken
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.refresh import FEW, MANY, SPEEDUP, WAIT, few_rows
from quickdraft.runtime.session import Session


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


def test_how_many_rows_are_few() -> None:
    assert few_rows(0.0) == few_rows(1e-5) == MANY
    assert few_rows(1.0) == FEW
    for seconds in (3e-4, 6e-4, 6e-3):
        rows = few_rows(seconds)
        assert FEW <= rows <= MANY
        assert rows in (FEW, MANY) or rows * seconds <= SPEEDUP * WAIT < (rows + 1) * seconds


@pytest.mark.native
def test_the_hot_path_hands_over_what_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "few_rows", lambda seconds: 100)
    backend = hotpath_models.backend("llama", "int8", "f16", 2)
    prompt = np.random.default_rng(3).integers(0, 320, 180).tolist()
    session = Session(backend, None, toy_prediction(backend, second=lambda: backend))
    config = GenerationConfig(max_new_tokens=40, prefill=WRONG, prefill_chunk_size=32)
    run = Decoder(backend, session, Plan(config)).run(prompt)
    said = [*next(run).tokens, *next(run).tokens]
    settle()
    assert session.refreshed is not None
    missing = len(prompt) + len(said) - 1 - session.refreshed.length
    assert missing > FEW
    said += [token for emission in run for token in emission.tokens]
    plain = backend.new_cache()
    for token in [*prompt, *said][:-1]:
        backend.step(Tree.chain([token]), plain)
        plain.commit([0])
    assert session.cache.predicted == 0
    assert isinstance(session.cache, BlockedCache)
    assert isinstance(plain, BlockedCache)
    assert hotpath_models.same_rows(session.cache, plain)
