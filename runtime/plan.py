"""What goes into an answer and what comes out of it, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.judge import Judge
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.result import FinishReason, TokenLogprob


@dataclass(frozen=True)
class Plan:
    """What one answer is bound by.

    eos_ids: end-of-text tokens. deadline: a moment of `runtime.clock.now`. ends_text: told each
    token of the answer in order; true ends the answer with it (a stop string is complete). judge:
    of the rule that has one.
    """

    config: GenerationConfig
    eos_ids: tuple[int, ...] = ()
    deadline: float | None = None
    cancel: CancelToken | None = None
    ends_text: Callable[[int], bool] = lambda token: False
    judge: Judge | None = None


@dataclass(frozen=True)
class Emission:
    """What one step decided. The last one of an answer has a finish_reason, and may be empty."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    record: StepRecord | None
    finish_reason: FinishReason | None
