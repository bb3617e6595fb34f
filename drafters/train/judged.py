"""What trains a draft and judges it on held-out text, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from quickdraft.drafters.train.data import Packed
from quickdraft.drafters.train.loop import Batch

if TYPE_CHECKING:
    from torch import nn


class Judge(Protocol):
    """A module that also says how good it is on a batch."""

    def judge(self, batch: Batch) -> tuple[int, dict[str, float]]:
        """How many words count, and the figures of an evaluation, means over them."""


class JudgedTrainee:
    """A draft with its data; see drafters.train.loop.Trainee."""

    def __init__(
        self, module: nn.Module, judge: Judge, training: Packed, held_out: Packed, rows: int
    ) -> None:
        """judge: the module, as what judges it. rows: of held-out text that an evaluation reads."""
        self.module = module
        self._judge = judge
        self._training = training
        self._held_out = held_out
        self._rows = rows

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self._training.batch(number)

    def evaluate(self) -> Mapping[str, float]:
        """Means over rows of held-out text, weighted by the words that count.

        agree.N: how often the N-th drafted token is what the target finds likeliest, given that
        those before it are what was said. tokens_per_step: what a chain of them would bring where
        answers are as they were, the target's own token among them.
        """
        sums: dict[str, float] = {}
        total = rows = 0
        for batch in self._held_out.all_batches():
            if rows >= self._rows:
                break
            rows += len(batch["tokens"])
            count, figures = self._judge.judge(batch)
            total += count
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * count
        return {name: value / max(total, 1) for name, value in sums.items()}
