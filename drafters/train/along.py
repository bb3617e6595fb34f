"""Training of heads that read the target's states along (drafters.following): what is the same.

As EAGLE-3 does (Li et al., arXiv 2503.01840), a head learns the target's distribution as it will be
used: after the step that reads the target's hidden states come more that read what the head itself
has ("training-time test"), each seeing the keys of the ones before it at its own place. Only words
of answers count. Ours: later steps run only where they count. On request the head's state is also
held against the target's, as in EAGLE (arXiv 2401.15077), both normed as the head reads them.
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

from quickdraft.drafters.train.data import Packed, document_mask
from quickdraft.drafters.train.judged import JudgedTrainee
from quickdraft.drafters.train.kinds import Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.heads.parts import trimmed_head

_HELD_OUT_ROWS = 32
"""Rows of held-out text that an evaluation reads."""


@dataclass(frozen=True)
class AlongOptions:
    """How to make and train a head.

    mlp_width: inner width of its MLP, 0 for the target's. vocab_size: tokens it can draft, the
    commonest of the answers. later: weight of each step against the one before. prompts: whether
    words of prompts count, too. noise: how far the target's states are moved at random, as a share
    of themselves. rows, length: of a batch. dtype: of what is not trained, and of all products.
    keep: megabytes for hidden states of the target, on the CPU.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mlp_width": (0, 1 << 16),
        "vocab_size": (2, 1 << 20),
        "later": (0.01, 1.0),
        "noise": (0.0, 1.0),
        "rows": (1, 256),
        "length": (32, 8192),
        "dtype": ("auto", "float32", "bfloat16"),
        "keep": (0, 1 << 20),
    }
    mlp_width: int = 0
    vocab_size: int = 8192
    later: float = 0.8
    prompts: bool = True
    noise: float = 0.1
    rows: int = 4
    length: int = 384
    dtype: str = "auto"
    keep: int = 4096

    @property
    def steps(self) -> int:
        """Tokens that are said from one row of the target, one after another."""
        raise NotImplementedError

    @property
    def alignment(self) -> float:
        """Weight of the distance of the head's states from the target's."""
        return 0.0

    def shape(self, request: Request) -> dict[str, Any]:
        """What a trained file says of this: `mlp_width` and `vocab_size`."""
        spec = request.target.spec
        return {
            "mlp_width": self.mlp_width or spec.layers[-1].mlp_width,
            "vocab_size": min(self.vocab_size, spec.vocab_size),
        }

    def states(self, request: Request, layers: Sequence[int]) -> TargetStates:
        """Of the target that is learnt from."""
        device = request.device
        keep = self.keep if device.type == "cpu" else 0
        dtype = pick_dtype(device, self.dtype)
        return TargetStates(request.target, layers, device, dtype, keep)


def along_loop(**given: Any) -> LoopOptions:
    """How heads are trained where the user says nothing else."""
    return LoopOptions(
        **{"rate": 1.5e-3, "clip": 0.5, "warm_up": 0.04, "decay": 0.1, "evaluations": 6, **given}
    )


class Said(NamedTuple):
    """Of one step: logits [b, m, vocabulary], and, where the head has a state of its own to be held
    against the target's stream at the token it has read or said, that: [b, m, hidden]."""

    logits: Tensor
    state: Tensor | None = None


