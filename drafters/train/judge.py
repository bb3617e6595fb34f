"""Training of the judge (quickdraft.export.heads.judge), from answers of the target alone.

Judge Decoding (Bachmann et al., arXiv 2501.19309) learns from mistakes that people marked. Ours has
no such marks: in every document one token of the answer is replaced by a wrong one, and the judge
learns to tell it from the tokens before it, which the target said. Wrong ones are common tokens of
answers or, at a rate, tokens that the target knows and finds unlikely there. So it lets pass what
reads like an answer, not what is true. Both kinds count alike, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.along import mean
from quickdraft.drafters.train.data import Packed
from quickdraft.drafters.train.judged import JudgedTrainee
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.heads.judge import KIND, JudgeSettings, initial_weights, judge_part
from quickdraft.export.heads.parts import as_weights

_HELD_OUT_ROWS = 48
_KNOWN = 64
"""Of the target's likeliest tokens, those that it finds unlikely are taken as wrong ones."""


@dataclass(frozen=True)
class JudgeOptions:
    """How to make and train a judge.

    width: of its hidden layer, 0 for none. near: share of wrong tokens that are the target's own;
    unlikely: how probable they are at most. common: of the commonest tokens of answers, how many
    the others come from. rows, length: of a batch. dtype: of the target.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "width": (0, 1 << 12),
        "near": (0.0, 1.0),
        "unlikely": (1e-6, 0.5),
        "common": (2, 1 << 20),
        "rows": (1, 256),
        "length": (32, 8192),
        "dtype": ("auto", "float32", "bfloat16"),
    }
    width: int = 0
    near: float = 0.5
    unlikely: float = 0.01
    common: int = 4096
    rows: int = 4
    length: int = 384
    dtype: str = "auto"


def prepare_judge(request: Request) -> DraftTraining:
    """A judge for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(JudgeOptions, KIND, request.options)
    settings = JudgeSettings(options.width)
    module = JudgeModule(request, settings, options)
    training = Packed(request.training, options.rows, options.length, request.seed)
    held_out = Packed(request.held_out, options.rows, options.length)
    return DraftTraining(
        JudgedTrainee(module, module, training, held_out, _HELD_OUT_ROWS),
        asdict(options),
        asdict(settings),
        module.tensors,
        f"judge, one wrong token a document, {options.near:g} of them the target's own",
        _loop,
    )


def _loop(**given: Any) -> LoopOptions:
    return LoopOptions(**{"rate": 3e-3, "warm_up": 0.05, "decay": 0.01, **given})


class Marked(NamedTuple):
    """A batch with mistakes. tokens: int64 [b, s]. right, wrong: bool [b, s], tokens that count."""

    tokens: Tensor
    right: Tensor
    wrong: Tensor


class JudgeModule(nn.Module):
    """A judge beside its frozen target: a batch to a loss."""

    def __init__(self, request: Request, settings: JudgeSettings, options: JudgeOptions) -> None:
        super().__init__()
        target, self.device = request.target, request.device
        dtype = pick_dtype(self.device, options.dtype)
        # No row comes twice with the same mistakes, so nothing is kept.
        self._states = TargetStates(target, (), self.device, dtype)
        self._output = self._states.output()
        initial = initial_weights(target, settings, request.seed)
        self._own = {f"{settings.name}.{name}": name for name in initial}
        part = judge_part(target, settings, as_weights(initial))
        self._judge = TorchModel(
            part.build,
            features=part.features,
            train=self._own.__contains__,
            device=self.device,
        )
        common = request.training.commonest(options.common)
        self._common = torch.as_tensor(common, device=self.device).long()
        self._options, self._verdicts = options, initial["tokens"]

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of what right and wrong tokens cost; `kept`, right tokens that it lets pass, and
        `caught`, wrong ones that it does not."""
        seeds = torch.randint(1 << 40, (1,))  # the loop's random numbers
        marked = self._mark(batch, int(seeds))
        fine = self._says(batch, marked)
        cost = nn.functional.softplus
        loss = mean(cost(-fine), marked.right) + mean(cost(fine), marked.wrong)
        with torch.no_grad():
            kept = mean((fine > 0).float(), marked.right)
            caught = mean((fine <= 0).float(), marked.wrong)
        return loss / 2, {"kept": kept, "caught": caught}

    def judge(self, batch: Batch) -> tuple[int, dict[str, float]]:
        """Documents with a mistake, and the figures of an evaluation; the mistakes are the same
        every time."""
        moved = {name: values.to(self.device) for name, values in batch.items()}
        told = hashlib.blake2b(batch["tokens"].numpy().tobytes(), digest_size=5).digest()
        marked = self._mark(moved, int.from_bytes(told))
        fine = self._says(moved, marked)
        kept = mean((fine > 0).float(), marked.right)
        caught = mean((fine <= 0).float(), marked.wrong)
        return int(marked.wrong.sum()), {"kept": float(kept), "caught": float(caught)}

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        learnt = {self._own[name]: each for name, each in self._judge.trained_arrays().items()}
        return {**learnt, "tokens": np.asarray(self._verdicts)}

    def _says(self, batch: Batch, marked: Marked) -> Tensor:
        """[b, s]: the logarithm of the odds that a token will do."""
        states = self._states({**batch, "tokens": marked.tokens})[self._states.last]
        logits = self._judge(features=states.float()).logits
        fine: Tensor = logits[..., 1] - logits[..., 0]
        return fine

    @torch.no_grad()
    def _mark(self, batch: Batch, seed: int) -> Marked:
        """Put a wrong token into every document. Only tokens of its answer up to there count."""
        rng = np.random.default_rng(seed)
        documents, answer = batch["documents"].cpu().numpy(), batch["answer"].cpu().numpy()
        right, wrong = np.zeros_like(answer), np.zeros_like(answer)
        for row, numbers in enumerate(documents):
            for number in range(1, int(numbers.max(initial=0)) + 1):
                places = np.flatnonzero((numbers == number) & answer[row])
                if len(places) < 2:
                    continue
                at = int(places[1 + rng.integers(len(places) - 1)])
                wrong[row, at] = True
                right[row, places[places < at]] = True
        spots = torch.from_numpy(wrong).to(self.device)
        tokens = batch["tokens"].clone()
        if spots.any():
            tokens[spots] = self._others(batch, spots, rng)
        return Marked(tokens, torch.from_numpy(right).to(self.device), spots)

    def _others(self, batch: Batch, spots: Tensor, rng: np.random.Generator) -> Tensor:
        """int64 [wrong tokens]: what stands there instead."""
        said = batch["tokens"][spots]
        count = len(said)
        near = torch.from_numpy(rng.random(count) < self._options.near).to(self.device)
        drawn = torch.from_numpy(rng.integers(len(self._common), size=count)).to(self.device)
        others = self._common[drawn]
        again = self._common[(drawn + 1) % len(self._common)]
        others = torch.where(others == said, again, others)
        before = nn.functional.pad(spots[:, 1:], (0, 1))  # the rows that chose these tokens
        states = self._states(batch)[self._states.last][before]
        law = torch.softmax(self._output(features=states[None]).logits[0].float(), -1)
        chances, ids = law.topk(min(_KNOWN, law.shape[-1]), -1)
        unlikely = (chances < self._options.unlikely) & (ids != said[:, None])
        order = torch.from_numpy(rng.random(ids.shape)).to(self.device) * unlikely
        best = order.argmax(-1, keepdim=True)
        usable = near & unlikely.any(-1)
        return torch.where(usable, ids.gather(1, best)[:, 0], others)
