"""The verify-cost curve: what a step costs by its rows, ours beside other engines.

T(M) is the time of one step over M rows at a context, the largest logits of all rows computed (all
logits, by engines that have no choice): what verifying M tokens costs. Prefill is the time of a
prompt from an empty cache, its last row wanted. All engines are loaded at once and take turns at
every point of every round, so that a noisy minute hits all of them; the figure of a point is its
minimum over the rounds, and the memory bandwidth is measured between the rounds of the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from quickdraft.errors import OptionError
from quickdraft.runtime.benchmark import random_tokens

REPEATS = 3
MEMORY_ROWS = 8

Progress = Callable[[str, int, int], None]


class Engine(Protocol):
    """An engine that answers requests (see EngineProcess)."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Answer a request."""


@dataclass(frozen=True)
class CurvePlan:
    """What is measured. rows: of steps. prefill: lengths of prompts. threads: of the bandwidth."""

    contexts: tuple[int, ...] = (256, 4096)
    rows: tuple[int, ...] = (*range(1, 17), 32)
    prefill: tuple[int, ...] = (128, 512, 1024, 4096)
    rounds: int = 5
    threads: int = 2

    def check(self, context_length: int) -> None:
        """Refuse what cannot be measured before anything runs.

        Raises:
            OptionError: there is nothing to measure, or it does not fit the model.
        """
        if self.rounds < 1:
            raise OptionError(f"rounds is {self.rounds}; it must be at least 1")
        if not self.contexts or not self.rows:
            raise OptionError("there is nothing to measure; give at least one context and one row")
        for name, numbers in (
            ("context", self.contexts),
            ("rows", self.rows),
            ("prefill", self.prefill),
        ):
            for number in numbers:
                if number < 1:
                    raise OptionError(f"{name} is {number}; it must be at least 1")
        # Some engines keep the rows of a series of steps.
        most = max(self.contexts) + max(self.rows) * REPEATS
        if max(most, *self.prefill, 0) > context_length:
            raise OptionError(
                f"context {max(self.contexts)} with {REPEATS} steps of {max(self.rows)} rows, or "
                f"prefill {max(self.prefill, default=0)}, does not fit: "
                f"this model holds {context_length} tokens"
            )

    @property
    def points(self) -> list[Point]:
        """Everything that is measured in one round, in order."""
        steps = [Point("T", context, rows) for context in self.contexts for rows in self.rows]
        return steps + [Point("prefill", 0, length) for length in self.prefill]


@dataclass(frozen=True)
class Point:
    """A step of `count` rows at a context, or (kind `prefill`, context 0) a prompt of that many."""

    kind: str
    context: int
    count: int


@dataclass
class Samples:
    """Times in milliseconds by engine and point, one per round; bandwidths in GB/s, one per round.

    rounds: those that are complete.
    """

    times: dict[tuple[str, Point], list[float]] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    kv_bytes: dict[tuple[str, int], int | None] = field(default_factory=dict)
    peak_bytes: dict[tuple[str, int], int | None] = field(default_factory=dict)
    rounds: int = 0

    def minimum(self, engine: str, point: Point) -> float:
        """The best complete round of a point."""
        return min(self.times[engine, point][: self.rounds])

    def median(self, engine: str, point: Point) -> float:
        """The median of the complete rounds of a point."""
        return statistics.median(self.times[engine, point][: self.rounds])


def measure_curve(
    engines: Mapping[str, Engine],
    plan: CurvePlan,
    vocab_size: int,
    samples: Samples,
    bandwidth: Callable[[int], float],
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Fill `samples` round by round; what is there counts when this is interrupted.

    bandwidth: measures GB/s with a number of threads. progress: stages `open` and `measure`.
    """
    tokens = random_tokens(vocab_size, max(*plan.contexts, *plan.prefill, 0) + max(plan.rows))
    ids: list[int] = tokens.tolist()
    names, points = list(engines), plan.points
    for number, context in enumerate(plan.contexts):
        for name in names:
            answer = engines[name].ask(op="open", context=context, tokens=ids[:context])
            samples.kv_bytes[name, context] = answer["kv_bytes"]
        progress("open", number + 1, len(plan.contexts))
    total = plan.rounds * len(points)
    for turn in range(plan.rounds):
        samples.bandwidths.append(bandwidth(plan.threads))
        # Nobody is always the one who finds the caches as another engine left them.
        first = turn % len(names)
        for number, point in enumerate(points):
            for name in names[first:] + names[:first]:
                time = _time(engines[name], point, ids)
                samples.times.setdefault((name, point), []).append(time)
            progress("measure", turn * len(points) + number + 1, total)
        samples.rounds += 1


def _time(engine: Engine, point: Point, ids: Sequence[int]) -> float:
    """Milliseconds of a point: the best of a few steps, or of one prompt."""
    if point.kind == "prefill":
        return float(engine.ask(op="prefill", tokens=ids[: point.count])["ms"])
    tokens = ids[point.context : point.context + point.count]
    answer = engine.ask(op="step", context=point.context, tokens=tokens, repeats=REPEATS)
    return float(min(answer["ms"]))


def measure_memory(engine: Engine, context: int, vocab_size: int) -> int | None:
    """Peak bytes of a fresh engine that prefills a context and takes a few steps."""
    ids: list[int] = random_tokens(vocab_size, context + MEMORY_ROWS).tolist()
    engine.ask(op="open", context=context, tokens=ids[:context])
    engine.ask(op="step", context=context, tokens=ids[context:], repeats=REPEATS)
    peak: int | None = engine.ask(op="memory")["peak_bytes"]
    return peak
