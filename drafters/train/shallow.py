"""Training of a shallow draft (quickdraft.export.heads.shallow) on answers of its own target.

Encoder and target are frozen: the draft reads the same memory and learns what the whole decoder
says about it, mostly its distribution and a little its words (Return of the Encoder, arXiv
2501.16273, has nine parts to one). Sources of a batch are of like length, so that little of it is
filling (arXiv 2503.05931).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.acceptance import chain_tokens_per_step
from quickdraft.drafters.train.data import Corpus
from quickdraft.drafters.train.kinds import DraftTraining, Hear, RequestWithEncoder
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.errors import InputError, OptionError
from quickdraft.export.architectures.seq2seq import build_encoder, build_target
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.torch import TorchMemory, TorchModel
from quickdraft.export.heads.shallow import ShallowSettings, own_weights, shallow_part
from quickdraft.export.trained import TargetWithEncoder
from quickdraft.export.weights import dense_weight

CHAIN = 4
_HELD_OUT_BATCHES = 16
_ALIKE = 16
"""Batches that are cut from sources sorted by length."""


@dataclass(frozen=True)
class ShallowOptions:
    """How to make and train a draft.

    layers: of the target's decoder it begins as, numbers between commas; `auto` are the first and
    the last. distil: share of the target's distribution in what is learnt, against its words. rows:
    answers of a batch. length: longest source, answer_length: longest answer; more is cut off.
    dtype: of what is not trained, and of all products.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "distil": (0.0, 1.0),
        "rows": (1, 1024),
        "length": (8, 1 << 16),
        "answer_length": (2, 1 << 16),
        "dtype": ("auto", "float32", "bfloat16"),
    }
    layers: str = "auto"
    distil: float = 0.9
    rows: int = 8
    length: int = 512
    answer_length: int = 128
    dtype: str = "auto"


def prepare_shallow(request: RequestWithEncoder) -> DraftTraining:
    """A draft for an encoder-decoder model; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
        InputError: the answers do not say what they begin with.
    """
    options = checked(ShallowOptions, "shallow", request.options)
    target = request.target
    if not request.training.opening:
        raise InputError(
            "the file of answers does not say what they begin with; make it again with "
            "`quickdraft train generate`"
        )
    settings = ShallowSettings(_layers(options.layers, target.spec.decoder.num_layers))
    module = ShallowModule(target, settings, options, request.device)
    training = Pairs(request.training, options, request.seed, request.hear)
    held_out = Pairs(request.held_out, options, 0, request.hear)
    return DraftTraining(
        ShallowTrainee(module, training, held_out),
        asdict(options),
        {"layers": list(settings.layers), "name": settings.name},
        module.tensors,
        f"layers {settings.layers} of the target: {options.distil:g} KL + {1 - options.distil:g} "
        "CE on its answers, over its memory",
        _loop,
    )


def _loop(**given: Any) -> LoopOptions:
    return LoopOptions(**{"rate": 5e-4, "decay": 0.01, "warm_up": 0.04, **given})


def _layers(given: str, count: int) -> tuple[int, ...]:
    if given == "auto":
        return tuple(sorted({0, count - 1})) if count > 2 else (0,)
    try:
        chosen = tuple(sorted({int(part) for part in given.split(",")}))
    except ValueError:
        chosen = ()
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise OptionError(
            f"layers of drafter shallow is {given!r}; give numbers from 0 to {count - 1} between "
            "commas, or auto"
        )
    return chosen


