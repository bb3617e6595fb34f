"""Training of heads that say tokens ahead: what Medusa and Hydra have in common.

Row t of the target's last stream chose token t + 1; head k learns the distribution that the target
has of token t + 1 + k, where the tokens before it are those of the text. So the losses are Medusa's
(Cai et al., arXiv 2401.10774, section 2.2.1), with the teacher of Hydra++ (Ankner et al., arXiv
2402.05109, section 4) instead of the words alone: later heads count less. Only words of answers
count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.train.data import Packed
from quickdraft.drafters.train.judged import JudgedTrainee
from quickdraft.drafters.train.kinds import Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.heads.parts import HeadsSettings, trimmed_head

HELD_OUT_ROWS = 48
"""Rows of held-out text that an evaluation reads."""


@dataclass(frozen=True)
class AheadOptions:
    """How to make and train heads.

    heads: one for every token ahead. vocab_size: tokens they can draft, the commonest of the
    answers. later: weight of each head against the one before. rows, length: of a batch. keep:
    megabytes for hidden states of the target, on the CPU.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "heads": (1, 8),
        "vocab_size": (2, 1 << 20),
        "later": (0.01, 1.0),
        "rows": (1, 256),
        "length": (32, 8192),
        "keep": (0, 1 << 20),
    }
    heads: int = 4
    vocab_size: int = 8192
    later: float = 0.8
    rows: int = 4
    length: int = 384
    keep: int = 4096

    def settings(self, kind: str, request: Request) -> HeadsSettings:
        """Of the trained file."""
        size = min(self.vocab_size, request.target.spec.vocab_size)
        return HeadsSettings(self.heads, size, kind)


def ahead_loop(**given: Any) -> LoopOptions:
    """How heads are trained where the user says nothing else."""
    return LoopOptions(**{"rate": 1e-3, "warm_up": 0.05, **given})


class Rows(NamedTuple):
    """The n rows of a batch that count.

    state: [n, hidden], the target's last stream. tokens: by head, int64 [n], the first one that of
    the row's own choice, the last one only said. taught: by head, [n, vocabulary], the target's
    logits. best: by head, int64 [n], the likeliest of all its tokens. counts: by head, bool [n].
    """

    state: Tensor
    tokens: list[Tensor]
    taught: list[Tensor]
    best: list[Tensor]
    counts: list[Tensor]


class AheadModule(nn.Module, ABC):
    """Heads beside their frozen target: a batch to a loss."""

    def __init__(
        self, request: Request, settings: HeadsSettings, options: AheadOptions, tokens: NDArray[Any]
    ) -> None:
        super().__init__()
        target, device = request.target, request.device
        self._device, self._dtype = device, pick_dtype(device)
        keep = options.keep if device.type == "cpu" else 0
        self._states = TargetStates(target, (), device, self._dtype, keep)
        self._output = self._states.output()
        head = trimmed_head(target.weights.head, tokens.astype(np.int64), settings.name)
        self._taught = self._states.output(replace(target.weights, head=head))
        self._settings, self._options = settings, options
        self._tokens = tokens
        self._models = nn.ModuleList()

    def add(self, parts: Sequence[Part], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Make the graphs of parts trainable, from these tensors."""
        own = {f"{self._settings.name}.{name}" for name in tensors}
        for part in parts:
            model = TorchModel(
                part.build,
                features=part.features,
                train=own.__contains__,
                dtype=self._dtype,
                device=self._device,
                share=self._taught,
            )
            self._models.append(model)

    @abstractmethod
    def say(self, rows: Rows) -> Iterator[Tensor]:
        """Logits [n, vocabulary] of one head after another."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of the heads' cross entropies, and by head how often the likeliest
        tokens agree."""
        rows, figures = self._rows(batch), {}
        loss, weights = torch.zeros((), device=self._device), 0.0
        for number, logits in enumerate(self.say(rows)):
            wanted, mask = rows.taught[number].float(), rows.counts[number]
            said = torch.log_softmax(logits.float(), -1)
            cross = -(torch.softmax(wanted, -1) * said).sum(-1)
            weight = self._options.later**number
            loss = loss + weight * mean(cross, mask)
            weights += weight
            agree = (said.argmax(-1) == wanted.argmax(-1)).float()
            figures[f"agree.{number + 1}"] = mean(agree.detach(), mask)
        return loss / weights, figures

    def judge(self, batch: Batch) -> tuple[int, dict[str, float]]:
        """Words that count in a batch, and the figures of an evaluation over them."""
        moved = {name: values.to(self._device) for name, values in batch.items()}
        rows, figures = self._rows(moved), {}
        own = torch.as_tensor(self._tokens, device=self._device).long()
        right, brought = rows.counts[0].float(), rows.counts[0].float()
        for number, logits in enumerate(self.say(rows)):
            said, mask = own[logits.argmax(-1)], rows.counts[number]
            agree = (said == rows.best[number]).float()
            figures[f"agree.{number + 1}"] = float(mean(agree, mask))
            right = right * (said == rows.tokens[number + 1]).float() * mask
            brought = brought + right
        figures["tokens_per_step"] = float(mean(brought, rows.counts[0]))
        return int(rows.counts[0].sum()), figures

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What the heads have learnt, for a trained file."""
        begin = len(self._settings.name) + 1
        learnt = {
            name[begin:]: values
            for model in self._models
            for name, values in model.trained_arrays().items()
        }
        return {**learnt, "tokens": self._tokens}

    @torch.no_grad()
    def _rows(self, batch: Batch) -> Rows:
        heads, tokens = self._settings.heads, batch["tokens"]
        documents, answer = batch["documents"], batch["answer"]
        held = []
        for head in range(1, heads + 1):
            same = (shifted(documents, head + 1) == documents) & (documents > 0)
            held.append(same & shifted(answer, 1) & shifted(answer, head + 1))
        first = held[0].clone()
        first[0, 0] |= not first.any()  # a batch without answers still has a row
        row, at = first.nonzero(as_tuple=True)
        stream = self._states(batch)[self._states.last]
        taught = self._taught(features=stream).logits
        best = self._output(features=stream).logits.argmax(-1)
        # The last ones say nothing that counts.
        ahead = [(at + head).clamp(max=tokens.shape[1] - 1) for head in range(1, heads + 1)]
        return Rows(
            stream[row, at],
            [shifted(tokens, head + 1)[row, at] for head in range(heads + 1)],
            [taught[row, place] for place in ahead],
            [best[row, place] for place in ahead],
            [counts[row, at] for counts in held],
        )


def ahead_trainee(module: AheadModule, request: Request, options: AheadOptions) -> JudgedTrainee:
    """Heads with their data."""
    training = Packed(request.training, options.rows, options.length, request.seed)
    held_out = Packed(request.held_out, options.rows, options.length)
    return JudgedTrainee(module, module, training, held_out, HELD_OUT_ROWS)


def shifted(values: Tensor, by: int) -> Tensor:
    """values[:, t + by] at t, zeros at the end."""
    return nn.functional.pad(values[:, by:], (0, min(by, values.shape[1])))


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of the values where the mask says so."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
