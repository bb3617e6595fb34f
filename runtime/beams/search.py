"""Which answers to go on with, and which are the best: pure, whatever computes the probabilities.

Beam search is that of transformers 4.57. With several groups it is diverse beam search (Vijayakumar
et al., arXiv 1610.02424): groups choose one after the other, and a token costs what earlier groups
that chose it in this step add up to; when a group ends is as in transformers' own version of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from quickdraft.runtime.beam_options import EarlyStopping
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.result import FinishReason


class Beam(NamedTuple):
    """An answer that goes on. total: sum of the log-probabilities of its tokens, float32. row: of
    the last step, the one that says what may follow it."""

    tokens: tuple[int, ...]
    total: np.float32
    row: int


class Move(NamedTuple):
    """A token after the beam whose logits were `row` of the last step."""

    row: int
    token: int


class Candidate(NamedTuple):
    """One more token after a beam. total: of the beam with it."""

    total: np.float32
    beam: Beam
    token: int


@dataclass(frozen=True)
class Hypothesis:
    """An answer that ended. score: total / length ** length_penalty, by which they are ranked."""

    tokens: tuple[int, ...]
    total: float
    score: float
    finish_reason: FinishReason


Rank = Callable[[Beam, dict[int, int], int], Sequence[tuple[np.float32, int]]]
"""rank(beam, chosen, count): the `count` likeliest tokens after a beam, best first, as pairs of a
finite log-probability and a token; fewer where constraints leave fewer. chosen: how many beams of
earlier groups chose a token in this step."""


@dataclass(frozen=True)
class Limits:
    """What a search is bound by.

    eos_ids: tokens that end an answer. pad_id: what a group that has ended counts as choosing.
    room: most tokens of an answer.
    """

    num_beams: int
    num_groups: int
    length_penalty: float
    early_stopping: EarlyStopping
    eos_ids: tuple[int, ...]
    pad_id: int
    room: int

    @classmethod
    def of(
        cls, config: GenerationConfig, eos_ids: tuple[int, ...], pad_id: int | None, room: int
    ) -> Limits:
        """Those of an answer. pad_id: of the model, None where it has none."""
        ends = () if config.ignore_eos else eos_ids
        if pad_id is None:
            pad_id = eos_ids[0] if eos_ids else -1
        return cls(
            config.num_beams,
            config.num_beam_groups,
            config.length_penalty,
            config.early_stopping,
            ends,
            pad_id,
            min(room, config.max_new_tokens),
        )

    @property
    def group_size(self) -> int:
        """Beams of a group."""
        return self.num_beams // self.num_groups

    @property
    def candidates(self) -> int:
        """How many a group looks at: enough that as many go on as it has beams, even if each beam
        could end in every way."""
        return max(2, 1 + len(self.eos_ids)) * self.group_size

    def score(self, total: np.float32, length: int) -> float:
        """What an answer of that length is worth. transformers divides in float32, its version with
        groups in float64; ties depend on it."""
        if self.num_groups > 1:
            return float(float(total) / length**self.length_penalty)
        return float(total / np.float32(length**self.length_penalty))


class _Best:
    """The best answers of a group that ended, at most as many as it has beams."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held: list[Hypothesis] = []

    @property
    def full(self) -> bool:
        return len(self.held) == self._limits.group_size

    def add(self, tokens: tuple[int, ...], total: np.float32, reason: FinishReason) -> None:
        score = self._limits.score(total, len(tokens))
        if self.full:
            worst = min(range(len(self.held)), key=lambda i: self.held[i].score)
            if score <= self.held[worst].score:
                return
            del self.held[worst]
        self.held.append(Hypothesis(tokens, float(total), score, reason))

    def beats(self, total: np.float32, length: int) -> bool:
        """Whether nothing that goes on can become better, as far as early_stopping looks. length:
        of what goes on; total: of the best of it."""
        limits = self._limits
        if not self.full:
            return False
        if limits.early_stopping is True:
            return True
        if limits.early_stopping == "never" and limits.length_penalty > 0:
            length = limits.room  # a longer answer pays less for the same total
        return limits.score(total, length) <= min(h.score for h in self.held)


@dataclass
class _Group:
    """Beams that compete with each other only."""

    best: _Best
    live: list[Beam]
    done: bool = False
    chosen: list[int] = field(default_factory=list)


class Search:
    """The beams of one answer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        start = Beam((), np.float32(0), 0)
        self._groups = [_Group(_Best(limits), [start]) for _ in range(limits.num_groups)]
        self.length = 0

    @property
    def done(self) -> bool:
        """Whether no beam goes on."""
        return all(group.done for group in self._groups)

    def moves(self) -> list[Move]:
        """What the next step has to compute, and number it: beams of several groups that are the
        same so far share a row."""
        rows: dict[tuple[int, int], int] = {}
        for group in self._groups:
            if not group.done:
                group.live = [
                    beam._replace(row=rows.setdefault((beam.row, beam.tokens[-1]), len(rows)))
                    for beam in group.live
                ]
        return [Move(*move) for move in rows]

    def advance(self, rank: Rank) -> None:
        """Let every beam go on by one token."""
        chosen: dict[int, int] = {}
        self.length += 1
        for group in self._groups:
            if group.done:
                group.chosen = [self._limits.pad_id] * self._limits.group_size
            else:
                self._advance(group, rank, chosen)
            for token in group.chosen:
                chosen[token] = chosen.get(token, 0) + 1

    def _advance(self, group: _Group, rank: Rank, chosen: dict[int, int]) -> None:
        limits, size = self._limits, self._limits.group_size
        found = [
            Candidate(np.float32(beam.total + log_probability), beam, token)
            for beam in group.live
            for log_probability, token in rank(beam, chosen, limits.candidates)
        ]
        found.sort(key=lambda candidate: -candidate.total)
        found = found[: limits.candidates]
        last, alone = self.length == limits.room, limits.num_groups == 1
        going = [c for c in found if c.token not in limits.eos_ids][:size]
        for candidate in found[:size]:
            if candidate.token in limits.eos_ids:
                group.best.add((*candidate.beam.tokens, candidate.token), candidate.total, "stop")
            elif last and alone:
                group.best.add((*candidate.beam.tokens, candidate.token), candidate.total, "length")
        group.live = [Beam((*c.beam.tokens, c.token), c.total, c.beam.row) for c in going]
        group.chosen = [c.token for c in going]
        # As transformers: without groups it looks at those that go on, else at all of them.
        leaders = going if alone else found
        group.done = not going or group.best.beats(leaders[0].total, self.length)
        if last and not group.done:
            if not alone:
                self._end(group, "length")
            group.done = True

    def _end(self, group: _Group, reason: FinishReason) -> None:
        for beam in group.live:
            if beam.tokens:
                group.best.add(beam.tokens, beam.total, reason)

    def interrupt(self, reason: FinishReason) -> None:
        """End the beams that go on where they are."""
        for group in self._groups:
            if not group.done:
                self._end(group, reason)
            group.done = True

    def answers(self) -> list[Hypothesis]:
        """Those that ended, best first. Of equals, the one found first; with groups the one found
        last, as in transformers."""
        held = [hypothesis for group in self._groups for hypothesis in group.best.held]
        if self._limits.num_groups > 1:
            held.reverse()
        return sorted(held, key=lambda hypothesis: -hypothesis.score)
