"""Training of the head that drafts from hidden states (quickdraft.export.heads.eagle).

After EAGLE-3 (Li et al., arXiv 2503.01840): the head learns the target's distribution, not its
features, and learns it as it will be used: after the step that reads the target's hidden states
come more that read its own ("training-time test"), each seeing the keys of the ones before it at
its own place. Only words of answers count. Ours: later steps run only where they count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.data import Packed, document_mask
from quickdraft.drafters.train.judged import JudgedTrainee
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.errors import OptionError
from quickdraft.export.emitters.torch import Past, TorchModel
from quickdraft.export.heads.eagle import (
    KIND,
    EagleSettings,
    as_weights,
    eagle_part,
    initial_weights,
    output_rows,
)
from quickdraft.export.trained import Target, read_trained

_HELD_OUT_ROWS = 32
"""Rows of held-out text that an evaluation reads."""


@dataclass(frozen=True)
class EagleOptions:
    """How to make and train a head.

    hidden_states: streams of the target it reads, numbers of layers between commas; `auto` are one
    in the middle, one late and the last. mlp_width: inner width of its MLP, 0 for the target's.
    vocab_size: tokens it can draft, the commonest of the answers. sampling_width: of FSPAD's
    feature sampling, 0 for none. test_steps: steps of training that read its own states; later:
    weight of each step against the one before. prompts: whether words of prompts count, too. noise:
    how far the target's states are moved at random, as a share of themselves. rows, length: of a
    batch. dtype: of what is not trained, and of all products. keep: megabytes for hidden states of
    the target, on the CPU. start: a trained head of the same shape to go on from.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mlp_width": (0, 1 << 16),
        "vocab_size": (2, 1 << 20),
        "sampling_width": (0, 1 << 16),
        "test_steps": (0, 6),
        "later": (0.01, 1.0),
        "noise": (0.0, 1.0),
        "rows": (1, 256),
        "length": (32, 8192),
        "dtype": ("auto", "float32", "bfloat16"),
        "keep": (0, 1 << 20),
    }
    hidden_states: str = "auto"
    mlp_width: int = 0
    vocab_size: int = 8192
    sampling_width: int = 0
    test_steps: int = 2
    later: float = 0.8
    prompts: bool = True
    noise: float = 0.1
    rows: int = 4
    length: int = 384
    dtype: str = "auto"
    keep: int = 4096
    start: str = ""


