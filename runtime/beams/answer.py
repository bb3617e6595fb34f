"""A search as an answer: a prompt in, a Result with the best answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quickdraft.errors import ContextOverflow, InputError, OptionError
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.simulated import simulated_device
from quickdraft.runtime.beam_options import check_search
from quickdraft.runtime.beams.constraints import AllowedTokens, beginning_with
from quickdraft.runtime.beams.decoder import BeamDecoder, Searched
from quickdraft.runtime.beams.search import Hypothesis
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.metrics import Clock, timings
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.result import Ranked, Result
from quickdraft.runtime.session import Session
from quickdraft.runtime.sources import Question, config_for
from quickdraft.types import Guarantee

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model


class BeamAnswer:
    """A search to come.

    Raises:
        InputError: the prompt is empty. ContextOverflow: it leaves no room for an answer.
        OptionError: options do not go with a search, or the prefix is empty or too long.
    """

    def __init__(
        self,
        model: Model,
        question: Question,
        config: GenerationConfig,
        cancel: CancelToken | None,
        allowed: AllowedTokens | None = None,
        prefix: Sequence[int] | None = None,
    ) -> None:
        prompt, limit = question.tokens, model.spec.context_length
        if not prompt:
            raise InputError("the prompt is empty; give a text or at least one token")
        if len(prompt) >= limit:
            raise ContextOverflow(len(prompt) + 1, limit, "prompt with an answer of one token")
        config = config_for(question, config)
        if config.num_beams == 1:
            check_search(config, "an answer is searched for")
            # A single beam takes the likeliest token until one ends the answer.
            config = config.replace(early_stopping=True)
        if prefix is not None:
            _check_prefix(prefix, config, model.spec.vocab_size)
            allowed = beginning_with(prefix, allowed)
        self._model, self._prompt, self._config = model, prompt, config
        self._source = question.source
        self._cancel, self._allowed = cancel, allowed

    def run(self, session: Session, started: float) -> Result:
        """Search. started: the moment of the call."""
        model, config = self._model, self._config
        eos_ids = config.eos_token_id
        plan = Plan(
            config,
            model.tokenizer.eos_token_ids if eos_ids is None else eos_ids,
            None if config.max_time is None else started + config.max_time,
            self._cancel,
        )
        pad_id = model.manifest.generation.get("pad_token_id")
        pad_id = pad_id if isinstance(pad_id, int) else None
        decoder = BeamDecoder(model.backend, session, plan, self._allowed, pad_id)
        with session.busy():
            prefill = clock.now()
            found = decoder.run(self._prompt, self._source)
        times = Clock(started, prefill, found.first, clock.now())
        return replace(self._result(found, times, decoder.cached), source=decoder.source)

    def _guarantee(self, kind: str) -> Guarantee:
        """Branches of a tree may differ by rounding from the same tokens decoded plainly."""
        backend = self._model.backend
        if kind == "tree" and backend.trees != "exact" and backend.guarantee != "lossy":
            return "same_distribution"
        return backend.guarantee

    def _ranked(self, hypothesis: Hypothesis) -> Ranked:
        text = self._model.detokenize(hypothesis.tokens)
        return Ranked(text, hypothesis.tokens, hypothesis.score, hypothesis.finish_reason)

    def _result(self, found: Searched, times: Clock, cached: int) -> Result:
        model, count = self._model, self._config.num_return_sequences
        ranked = tuple(self._ranked(hypothesis) for hypothesis in found.answers[:count])
        best = ranked[0] if ranked else None
        ended = "stop" if best is None else best.finish_reason
        return Result(
            text=best.text if best is not None else "",
            token_ids=best.token_ids if best is not None else (),
            finish_reason=found.interrupted or ended,
            prompt_token_ids=tuple(self._prompt),
            logprobs=None,
            model=model.name,
            backend=model.backend.name,
            flavour=model.backend.flavour,
            guarantee=self._guarantee(found.report.rows),
            kv_cache=model.backend.kv_type,
            device=model.backend.device,
            isa=model.backend.isa,
            degraded=model.degraded,
            timings=timings(
                times,
                found.steps,
                prompt_n=len(self._prompt) - cached,
                cached_n=cached,
                load_ms=model.load_ms,
            ),
            steps=tuple(found.steps),
            simulated=simulated_device(model.backend),
            sequences=ranked,
            beams=found.report,
        )


def _check_prefix(prefix: Sequence[int], config: GenerationConfig, vocab_size: int) -> None:
    if not len(prefix) or len(prefix) >= config.max_new_tokens:
        raise OptionError(
            f"answer_prefix has {len(prefix)} tokens; it must have one at least and fewer than "
            f"max_new_tokens ({config.max_new_tokens})"
        )
    for token in prefix:
        if not 0 <= token < vocab_size:
            raise OptionError(
                f"answer_prefix holds token {token}, and the vocabulary has {vocab_size} tokens"
            )
