"""The curve: what is asked of whom, in which order, and what becomes of the answers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.toy_backend import ToyBackend, hashed, toy_spec

from quickdraft.device_profiles.bandwidth import read_bandwidth
from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime.curve import (
    CurvePlan,
    Point,
    Samples,
    measure_curve,
    measure_memory,
)
from quickdraft.runtime.curve_worker import CurveWorker, peak_memory
from quickdraft.runtime.engine_process import EngineProcess

FAKE = Path(__file__).parents[2] / "tiny" / "fake_peer.py"
PLAN = CurvePlan(contexts=(8, 20), rows=(1, 4), prefill=(16,), rounds=3, threads=1)


class Noted:
    """An engine that answers at once and takes notes in a list it shares with the others."""

    def __init__(self, name: str, notes: list[tuple[Any, ...]], stop_at: int = 0) -> None:
        self.name, self.notes, self.stop_at = name, notes, stop_at

    def ask(self, **request: Any) -> dict[str, Any]:
        self.notes.append((self.name, request["op"], request.get("context"), request.get("tokens")))
        if len(self.notes) == self.stop_at:
            raise KeyboardInterrupt
        turn = len(self.notes)
        return {
            "open": {"kv_bytes": 64},
            "step": {"ms": [turn + 0.5, turn, turn + 9]},
            "prefill": {"ms": turn},
            "memory": {"peak_bytes": 1000},
        }[request["op"]]


def run(plan: CurvePlan = PLAN, stop_at: int = 0) -> tuple[list[tuple[Any, ...]], Samples]:
    notes: list[tuple[Any, ...]] = []
    engines = {name: Noted(name, notes, stop_at) for name in ("a", "b", "c")}
    samples = Samples()
    try:
        measure_curve(engines, plan, 50, samples, lambda threads: 10.0 + threads)
    except KeyboardInterrupt:
        assert stop_at
    return notes, samples


def test_engines_take_turns_at_every_point() -> None:
    notes, samples = run()
    opened, measured = notes[:6], notes[6:]
    assert [(name, op, at) for name, op, at, _ in opened] == [
        (name, "open", at) for at in (8, 20) for name in "abc"
    ]
    assert len(measured) == 3 * len(PLAN.points) * 3
    triples = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    for number, triple in enumerate(triples):
        turn = number // len(PLAN.points)
        assert [name for name, *_ in triple] == list("abc")[turn:] + list("abc")[:turn]
        assert len({str(rest) for _, *rest in triple}) == 1, "all get the same tokens"
    per_round = [(op, at, len(tokens)) for _, op, at, tokens in measured[::3]][: len(PLAN.points)]
    assert per_round == [
        ("step", 8, 1), ("step", 8, 4), ("step", 20, 1), ("step", 20, 4), ("prefill", None, 16),
    ]  # fmt: skip
    assert samples.rounds == 3
    assert samples.bandwidths == [11.0] * 3
    assert samples.kv_bytes["b", 20] == 64


def test_a_step_continues_the_tokens_of_its_context() -> None:
    notes, _ = run()
    opened = {at: tokens for _, op, at, tokens in notes if op == "open"}
    for _, op, at, tokens in notes:
        if op == "step" and at == 8:
            assert opened[20][: 8 + len(tokens)] == opened[8] + tokens


def test_the_figure_is_the_best_step_of_the_best_round() -> None:
    _, samples = run()
    point = Point("T", 8, 1)
    times = samples.times["a", point]
    assert times == sorted(times)  # the answers of `Noted` grow
    assert samples.minimum("a", point) == times[0]
    assert samples.median("a", point) == times[1]


def test_interruption_keeps_complete_rounds_only() -> None:
    round_size = 3 * len(PLAN.points)
    _, samples = run(stop_at=6 + round_size + 4)
    assert samples.rounds == 1
    point = PLAN.points[0]
    assert len(samples.times["b", point]) == 2, "the interrupted round reached this point"
    assert samples.minimum("b", point) == samples.median("b", point)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"rows": ()}, "nothing to measure"),
        ({"contexts": ()}, "nothing to measure"),
        ({"rows": (1, 0)}, "rows is 0"),
        ({"contexts": (-3,)}, "context is -3"),
        ({"prefill": (0,)}, "prefill is 0"),
        ({"prefill": (101,)}, "prefill 101, does not fit: this model holds 100"),
        ({"contexts": (90,)}, "context 90 with 3 steps of 4 rows"),
    ],
)
def test_bad_plans(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        dataclasses.replace(PLAN, **change).check(100)
    PLAN.check(100)


def test_memory_is_asked_after_steps() -> None:
    notes: list[tuple[Any, ...]] = []
    assert measure_memory(Noted("a", notes), 8, 50) == 1000
    assert [(op, at) for _, op, at, _ in notes] == [("open", 8), ("step", 8), ("memory", None)]
    assert len(notes[1][3]) > 1


def test_the_worker_steps_over_a_cache_that_stays_as_it_was() -> None:
    now = 0.0

    def count(step: int, cancel: object) -> None:
        nonlocal now
        now += 0.25

    backend = ToyBackend(hashed(16), toy_spec(16, 128))
    backend.before_step = count
    worker = CurveWorker(backend, clock=lambda: now)
    tokens = np.arange(40) % 16
    assert worker.answer({"op": "open", "context": 30, "tokens": tokens[:30].tolist()}) == {
        "kv_bytes": worker._caches[30].nbytes
    }
    answer = worker.answer({"op": "step", "context": 30, "tokens": [1, 2, 3], "repeats": 2})
    assert answer == {"ms": [250.0, 250.0]}
    assert worker._caches[30].length == 30
    assert backend.rows == [30, 3, 3, 3]
    assert worker.answer({"op": "prefill", "tokens": tokens.tolist()}) == {"ms": 250.0}
    assert worker.answer({"op": "memory"})["peak_bytes"] == peak_memory()


def test_engine_processes() -> None:
    with EngineProcess("fake", [sys.executable, str(FAKE), "answers", "model", "2"]) as engine:
        assert engine.facts == {"threads": 2, "setting": [], "modes": ["plain", "ngram"]}
        assert engine.ask(op="prefill", tokens=[1, 2])["ms"] == 0.002
    assert engine._process.returncode is not None


def test_engine_processes_that_fail() -> None:
    with EngineProcess("fake", [sys.executable, str(FAKE), "dies", "model", "2"]) as engine:
        with pytest.raises(BackendError, match="fake ended with exit code 1:\nout of ideas"):
            engine.ask(op="step", context=1, tokens=[1], repeats=1)
        with pytest.raises(BackendError, match="out of ideas"):
            engine.ask(op="memory")
    with (
        EngineProcess("fake", [sys.executable, str(FAKE), "babbles", "model", "2"]) as engine,
        pytest.raises(BackendError, match="which is not a JSON object"),
    ):
        engine.ask(op="step", context=1, tokens=[1], repeats=1)
    with pytest.raises(BackendError, match="ended with exit code 3"):
        EngineProcess("fake", [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(BackendError, match="no-such-program"):
        EngineProcess("fake", ["no-such-program"])


def test_bandwidth() -> None:
    assert 0.1 < read_bandwidth(2, repeats=2, size=1 << 24) < 10_000
