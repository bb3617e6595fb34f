"""What happened and how long it took, per step and per answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from quickdraft.drafters.controller import Decision


@dataclass(frozen=True)
class StepRecord:
    """One draft, verify, accept round; the first one of an answer is the end of its prefill.

    drafted: tokens proposed. accepted: of these, how many became part of the answer. emitted:
    tokens of the answer this step decided. rows: rows the target computed. Times in seconds.
    fallbacks: proposals that were dropped because they could not be used. learn_s: telling drafters
    and controller what was decided. depth: of the deepest node. drawn: proposed tokens that were
    drawn at random. by_drafter: tokens each proposed, and of these the accepted; what two proposed
    counts for both. draft_s_by: seconds of each drafter that was asked. decision: why the tree was
    as large as it was. predicted_rows: rows of the cache under the step that were predicted.
    """

    drafted: int
    accepted: int
    emitted: int
    rows: int
    draft_s: float
    verify_s: float
    sample_s: float
    fallbacks: int = 0
    learn_s: float = 0.0
    depth: int = 0
    drawn: int = 0
    by_drafter: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    draft_s_by: Mapping[str, float] = field(default_factory=dict)
    decision: Decision | None = None
    predicted_rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, times in milliseconds; what `--explain` reports of a step."""
        plan = self.decision
        planned: dict[str, Any] = {}
        if plan is not None:
            planned = {
                "asked": list(self.draft_s_by),
                "offered": plan.offered,
                "expected_tokens": round(plan.expected_tokens, 3),
                "expected_ms": round(1e3 * plan.expected_s, 3),
                "plain_ms": round(1e3 * plan.plain_s, 3),
                "reason": plan.reason,
            }
        return {
            "drafted": self.drafted,
            "accepted": self.accepted,
            "emitted": self.emitted,
            "depth": self.depth,
            "draft_ms": round(1e3 * self.draft_s, 3),
            "verify_ms": round(1e3 * self.verify_s, 3),
            "sample_ms": round(1e3 * self.sample_s, 3),
            "learn_ms": round(1e3 * self.learn_s, 3),
            "fallbacks": self.fallbacks,
            "drafters": {k: list(v) for k, v in self.by_drafter.items()},
            "predicted_rows": self.predicted_rows,
            **planned,
        }


def drafting_summary(steps: Sequence[StepRecord]) -> dict[str, Any]:
    """What drafting came to in an answer, as plain JSON types: tokens per step, and by drafter the
    tokens proposed, those accepted, and milliseconds."""
    names = dict.fromkeys(name for step in steps for name in (*step.draft_s_by, *step.by_drafter))
    drafters = {}
    for name in names:
        counts = [step.by_drafter.get(name, (0, 0)) for step in steps]
        drafters[name] = {
            "drafted": sum(drafted for drafted, _ in counts),
            "accepted": sum(accepted for _, accepted in counts),
            "draft_ms": round(1e3 * sum(step.draft_s_by.get(name, 0.0) for step in steps), 3),
        }
    after_first = steps[1:]
    emitted = sum(step.emitted for step in after_first)
    return {
        "drafters": drafters,
        "tokens_per_step": round(emitted / len(after_first), 3) if after_first else 0.0,
        "draft_ms": round(1e3 * sum(step.draft_s for step in steps), 3),
        "learn_ms": round(1e3 * sum(step.learn_s for step in steps), 3),
        "verify_ms": round(1e3 * sum(step.verify_s for step in after_first), 3),
        "fallbacks": sum(step.fallbacks for step in steps),
    }


@dataclass(frozen=True)
class Timings:
    """Times and counts of one answer.

    load_ms: opening the model. ttft_ms: from the call to the first token, template and
    tokenising included. prompt_n: prompt tokens computed, or filled in by a predictor; cached_n:
    prompt tokens that a session still held; prompt_ms: the prefill. predicted_n, predicted_ms:
    tokens of the answer, and the time from the first to the last (the names are llama.cpp's).
    predicted_per_second: tokens after the first, over predicted_ms. steps: target steps after the
    prefill. draft_n, draft_n_accepted: drafted tokens.
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
    """Moments of one answer, in seconds of `runtime.clock.now`; None where it never came."""

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