class AlongModule(nn.Module, ABC):
    """A head beside its frozen target: a batch to a loss."""

    def __init__(
        self,
        request: Request,
        parts: Sequence[Part],
        initial: Mapping[str, NDArray[Any]],
        states: TargetStates,
        options: AlongOptions,
        name: str,
    ) -> None:
        """parts: the graphs of the head, whose name is `name`; the last one puts out tokens.
        initial: what they are trained from."""
        super().__init__()
        target, tokens = request.target, initial["tokens"]
        self._own = {f"{name}.{key}": key for key in initial}
        self._layers: tuple[int, ...] = tuple(parts[-1].details["hidden_states"])
        self.models = nn.ModuleList(
            TorchModel(
                part.build,
                features=part.features,
                train=self._own.__contains__,
                dtype=states.dtype,
                device=states.device,
                share=states.model,
            )
            for part in parts
        )
        head = trimmed_head(target.weights.head, tokens.astype(np.int64), name)
        self.teacher = states.output(replace(target.weights, head=head), self.head)
        self._all = states.output()
        self._states, self._options = states, options
        self._tokens: NDArray[np.int32] = tokens
        self._hidden = target.spec.hidden_size
        self._judged: dict[bytes, Tensor] = {}

    @property
    def head(self) -> Any:
        """The graph that puts out tokens."""
        return self.models[-1]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._states.device

    @abstractmethod
    def say(self, run: Run, told: Mapping[int, Tensor]) -> Iterator[Said]:
        """What is said from the rows that count, as many tokens as `options.steps`, one after
        another; step s is taught by row `run.ahead(s)` of the target.

        told: the streams of the target that the head may read, by layer.
        """

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of the steps' cross entropies, and by step how often the likeliest
        tokens agree."""
        if self._options.prompts:
            batch = {**batch, "answer": batch["documents"] > 0}
        run, every = self.steps_of(batch, self._options.noise)
        loss, weights, figures = torch.zeros((), device=run.device), 0.0, {}
        with torch.no_grad():
            # Row j of these is the target after token j.
            taught = self.teacher(features=run.states[self._states.last]).logits
        for step, said in enumerate(every):
            wanted, mask = taught[run.sequence, run.ahead(step)], run.counts[step]
            chances = torch.log_softmax(said.logits.float(), -1)
            cost = -(torch.softmax(wanted.float(), -1) * chances).sum(-1)
            if self._options.alignment and said.state is not None:
                cost = cost + self._options.alignment * self._distance(run, step, said.state)
            weight = self._options.later**step
            loss = loss + weight * mean(cost, mask)
            weights += weight
            agree = (chances.argmax(-1) == wanted.argmax(-1)).float()
            figures[f"agree.{step + 1}"] = mean(agree.detach(), mask)
        return loss / weights, figures

    def judge(self, batch: Batch) -> tuple[int, dict[str, float]]:
        """Words that count in a batch, and the figures of an evaluation over them."""
        device = self.device
        run, every = self.steps_of({name: values.to(device) for name, values in batch.items()})
        best = self._best(run)
        own = torch.as_tensor(self._tokens, device=device).long()
        right, brought = run.counts[0].float(), run.counts[0].float()
        figures = {}
        for step, each in enumerate(every):
            said = own[each.logits.argmax(-1)]
            agree = (said == best[run.sequence, run.ahead(step)]).float()
            figures[f"agree.{step + 1}"] = float(mean(agree, run.counts[step]))
            right = right * (said == run.tokens[step + 1]).float() * run.counts[step]
            brought = brought + right
        figures["tokens_per_step"] = float(mean(brought, run.counts[0]))
        return int(run.counts[0].sum()), figures

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        learnt = {
            self._own[name]: values
            for model in self.models
            for name, values in model.trained_arrays().items()
        }
        return {**learnt, "tokens": self._tokens}

    def steps_of(self, batch: Batch, noise: float = 0.0) -> tuple[Run, Iterator[Said]]:
        """The rows that count, and what is said from them, one step after another."""
        run = Run(batch, self._states(batch), self._options.steps)
        told = run.states
        if noise:
            told = {k: v * (1 + noise * torch.randn_like(v)) for k, v in sorted(told.items())}
        return run, self.say(run, told)

    def _distance(self, run: Run, step: int, state: Tensor) -> Tensor:
        """[b, m]: how far states are from the target's, both normed."""
        stream = run.states[self._states.last][run.sequence, run.ahead(step)]
        width = stream.shape[-1:]
        pair = (nn.functional.layer_norm(x.float(), width) for x in (state, stream))
        return nn.functional.smooth_l1_loss(*pair, reduction="none").mean(-1)

    def _best(self, run: Run) -> Tensor:
        """int64 [b, s]: what the target finds likeliest after a token, where that is asked. It
        stays the same, so it is found once."""
        key = run.all_tokens.cpu().numpy().tobytes()
        if key not in self._judged:
            asked = torch.zeros_like(run.all_tokens, dtype=torch.bool)
            for step in range(self._options.steps):
                asked[run.sequence, run.ahead(step)] = True
            best = torch.zeros_like(run.all_tokens)
            stream = run.states[self._states.last][asked]
            best[asked] = self._all(features=stream[None]).logits[0].float().argmax(-1)
            self._judged[key] = best
        return self._judged[key]