def prepare_eagle(request: Request) -> DraftTraining:
    """A head for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(EagleOptions, "eagle", request.options)
    target = request.target
    settings = EagleSettings(
        hidden_states=_streams(options.hidden_states, len(target.spec.layers)),
        mlp_width=options.mlp_width or target.spec.layers[-1].mlp_width,
        vocab_size=min(options.vocab_size, target.spec.vocab_size),
        sampling_width=options.sampling_width,
    )
    device, dtype = request.device, pick_dtype(request.device, options.dtype)
    keep = options.keep if device.type == "cpu" else 0
    states = TargetStates(target, settings.hidden_states, device, dtype, keep)
    training = Packed(request.training, options.rows, options.length, request.seed)
    if options.start:
        initial = _weights_of(Path(options.start), settings)
    else:
        tokens = request.training.commonest(settings.vocab_size)
        spread = spread_of(states, settings.hidden_states, training.batch(0))
        initial = initial_weights(target, settings, tokens, request.seed, spread)
    module = EagleModule(target, settings, initial, states, options)
    held_out = Packed(request.held_out, options.rows, options.length)
    trainee = JudgedTrainee(module, module, training, held_out, _HELD_OUT_ROWS)
    return DraftTraining(
        trainee,
        asdict(options),
        {**asdict(settings), "hidden_states": list(settings.hidden_states)},
        module.tensors,
        f"EAGLE-3 head, {options.test_steps + 1} steps of training-time test, {dtype}",
        _loop,
    )


def spread_of(states: TargetStates, layers: Sequence[int], batch: Batch) -> NDArray[np.float32]:
    """How far each value of a normed stream lies from 0: float32 [streams, hidden]."""
    found = states({name: values.to(states.device) for name, values in batch.items()})
    text = batch["documents"].to(states.device) > 0
    each = []
    for layer in layers:
        stream = found[layer][text].float()
        normed = nn.functional.layer_norm(stream, stream.shape[-1:])
        each.append(normed.pow(2).mean(0).sqrt().cpu().numpy())
    return np.stack(each)


def _weights_of(file: Path, settings: EagleSettings) -> dict[str, NDArray[Any]]:
    """What a trained head learnt, and the tokens it drafts.

    Raises:
        OptionError: it is no head of these settings.
    """
    trained = read_trained(file)
    held = {**trained.settings, "name": settings.name}
    if trained.kind != KIND or held != {
        **asdict(settings),
        "hidden_states": [*settings.hidden_states],
    }:
        raise OptionError(
            f"start of drafter eagle is {file.name}, which is no head of the same shape; give the "
            "options that it was trained with, or leave start out"
        )
    weights = {name: weight.dense() for name, weight in trained.weights.items()}
    return {**weights, "tokens": weights["tokens"].astype(np.int32)}


def _loop(**given: Any) -> LoopOptions:
    return LoopOptions(
        **{"rate": 1.5e-3, "clip": 0.5, "warm_up": 0.04, "decay": 0.1, "evaluations": 6, **given}
    )


class EagleModule(nn.Module):
    """A head beside its frozen target: a batch to a loss."""

    def __init__(
        self,
        target: Target,
        settings: EagleSettings,
        initial: Mapping[str, NDArray[Any]],
        states: TargetStates,
        options: EagleOptions,
    ) -> None:
        super().__init__()
        tokens: NDArray[np.int32] = initial["tokens"]
        part = eagle_part(target, settings, as_weights(initial))
        own = {f"{settings.name}.{name}": name for name in initial}
        self.head = TorchModel(
            part.build,
            features=part.features,
            train=own.__contains__,
            dtype=states.dtype,
            device=states.device,
            share=states.model,
        )
        trimmed = replace(target.weights, head=output_rows(target, tokens, settings.name))
        self.teacher = states.output(trimmed, self.head)
        self._all = states.output()
        self._states, self._settings, self._options = states, settings, options
        self._own, self._tokens = own, tokens
        self._hidden = target.spec.hidden_size
        self._judged: dict[bytes, Tensor] = {}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of the steps' cross entropies, and by step how often the likeliest
        tokens agree."""
        if self._options.prompts:
            batch = {**batch, "answer": batch["documents"] > 0}
        run, _, every = self.steps_of(batch, self._options.noise)
        loss, weights, figures = torch.zeros((), device=run.device), 0.0, {}
        with torch.no_grad():
            # Row j of these is the target after token j.
            taught = self.teacher(features=run.states[self._states.last]).logits
        for step, logits in enumerate(every):
            wanted, mask = taught[run.sequence, run.ahead(step)], run.counts[step]
            said = torch.log_softmax(logits.float(), -1)
            cross = -(torch.softmax(wanted.float(), -1) * said).sum(-1)
            weight = self._options.later**step
            loss = loss + weight * _mean(cross, mask)
            weights += weight
            agree = (said.argmax(-1) == wanted.argmax(-1)).float()
            figures[f"agree.{step + 1}"] = _mean(agree.detach(), mask)
        return loss / weights, figures

    def judge(self, batch: Batch) -> tuple[int, dict[str, float]]:
        """Words that count in a batch, and the figures of an evaluation over them."""
        device = self.device
        run, _, every = self.steps_of({name: values.to(device) for name, values in batch.items()})
        best = self._best(run)
        own = torch.as_tensor(self._tokens, device=device).long()
        right, brought = run.counts[0].float(), run.counts[0].float()
        figures = {}
        for step, logits in enumerate(every):
            said = own[logits.argmax(-1)]
            agree = (said == best[run.sequence, run.ahead(step)]).float()
            figures[f"agree.{step + 1}"] = float(_mean(agree, run.counts[step]))
            right = right * (said == run.tokens[step + 1]).float() * run.counts[step]
            brought = brought + right
        figures["tokens_per_step"] = float(_mean(brought, run.counts[0]))
        return int(run.counts[0].sum()), figures

    def _best(self, run: _Run) -> Tensor:
        """int64 [b, s]: what the target finds likeliest after a token, where that is asked. It
        stays the same, so it is found once."""
        key = run.all_tokens.cpu().numpy().tobytes()
        if key not in self._judged:
            asked = torch.zeros_like(run.all_tokens, dtype=torch.bool)
            for step in range(self._options.test_steps + 1):
                asked[run.sequence, run.ahead(step)] = True
            best = torch.zeros_like(run.all_tokens)
            stream = run.states[self._states.last][asked]
            best[asked] = self._all(features=stream[None]).logits[0].float().argmax(-1)
            self._judged[key] = best
        return self._judged[key]

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        learnt = {self._own[name]: values for name, values in self.head.trained_arrays().items()}
        return {**learnt, "tokens": self._tokens}

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.head.parameters()).device

    def steps_of(self, batch: Batch, noise: float = 0.0) -> tuple[_Run, Tensor, Iterator[Tensor]]:
        """The rows that count; the target's states that the head reads, [b, s, width]; and logits
        [b, m, vocabulary] of one step after another."""
        run = _Run(batch, self._states(batch), self._options.test_steps)
        told = torch.cat([run.states[layer] for layer in self._settings.hidden_states], -1)
        if noise:
            told = told * (1 + noise * torch.randn_like(told))
        return run, told, self._steps(run, told)

    def _steps(self, run: _Run, told: Tensor) -> Iterator[Tensor]:
        blank = told.new_zeros(*told.shape[:2], self._hidden)
        output = self.head(
            run.shifted(run.all_tokens, 1),
            positions=run.positions,
            mask=run.mask,
            features=torch.cat([told, blank], -1),
            rows=run.rows,
            hidden_states=(1,),
        )
        yield output.logits
        past: Past = output.present
        state = run.taken(output.hidden_states[1])
        for step in range(1, self._options.test_steps + 1):
            blank = state.new_zeros(*state.shape[:2], told.shape[-1])
            output = self.head(
                run.tokens[step],
                positions=run.taken(run.positions) + step,
                mask=run.later_mask(step),
                features=torch.cat([blank, state], -1),
                past=past,
                hidden_states=(1,),
            )
            yield output.logits
            past, state = past.join(output.present), output.hidden_states[1]