class Pairs:
    """Batches of sources and answers.

    A batch: `source` int64 [rows, s] and `filled` bool, False where it is filled up, or `features`
    float32 [rows, frames, width]; `tokens` int64 [rows, t], what the decoder reads; `wanted` int64
    [rows, t], what comes next, -1 where no token of the answer does.
    """

    def __init__(
        self, corpus: Corpus, options: ShallowOptions, seed: int, hear: Hear | None = None
    ) -> None:
        """seed: decides which answers share a batch, and the order of batches. hear: see
        RequestWithEncoder."""
        self._rows, self._seed, self._hear = options.rows, seed, hear
        self._sounds = [document.sound for document in corpus.documents]
        opening = list(corpus.opening)
        self._pairs: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        for document in corpus.documents:
            source = document.tokens[: document.answer]
            if len(source) > options.length:  # its end ends sources of the family
                source = np.concatenate([source[: options.length - 1], source[-1:]])
            answer = document.tokens[document.answer :][: options.answer_length]
            read = np.concatenate([opening, answer[:-1]]).astype(np.int64)
            wanted = np.full(len(read), -1, np.int64)
            wanted[len(opening) - 1 :] = answer
            self._pairs.append((source.astype(np.int64), read, wanted))
        self._epoch, self._batches = -1, list[list[int]]()

    def batch(self, number: int) -> Batch:
        """The batch of that number, of an endless stream."""
        epoch, place = divmod(number, -(-len(self._pairs) // self._rows))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._epoch, self._batches = epoch, self._cut(rng.permutation(len(self._pairs)), rng)
        return self._made(self._batches[place])

    def all_batches(self) -> Iterator[Batch]:
        """Every answer once, in one order."""
        for first in range(0, len(self._pairs), self._rows):
            yield self._made(range(len(self._pairs))[first : first + self._rows])

    def _cut(self, order: NDArray[Any], rng: np.random.Generator) -> list[list[int]]:
        """Batches of members whose sources are about as long, or whose answers about sound are."""
        batches: list[list[int]] = []
        for first in range(0, len(order), self._rows * _ALIKE):
            near = order[first : first + self._rows * _ALIKE].tolist()
            near.sort(key=lambda member: tuple(map(len, self._pairs[member])))
            batches += [near[at : at + self._rows] for at in range(0, len(near), self._rows)]
        return [batches[at] for at in rng.permutation(len(batches))]

    def _made(self, members: Sequence[int]) -> Batch:
        source, tokens, wanted = zip(*(self._pairs[member] for member in members), strict=True)
        made = {
            "tokens": _filled_up(tokens, max(map(len, tokens)), 0),
            "wanted": _filled_up(wanted, max(map(len, wanted)), -1),
        }
        sounds = [self._sounds[member] for member in members]
        if self._hear is not None:
            heard = [self._hear(*sound) for sound in sounds if sound is not None]
            return {**made, "features": torch.from_numpy(np.stack(heard))}
        lengths = torch.tensor([len(each) for each in source])
        most = int(lengths.max())
        filled = torch.arange(most)[None] < lengths[:, None]
        return {**made, "source": _filled_up(source, most, 0), "filled": filled}


def _filled_up(rows: Sequence[NDArray[Any]], length: int, value: int) -> Tensor:
    padded = [np.pad(row, (0, length - len(row)), constant_values=value) for row in rows]
    return torch.from_numpy(np.stack(padded))


class ShallowModule(nn.Module):
    """A draft beside its frozen target: a batch to a loss."""

    def __init__(
        self,
        target: TargetWithEncoder,
        settings: ShallowSettings,
        options: ShallowOptions,
        device: torch.device,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"dtype": pick_dtype(device, options.dtype), "device": device}
        spec, weights = target.spec, target.weights
        self.device, self._distil = device, options.distil
        self._encoder = TorchModel(
            lambda ops: build_encoder(ops, spec, weights),
            features=spec.source.width,
            stride=spec.source.stride,
            **given,
        )
        self._target = TorchModel(
            lambda ops: build_target(ops, spec, weights), share=self._encoder, **given
        )
        initial = own_weights(target, settings)
        self._own = {f"{settings.name}.{name}": name for name in initial}
        held = WeightMap({name: dense_weight(name, values) for name, values in initial.items()})
        part = shallow_part(target, settings, held)
        self.draft = TorchModel(
            part.build, train=self._own.__contains__, share=self._target, **given
        )

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over tokens of answers of what they cost; `agree`: how often the draft finds
        likeliest what the target does."""
        asked = batch["wanted"] >= 0
        with torch.no_grad():
            memory = self._remember(batch)
            taught = self._target(batch["tokens"], past=memory, rows=asked).logits.float()
        said = torch.log_softmax(
            self.draft(batch["tokens"], past=memory, rows=asked).logits.float(), -1
        )
        words = nn.functional.nll_loss(said, batch["wanted"][asked])
        cross = -(torch.softmax(taught, -1) * said).sum(-1).mean()
        agree = (said.detach().argmax(-1) == taught.argmax(-1)).float().mean()
        return self._distil * cross + (1 - self._distil) * words, {"agree": agree}

    @torch.no_grad()
    def judge(self, batch: Batch) -> tuple[float, NDArray[np.bool_], NDArray[np.int64]]:
        """What the answers of a batch cost; by token of an answer, whether the draft finds it
        likeliest, and the row of the batch it belongs to."""
        batch = {name: values.to(self.device) for name, values in batch.items()}
        asked, memory = batch["wanted"] >= 0, self._remember(batch)
        logits = self.draft(batch["tokens"], past=memory, rows=asked).logits.float()
        loss = nn.functional.cross_entropy(logits, batch["wanted"][asked])
        hits = logits.argmax(-1) == batch["wanted"][asked]
        return float(loss), hits.cpu().numpy(), asked.nonzero()[:, 0].cpu().numpy()

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        return {self._own[name]: values for name, values in self.draft.trained_arrays().items()}

    def _remember(self, batch: Batch) -> TorchMemory:
        if "features" in batch:
            return TorchMemory.of(self._encoder(features=batch["features"]).staged)
        filled = batch["filled"]
        seen = filled[:, None].expand(-1, filled.shape[1], -1)
        return TorchMemory.of(self._encoder(batch["source"], mask=seen).staged, filled)


class ShallowTrainee:
    """The draft with its data; see drafters.train.loop.Trainee."""

    def __init__(self, module: ShallowModule, training: Pairs, held_out: Pairs) -> None:
        self.module: ShallowModule = module
        self._training, self._held_out = training, held_out

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self._training.batch(number)

    def evaluate(self) -> Mapping[str, float]:
        """On held-out answers. loss: cross entropy of what the target said. accepted: how often
        the likeliest token is that. tokens_per_step: what chains of `CHAIN` bring, the target's own
        token among them."""
        losses, hits, answers, first = [], [], [], 0
        for number, batch in enumerate(self._held_out.all_batches()):
            if number == _HELD_OUT_BATCHES:
                break
            loss, right, rows = self.module.judge(batch)
            losses.append(loss)
            hits.append(right)
            answers.append(first + rows)
            first += len(batch["tokens"])
        all_hits = np.concatenate(hits)
        return {
            "loss": float(np.mean(losses)),
            "accepted": float(all_hits.mean()),
            "tokens_per_step": chain_tokens_per_step(all_hits, np.concatenate(answers), CHAIN),
        }
