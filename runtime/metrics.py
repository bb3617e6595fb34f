"""What happened and how long it took, per step and per answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class StepRecord:
    """One draft, verify, accept round; the first one of an answer is the end of its prefill.

    drafted: tokens proposed. accepted: of these, how many became part of the answer. emitted:
    tokens of the answer this step decided. rows: rows the target computed. Times in seconds.
    fallbacks: proposals that were dropped because they could not be used.
    """

    drafted: int
    accepted: int
    emitted: int
    rows: int
    draft_s: float
    verify_s: float
    sample_s: float
    fallbacks: int = 0


@dataclass(frozen=True)
class Timings:
    """Times and counts of one answer.

    load_ms: opening the model. ttft_ms: from the call to the first token, template and
    tokenising included. prompt_n: prompt tokens computed; cached_n: prompt tokens that a session
    still held; prompt_ms: the prefill. predicted_n, predicted_ms: tokens of the answer, and the
    time from the first to the last. predicted_per_second: tokens after the first, over
    predicted_ms. steps: target steps after the prefill. draft_n, draft_n_accepted: drafted tokens.
    """

    load_ms: float = 0.0
    ttft_ms: float = 0.0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    cached_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    steps: int = 0
    draft_n: int = 0
    draft_n_accepted: int = 0

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers, times rounded to a microsecond."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Clock:
    """Moments of one answer, in seconds of `time.perf_counter`; None where it never came."""

    called: float
    prefill_started: float
    first_token: float | None
    finished: float


def timings(
    clock: Clock, steps: Sequence[StepRecord], *, prompt_n: int, cached_n: int, load_ms: float
) -> Timings:
    """Sum up an answer. The first record is the one that ended the prefill."""
    predicted = sum(step.emitted for step in steps)
    first = clock.first_token if clock.first_token is not None else clock.finished
    answer_s = clock.finished - first
    after_first = predicted - 1
    return Timings(
        load_ms=load_ms,
        ttft_ms=1e3 * (first - clock.called),
        prompt_n=prompt_n,
        prompt_ms=1e3 * (first - clock.prefill_started),
        cached_n=cached_n,
        predicted_n=predicted,
        predicted_ms=1e3 * answer_s,
        predicted_per_second=after_first / answer_s if after_first > 0 and answer_s > 0 else 0.0,
        steps=max(len(steps) - 1, 0),
        draft_n=sum(step.drafted for step in steps),
        draft_n_accepted=sum(step.accepted for step in steps),
    )