class _Run:
    """The rows of a batch that count, with what each step needs of them.

    Row t of the head reads the target at token t and, at step s, token t + 1 + s; it says what
    token t + 2 + s will be. It counts where all of these are in one document and token t + 1 and
    what follows belong to an answer. rows: int64 [b, m], the rows that count at step 0, filled up
    with row 0. counts: bool [b, m] by step. tokens: int64 [b, m] by step, those read, and one more.
    """

    def __init__(self, batch: Batch, states: Mapping[int, Tensor], steps: int) -> None:
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
        self.counts = [self.taken(holds(step)) & valid for step in range(steps + 1)]
        self.tokens = [self.taken(self.shifted(self.all_tokens, n + 1)) for n in range(steps + 2)]
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
        own = torch.eye(self.rows.shape[1], dtype=torch.bool, device=self.device)
        return torch.cat([seen, *[own.expand(len(seen), -1, -1)] * step], -1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _streams(given: str, layers: int) -> tuple[int, ...]:
    """Numbers of layers passed, ascending."""
    if given == "auto":
        return tuple(sorted({max(layers // 2, 1), max(layers * 5 // 6, 1), layers}))
    try:
        chosen = sorted({int(part) for part in given.split(",")})
    except ValueError:
        chosen = []
    if not 1 <= len(chosen) <= 4 or chosen[0] < 0 or chosen[-1] > layers:
        raise OptionError(
            f"hidden_states of drafter eagle is {given!r}; give one to four numbers from 0 to "
            f"{layers} between commas, or auto"
        )
    return tuple(chosen)
