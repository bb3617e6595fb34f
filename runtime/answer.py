"""One answer: tokens become text, text is cut at stop strings, times are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from quickdraft.errors import ContextOverflow, InputError
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.simulated import simulated_device
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.metrics import Clock, StepRecord, timings
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.result import Chunk, FinishReason, Result, TokenLogprob
from quickdraft.runtime.session import Session
from quickdraft.runtime.sources import Question, config_for
from quickdraft.runtime.text import Detokenizer, StopStrings, Tokenizer
from quickdraft.types import Guarantee

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model


class _Writer:
    """Collects the text of an answer as its tokens are decided."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stop_strings)
        self._ready: list[str] = []
        self._stopped = False
        self.text = ""

    def push(self, token: int) -> bool:
        """Add a token; true if a stop string is complete."""
        return self._add(self._detokenizer.push(token))

    def _add(self, text: str) -> bool:
        shown, self._stopped = self._stops.push(text) if text else ("", self._stopped)
        self._ready.append(shown)
        return self._stopped

    def take(self) -> str:
        """Text decided since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        self.text += text
        return text

    def finish(self) -> str:
        """The rest of the text."""
        if not self._stopped and not self._add(self._detokenizer.flush()):
            self._ready.append(self._stops.flush())
        return self.take()


class AnswerStream:
    """An answer to come.

    Raises:
        InputError: the prompt is empty, or the bundle has no judge and one is asked for.
        ContextOverflow: the prompt leaves no room for an answer. OptionError: options do not go
            with it.
    """

    def __init__(
        self,
        model: Model,
        question: Question,
        config: GenerationConfig,
        started: float,
        cancel: CancelToken | None,
    ) -> None:
        prompt, limit = question.tokens, model.spec.context_length
        if not prompt:
            raise InputError("the prompt is empty; give a text or at least one token")
        if len(prompt) >= limit:
            raise ContextOverflow(len(prompt) + 1, limit, "prompt with an answer of one token")
        self._model = model
        self._prompt = prompt
        self._source = question.source
        self._config = config = config_for(question, config)
        self._started = started
        self._writer = _Writer(model.tokenizer, config.stop_strings)
        eos_ids = config.eos_token_id
        self._plan = Plan(
            config,
            model.tokenizer.eos_token_ids if eos_ids is None else eos_ids,
            None if config.max_time is None else started + config.max_time,
            cancel,
            self._writer.push,
            model.judge.get() if config.acceptance == "judge" else None,
        )

    def run(self, session: Session) -> Iterator[Chunk]:
        """Decode; the last chunk holds the result."""
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        steps: list[StepRecord] = []
        first: float | None = None
        decoder = Decoder(self._model.backend, session, self._plan)
        with session.busy(), closing(decoder.run(self._prompt, self._source)) as emissions:
            prefill = clock.now()
            for emission in emissions:
                if first is None and emission.tokens:
                    first = clock.now()
                tokens += emission.tokens
                logprobs += emission.logprobs
                if emission.record is not None:
                    steps.append(emission.record)
                entries = emission.logprobs if self._config.logprobs else None
                if emission.finish_reason is None:
                    yield Chunk(self._writer.take(), emission.tokens, entries)
        moments = Clock(self._started, prefill, first, clock.now())
        rest = self._writer.take() + self._writer.finish()
        reason: FinishReason = emission.finish_reason or "stop"
        result = self._result(tokens, logprobs, steps, reason, moments, decoder)
        yield Chunk(rest, emission.tokens, entries, reason, result)

    def _guarantee(self, steps: Sequence[StepRecord], predicted: bool) -> Guarantee:
        """What holds for this answer: predicted rows, a rule that was asked for by name, or a draft
        that was drawn, take something away from what the backend promises."""
        if predicted:
            return "lossy"
        acceptance = self._config.acceptance
        if acceptance == "judge" or (acceptance == "typical" and self._config.do_sample):
            return "lossy"
        if any(step.drawn for step in steps):
            return "same_distribution"
        return self._model.backend.guarantee

    def _result(
        self,
        tokens: list[int],
        logprobs: list[TokenLogprob],
        steps: list[StepRecord],
        reason: FinishReason,
        moments: Clock,
        decoder: Decoder,
    ) -> Result:
        model, cached = self._model, decoder.cached
        return Result(
            text=self._writer.text,
            token_ids=tuple(tokens),
            finish_reason=reason,
            prompt_token_ids=tuple(self._prompt),
            logprobs=tuple(logprobs) if self._config.logprobs else None,
            model=model.name,
            backend=model.backend.name,
            flavour=model.backend.flavour,
            guarantee=self._guarantee(steps, decoder.prediction is not None),
            kv_cache=model.backend.kv_type,
            device=model.backend.device,
            isa=model.backend.isa,
            degraded=model.degraded,
            simulated=simulated_device(model.backend),
            timings=timings(
                moments,
                steps,
                prompt_n=len(self._prompt) - cached,
                cached_n=cached,
                load_ms=model.load_ms,
            ),
            steps=tuple(steps),
            prefill=decoder.done,
            prediction=decoder.prediction,
            source=decoder.source,
        )
