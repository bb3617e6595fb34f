"""The loop of a search: rank, choose, let the beams go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quickdraft.drafters.conversation import common_prefix
from quickdraft.drafters.tree import Tree
from quickdraft.errors import Cancelled, OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.runtime import clock
from quickdraft.runtime.backends.base import Backend, StepOutput
from quickdraft.runtime.beams.constraints import AllowedTokens
from quickdraft.runtime.beams.ranking import Ranking
from quickdraft.runtime.beams.rows import BeamRows, CacheRows, TreeRows
from quickdraft.runtime.beams.search import Hypothesis, Limits, Search
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.processors import NO_SOURCE
from quickdraft.runtime.result import BeamReport, FinishReason, SourceReport
from quickdraft.runtime.session import Session


@dataclass(frozen=True)
class Searched:
    """What a search found. answers: best first; none if it was interrupted before the first token.
    steps: the first ended the prefill. first: the moment of the first token, None without one."""

    answers: list[Hypothesis]
    steps: list[StepRecord]
    first: float | None
    report: BeamReport
    interrupted: FinishReason | None = None


class _Interrupted(Exception):
    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason: FinishReason = reason


class BeamDecoder:
    """One search in one session, which stays usable however it ends."""

    def __init__(
        self,
        backend: Backend,
        session: Session,
        plan: Plan,
        allowed: AllowedTokens | None = None,
        pad_id: int | None = None,
    ) -> None:
        """pad_id: see Limits."""
        self._backend, self._session, self._plan = backend, session, plan
        self._allowed, self._pad_id = allowed, pad_id
        self._steps: list[StepRecord] = []
        self._first: float | None = None
        self.cached = 0
        self.source: SourceReport | None = None

    def run(self, prompt: Sequence[int], source: Source | None = None) -> Searched:
        """Search for answers to `prompt` (at least one token, and shorter than the context), of an
        encoder-decoder model about `source`.

        Raises:
            OptionError: the options leave no answer.
        """
        plan, session = self._plan, self._session
        if source is not None:
            self.source = session.read(source, plan.cancel)
        room = self._backend.spec.context_length - len(prompt)
        limits = Limits.of(plan.config, plan.eos_ids, self._pad_id, room)
        search, interrupted = Search(limits), None
        self.cached = session.rewind(prompt)
        tree = TreeRows(self._backend, session.cache, plan.cancel)
        rows: BeamRows = tree
        if self._backend.trees == "none":
            rows = CacheRows(self._backend, [session.cache], plan.cancel)
        try:
            rows = self._search(prompt, search, limits, rows)
        except _Interrupted as interruption:
            interrupted = interruption.reason
        except Cancelled:
            interrupted = "cancelled"
        finally:
            search.interrupt(interrupted or "cancelled")
            answers = search.answers()
            self._leave(prompt, tree.committed, answers)
        if not answers and interrupted is None:
            raise OptionError(
                "the options leave no answer; relax the constraint, no_repeat_ngram_size, "
                "logit_bias or min_new_tokens, or raise max_new_tokens"
            )
        length = len(answers[0].tokens) if answers else 0
        steps = [replace(s, emitted=int(i < length)) for i, s in enumerate(self._steps)]
        computed = sum(step.rows for step in steps[1:])
        report = BeamReport(limits.num_beams, limits.num_groups, rows.kind, computed)
        return Searched(answers, steps, self._first, report, interrupted)

    def _search(
        self, prompt: Sequence[int], search: Search, limits: Limits, rows: BeamRows
    ) -> BeamRows:
        """Until no beam goes on; returns what held their rows in the end."""
        plan, read = self._plan, self._session.source
        source = NO_SOURCE if read is None or read.tokens is None else read.tokens
        ranking = Ranking(plan.config, prompt, plan.eos_ids, self._allowed, source)

        def few(length: int) -> bool:
            return ranking.few_decide(length, limits.candidates, self._backend.top)

        started = clock.now()
        output, count = self._prefill(prompt, few(0))
        while True:
            computed = clock.now()
            search.advance(ranking.of(output))
            self._first = self._first or clock.now()
            ended = clock.now()
            times = computed - started, ended - computed
            self._steps.append(StepRecord(0, 0, 0, count, 0.0, times[0], times[1]))
            if search.done:
                return rows
            self._check_interruption()
            started, before = ended, rows.computed
            moves = search.moves()
            if isinstance(rows, TreeRows) and rows.too_long(moves):
                rows = rows.forked()
            output = rows.extend(moves, not few(search.length))
            count = rows.computed - before

    def _prefill(self, prompt: Sequence[int], few: bool) -> tuple[StepOutput, int]:
        """Run what the cache does not hold of the prompt, in chunks, and commit it; the logits
        after its last token, and the rows of the last chunk."""
        cache, size = self._session.cache, self._plan.config.prefill_chunk_size
        while True:
            self._check_interruption()
            chunk = Tree.chain(prompt[cache.length : cache.length + size])
            last = np.array([len(chunk) - 1], np.int64)
            ends = cache.length + len(chunk) == len(prompt)
            output = self._backend.step(
                chunk, cache, last, self._plan.cancel, full_logits=ends and not few
            )
            cache.commit(range(len(chunk)))
            if ends:
                return output, len(chunk)

    def _leave(
        self, prompt: Sequence[int], committed: Sequence[int], answers: Sequence[Hypothesis]
    ) -> None:
        """Let the session know the best answer, and keep those rows of it that all beams shared."""
        session = self._session
        held = [*prompt, *committed]
        session.tokens = [*prompt, *(answers[0].tokens if answers else ())]
        kept = min(session.cache.length, common_prefix(held, session.tokens))
        session.cache.truncate(kept)

    def _check_interruption(self) -> None:
        plan = self._plan
        if plan.cancel is not None and plan.cancel.cancelled:
            raise _Interrupted("cancelled")
        if plan.deadline is not None and clock.now() >= plan.deadline:
            raise _Interrupted("time")
