"""The loop: draft, verify, accept, commit. Plain decoding is the tree of one node."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quickdraft.drafters.base import DraftSettings, Law
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.errors import Cancelled
from quickdraft.kvcache.memory import Source
from quickdraft.runtime import clock
from quickdraft.runtime.accept import NodeDistribution, Rule, judged, rule_for
from quickdraft.runtime.backends.base import Backend, StepOutput
from quickdraft.runtime.judge import Judge
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.plan import Emission, Plan
from quickdraft.runtime.prediction import PredictionReport, Prefill
from quickdraft.runtime.processors import NO_SOURCE
from quickdraft.runtime.refresh import Refresh
from quickdraft.runtime.result import FinishReason, SourceReport, TokenLogprob
from quickdraft.runtime.sampling import (
    process,
    process_top,
    token_logprob,
    token_logprob_top,
    top_decides,
    top_is_tied,
)
from quickdraft.runtime.session import Session
from quickdraft.runtime.speculation import Proposal, Verdict


class _Verified(NamedTuple):
    """A proposal after the target's step, whose logits are its nodes'. offset: staged rows before
    its root. predicted: rows of the cache that are."""

    proposal: Proposal
    output: StepOutput
    offset: int
    rows: int
    verify_s: float
    predicted: int = 0


class _Interrupted(Exception):
    """Ends an answer between or within steps."""

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason)
        self.reason: FinishReason = reason


class Decoder:
    """One answer in one session. The session stays usable however the answer ends."""

    def __init__(self, backend: Backend, session: Session, plan: Plan) -> None:
        self._backend = backend
        self._session = session
        self._plan = plan
        config = plan.config
        self._speculation = session.speculation if config.num_draft_tokens != 0 else None
        self._rule = rule_for(config)
        self._seeds = np.random.SeedSequence(config.seed)
        self._rng = np.random.default_rng(self._seeds)
        self._context = np.zeros(0, np.int64)
        self._source = NO_SOURCE
        self._length = 0
        self._prompt_length = 0
        self.cached = 0
        self.source: SourceReport | None = None
        self.prefill = Prefill.parse(config.prefill)
        self.prediction: PredictionReport | None = None
        self._refresh: Refresh | None = None
        self._exact_from: int | None = None

    @property
    def done(self) -> str:
        """How the rows that the answer stands on came about; see Result.prefill."""
        if self.prediction is None:
            return "exact"
        return replace(self._session.prefill, refresh=self.prefill.refresh).kind

    def run(self, prompt: Sequence[int], source: Source | None = None) -> Generator[Emission]:
        """Decode after `prompt` (at least one token, and shorter than the context), of an
        encoder-decoder model about `source`."""
        try:
            if source is not None:
                self.source = self._session.read(source, self._plan.cancel)
                self._source = NO_SOURCE if source.tokens is None else source.tokens
            self._start(prompt)
            verified = self._prefill(prompt)
            while True:
                emission = self._decide(verified)
                yield emission
                if emission.finish_reason is not None:
                    return
                self._go_on_refreshing(emission.tokens)
                verified = self._verify(self._draft())
        except _Interrupted as interruption:
            yield Emission((), (), None, interruption.reason)
        except Cancelled:
            yield Emission((), (), None, "cancelled")
        finally:
            if self._speculation is not None:
                self._speculation.end()
            self._stop_refreshing()

    def _start(self, prompt: Sequence[int]) -> None:
        self.cached = self._session.rewind(prompt, self.prefill.predicts)
        self._prompt_length = self._length = len(prompt)
        room = min(self._plan.config.max_new_tokens, self._backend.spec.context_length) + 65
        self._context = np.zeros(len(prompt) + room, np.int64)
        self._context[: len(prompt)] = prompt
        if self._speculation is not None:
            nodes = self._plan.config.num_draft_tokens
            self._speculation.begin(prompt, self._settings(), nodes)
            if self._session.refreshed is None:  # also where it has just been swapped in
                self._tell(self.cached)

    def _settings(self) -> DraftSettings:
        """What drafters are told of this answer."""
        config, law, seed = self._plan.config, None, 0
        if config.do_sample:
            law = self._law()
            # Numbers of its own: a draft that is drawn with those that judge it would be biased.
            seed = int(self._seeds.spawn(1)[0].generate_state(1, np.uint64)[0])
        lookup, ngram = config.prompt_lookup_num_tokens, config.max_matching_ngram_size
        memory = self._session.memory
        return DraftSettings(law, seed, lookup, ngram, self._source.tolist(), memory)

    def _law(self) -> Law:
        """How this answer draws a token after any tokens that begin with its prompt."""
        plan, prompt_length, source = self._plan, self._prompt_length, self._source

        def law(logits: NDArray[np.float32], tokens: Sequence[int]) -> Distribution:
            context = np.asarray(tokens, np.int64)
            generated = len(context) - prompt_length
            return process(logits, context, generated, plan.config, plan.eos_ids, source)

        return law

    def _prefill(self, prompt: Sequence[int]) -> _Verified:
        """Run the prompt in chunks; the last chunk ends with the root of the first tree."""
        size = self._plan.config.prefill_chunk_size
        cache = self._session.cache
        started = clock.now()
        self._predict(prompt)
        while True:
            self._check_interruption()
            chunk = Tree.chain(prompt[cache.length : cache.length + size])
            last = np.array([len(chunk) - 1], np.int64)
            if cache.length + len(chunk) == len(prompt):
                output = self._step(chunk, last)
                root, spent = Proposal(Tree.chain(prompt[-1:])), clock.now() - started
                rows = len(chunk)
                self._show(output, rows - 1)
                return _Verified(root, output, rows - 1, rows, spent, cache.predicted)
            output = self._backend.step(chunk, cache, last, self._plan.cancel, full_logits=False)
            self._show(output, len(chunk))
            cache.commit(range(len(chunk)))

    def _show(self, output: StepOutput, count: int) -> None:
        """Let drafters read the hidden states of rows that are not committed yet."""
        if self._speculation is not None:
            start = self._session.cache.length
            self._speculation.read(start, output.hidden_states, count)

    def _tell(self, length: int) -> None:
        """Let drafters read the hidden states of rows below `length` that a refresh computed."""
        found = self._session.told.take(length)
        if found is not None and self._speculation is not None:
            self._speculation.read(*found, length - found[0])

    def _predict(self, prompt: Sequence[int]) -> None:
        """Predict rows of the prompt where that was asked for and pays; take note of all there are,
        also those that an earlier answer left."""
        session, held = self._session, self._session.cache
        spent, rows = 0.0, 0
        if self.prefill.predicts and not held.predicted:
            rows = session.prediction.rows(self.prefill, len(prompt), held.length)
        if rows:
            self._check_interruption()
            spent = session.predict(rows, self.prefill, self._plan.cancel)
        report = session.report()
        if report is not None:
            self.prediction = replace(report, predict_ms=1e3 * spent)

    def _step(self, tree: Tree, rows: NDArray[np.int64] | None = None) -> StepOutput:
        """The target's step, with all logits only where the largest do not decide."""
        plan, cache, backend = self._plan, self._session.cache, self._backend
        refresh = self._refresh
        if refresh is not None and refresh.backend is not None and not refresh.ended:
            backend = refresh.backend  # the cores are shared out between the two
        generated = self._length - self._prompt_length
        few = top_decides(plan.config, generated, backend.top, len(tree))
        output = backend.step(tree, cache, rows, plan.cancel, full_logits=not few)
        if few and output.top is not None and top_is_tied(output.top, plan.config):
            # So rare that doing the step again is cheaper than preparing for it.
            output = backend.step(tree, cache, rows, plan.cancel)
        return output

    def _draft(self) -> Proposal:
        """The next tree: the last decided token, and what drafters make of it."""
        root = int(self._context[self._length - 1])
        if self._speculation is None:
            return Proposal(Tree.chain([root]))
        generated = self._length - self._prompt_length
        room = min(
            self._plan.config.max_new_tokens - generated - 1,
            self._backend.spec.context_length - self._length,
        )
        return self._speculation.propose(root, room, self._length)

    def _verify(self, proposal: Proposal) -> _Verified:
        self._check_interruption()
        started = clock.now()
        tree, missing = proposal.tree, self._swap()
        offset, rows = len(missing), None
        if missing:
            tree = tree.after(missing)
            rows = np.arange(offset, len(tree))
        output = self._step(tree, rows)
        self._show(output, offset)
        spent = clock.now() - started
        predicted = self._session.cache.predicted
        return _Verified(proposal, output, offset, len(tree), spent, predicted)

    def _go_on_refreshing(self, tokens: Sequence[int]) -> None:
        """Start computing exact rows where that was asked for, or tell what was decided since."""
        session = self._session
        if self._refresh is not None:
            self._refresh.tell(tokens)
        elif self.prefill.refresh and session.cache.predicted:
            if session.refreshed is None:
                session.refreshed = self._backend.new_cache()
            size = self._plan.config.prefill_chunk_size
            known = session.prediction, session.refreshed, session.tokens
            hidden = () if self._speculation is None else self._speculation.drafting.hidden
            self._refresh = Refresh(*known, size, session.told, hidden)

    def _swap(self) -> list[int]:
        """Go over to exact rows once nearly all are there; returns the tokens of those that are
        not, which belong before the root of the next step."""
        refresh, session = self._refresh, self._session
        predicted = session.cache.predicted
        if refresh is None or not predicted or not refresh.ended or refresh.error is not None:
            return []
        session.use_refreshed()
        self._tell(session.cache.length)
        self._exact_from = self._length - self._prompt_length
        return session.tokens[session.cache.length : self._length - 1]

    def _stop_refreshing(self) -> None:
        """What is exact by then stays in the session, and its next answer goes on from there."""
        refresh, report = self._refresh, self.prediction
        if refresh is not None and report is not None:
            refresh.stop()
            self.prediction = replace(
                report,
                exact_from=self._exact_from,
                refresh_ms=1e3 * refresh.seconds,
                refresh_error=refresh.error,
            )

    def _decide(self, verified: _Verified) -> Emission:
        """Accept what the target agrees with, cut it where the answer ends, commit the rest."""
        started = clock.now()
        proposal, offset = verified.proposal, verified.offset
        tree = proposal.tree
        rule = self._rule if self._plan.judge is None else self._judged(verified, self._plan.judge)
        accepted = rule(tree, proposal.laws, self._distribution(verified), self._rng)
        nodes = accepted.path[1:]
        decided = [*tree.tokens[nodes].tolist(), accepted.token] if nodes else [accepted.token]
        tokens, reason = self._cut(decided)
        path = accepted.path[: len(tokens)]
        self._session.cache.commit([*range(offset), *(offset + node for node in path)])
        self._remember(tokens)
        logprobs = []
        if self._plan.config.logprobs:
            pairs = zip(path, tokens, strict=True)
            logprobs = [self._logprob(verified.output, node, token) for node, token in pairs]
        sampled = clock.now()
        if self._speculation is not None:
            states = [offset + node for node in path]
            verdict = Verdict(tokens, decided, path, verified.output, states, verified.verify_s)
            self._speculation.observe(proposal, verdict)
        times = sampled - started, clock.now() - sampled
        record = _record(verified, nodes[: len(tokens)], tokens, times)
        return Emission(tuple(tokens), tuple(logprobs), record, reason)

    def _judged(self, verified: _Verified, judge: Judge) -> Rule:
        """The rule, with what the judge says of the drafted tokens."""
        tree, offset = verified.proposal.tree, verified.offset
        if len(tree) == 1:
            return self._rule
        rows = range(offset, offset + len(tree))
        config, fine = self._plan.config, judge.verdicts(tree, verified.output, rows).tolist()
        return partial(judged, sample=config.do_sample, least=config.judge_threshold, fine=fine)

    def _distribution(self, verified: _Verified) -> NodeDistribution:
        """The target's distribution after a path of nodes; penalties see the path's tokens."""
        plan, tree = self._plan, verified.proposal.tree
        logits, top = verified.output.logits, verified.output.top

        def distribution(path: list[int]) -> Distribution:
            if top is not None and not len(logits):
                return process_top(top, path[-1], plan.config)
            end = self._length + len(path) - 1
            if len(path) > 1:
                self._context[end - 1] = tree.tokens[path[-1]]
            generated = end - self._prompt_length
            context = self._context[:end]
            rules = plan.config, plan.eos_ids, self._source
            return process(logits[path[-1]], context, generated, *rules)

        return distribution

    def _logprob(self, output: StepOutput, node: int, token: int) -> TokenLogprob:
        """Of a backend that has `top`, the same numbers whether it gave all logits or not."""
        count = self._plan.config.logprobs
        if output.top is None or count > output.top.ids.shape[1]:
            return token_logprob(output.logits[node], token, count)
        logits = output.logits[node] if len(output.logits) else None
        return token_logprob_top(output.top, node, token, count, logits)

    def _cut(self, decided: list[int]) -> tuple[list[int], FinishReason | None]:
        """The part of the decided tokens that belongs to the answer, as if they came singly."""
        plan = self._plan
        room = min(
            plan.config.max_new_tokens - (self._length - self._prompt_length),
            self._backend.spec.context_length - self._length,
        )
        for count, token in enumerate(decided, 1):
            ended = token in plan.eos_ids and not plan.config.ignore_eos
            if ended or plan.ends_text(token):
                return decided[:count], "stop"
            if count >= room:
                return decided[:count], "length"
        return decided, None

    def _remember(self, tokens: list[int]) -> None:
        self._context[self._length : self._length + len(tokens)] = tokens
        self._length += len(tokens)
        self._session.tokens += tokens

    def _check_interruption(self) -> None:
        plan = self._plan
        if plan.cancel is not None and plan.cancel.cancelled:
            raise _Interrupted("cancelled")
        if plan.deadline is not None and clock.now() >= plan.deadline:
            raise _Interrupted("time")


def _record(
    verified: _Verified, accepted: list[int], tokens: list[int], times: tuple[float, float]
) -> StepRecord:
    """Sum up a step. accepted: nodes that became part of the answer. times: deciding, learning."""
    proposal = verified.proposal
    return StepRecord(
        drafted=len(proposal.tree) - 1,
        accepted=len(accepted),
        emitted=len(tokens),
        rows=verified.rows,
        draft_s=proposal.draft_s,
        verify_s=verified.verify_s,
        sample_s=times[0],
        learn_s=times[1],
        fallbacks=proposal.fallbacks,
        depth=proposal.depth,
        drawn=proposal.drawn,
        by_drafter=proposal.counts(accepted),
        draft_s_by=proposal.draft_s_by,
        decision=proposal.decision,
        predicted_rows=verified.predicted,
    )