def along_trainee(
    module: AlongModule, request: Request, options: AlongOptions, training: Packed | None = None
) -> JudgedTrainee:
    """A head with its data. training: packed already, None to pack it."""
    packed = training or packed_training(request, options)
    held_out = Packed(request.held_out, options.rows, options.length)
    return JudgedTrainee(module, module, packed, held_out, _HELD_OUT_ROWS)


def packed_training(request: Request, options: AlongOptions) -> Packed:
    """The text that is learnt from."""
    return Packed(request.training, options.rows, options.length, request.seed)


class Run:
    """The rows of a batch that count, with what each step needs of them.

    Row t of the head reads the target at token t and, at step s, token t + 1 + s; it says what
    token t + 2 + s will be. It counts where all of these are in one document and token t + 1 and
    what follows belong to an answer. rows: int64 [b, m], the rows that count at step 0, filled up
    with row 0. counts: bool [b, m] by step. tokens: int64 [b, m] by step, those read, and one more.
    """

    def __init__(self, batch: Batch, states: Mapping[int, Tensor], steps: int) -> None:
        """steps: tokens that are said."""
        self.states, self.all_tokens = states, batch["tokens"]
        self.positions, self.device = batch["positions"], batch["tokens"].device
        self.mask = document_mask(batch["documents"])
        documents, answer = batch["documents"], batch["answer"]

        def holds(step: int) -> Tensor:
            same = (self.shifted(documents, step + 2) == documents) & (documents > 0)
            return same & self.shifted(answer, 1) & self.shifted(answer, step + 2)

        first = holds(0)
        most = max(int(first.sum(1).max()), 1)
        order = torch.argsort((~first).to(torch.int8), dim=1, stable=True)[:, :most]
        valid = first.gather(1, order)
        self.rows = torch.where(valid, order, 0)
        self.counts = [self.taken(holds(step)) & valid for step in range(steps)]
        self.tokens = [self.taken(self.shifted(self.all_tokens, n + 1)) for n in range(steps + 1)]
        self.sequence = torch.arange(len(self.rows), device=self.device)[:, None]

    def shifted(self, values: Tensor, by: int) -> Tensor:
        """values[:, t + by] at t, zeros at the end."""
        return nn.functional.pad(values[:, by:], (0, min(by, values.shape[1])))

    def taken(self, values: Tensor) -> Tensor:
        """The rows that count at step 0, of [b, s, ...]."""
        index = self.rows
        if values.dim() == 3:
            return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
        return values.gather(1, index)

    def ahead(self, step: int) -> Tensor:
        """int64 [b, m]: the row of the target that says what the head shall say."""
        return (self.rows + 1 + step).clamp(max=self.mask.shape[-1] - 1)

    def later_mask(self, step: int) -> Tensor:
        """bool [b, m, s + step * m]: a row sees what its row of step 0 saw, and its own rows of the
        steps since."""
        seen = self.mask[self.sequence, self.rows]
        return torch.cat([seen, *[self.own_blocks(1)] * step], -1)

    def own_blocks(self, block: int) -> Tensor:
        """bool [b, m, m * block]: the `block` rows that belong to a row, of a later step."""
        own = torch.eye(self.rows.shape[1], dtype=torch.bool, device=self.device)
        return own.repeat_interleave(block, 1).expand(len(self.rows), -1, -1)

    def within_blocks(self, block: int) -> Tensor:
        """bool [b, m * block, m * block]: the rows of one's own block up to oneself."""
        own = self.own_blocks(block).repeat_interleave(block, 1)
        return own.tril()


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of the values where the mask says so."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
