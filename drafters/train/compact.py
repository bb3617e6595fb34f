"""Training of the compact draft (quickdraft.export.heads.compact).

After Zafrir et al., FastDraft (arXiv 2411.11055): cross entropy in stages, on people's text, then
on code with text, at last on answers of the target, each going on from the draft of the one before
(`start`). Prompts, which are people's text, count a little. On request the target's distribution is
learnt besides (`distil`): of few answers that says more than their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.acceptance import chain_tokens_per_step
from quickdraft.drafters.train.compact_start import read_start
from quickdraft.drafters.train.data import Corpus, Packed, document_mask
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.drafters.train.target_states import TargetStates
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.heads.compact import CompactSettings, compact_part, tensor_shapes
from quickdraft.export.heads.parts import norm_scale, trimmed_head
from quickdraft.export.trained import Target
from quickdraft.export.weights import dense_weight

Floats = NDArray[np.float32]

CHAIN = 4
"""Length of the chains that the figure of an evaluation is for."""
HELD_OUT_TOKENS = 65_536
"""Most tokens that an evaluation reads."""
_HEAD_DIM = 64


@dataclass(frozen=True)
class CompactOptions:
    """How to make and train a compact draft.

    layers, width, head_dim: of its decoder. mlp_width: 0 for three times the width. window: tokens
    that a layer sees. vocab_size: tokens it can draft, the commonest of the answers.
    prompt_weight: what tokens of prompts count against those of answers. distil: share of the
    target's distribution in what is learnt; above 0, the target has to be run. rows, length: of a
    batch. dtype: of all products. keep: megabytes for hidden states of the target, on the CPU, with
    distil. start: file of a compact draft to go on from; it then decides on the shape.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "layers": (1, 16),
        "width": (32, 2048),
        "head_dim": (32, 256),
        "mlp_width": (0, 1 << 14),
        "window": (8, 8192),
        "vocab_size": (2, 1 << 20),
        "prompt_weight": (0.0, 1.0),
        "distil": (0.0, 1.0),
        "rows": (1, 1024),
        "length": (8, 8192),
        "dtype": ("auto", "float32", "bfloat16"),
        "keep": (0, 1 << 20),
    }
    layers: int = 2
    width: int = 256
    head_dim: int = _HEAD_DIM
    mlp_width: int = 0
    window: int = 256
    vocab_size: int = 8192
    prompt_weight: float = 0.2
    distil: float = 0.0
    rows: int = 8
    length: int = 512
    dtype: str = "auto"
    keep: int = 4096
    start: str = ""


def prepare_compact(request: Request) -> DraftTraining:
    """A compact draft for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(CompactOptions, "compact", request.options)
    start = read_start(Path(options.start), request) if options.start else None
    if start is not None:
        options = replace(options, **start.shape(asdict(options), request.options))
    settings = _settings(options, request.target.spec.vocab_size)
    known = () if start is None else start.tokens.tolist()
    tokens = request.training.commonest(settings.vocab_size, rather=known)
    initial = initial_weights(request.target, settings, tokens, request.seed)
    if start is not None:
        initial = start.weights_in(settings, initial)
    module = CompactModule(request, settings, options, initial)
    held_out = Packed(request.held_out, options.rows, options.length)
    training = Packed(request.training, options.rows, options.length, request.seed)
    learnt = f"{1 - options.distil:g} CE + {options.distil:g} KL" if options.distil else "CE"
    begun = "from scratch" if start is None else f"from {start.facts['recipe']!r}"
    return DraftTraining(
        CompactTrainee(module, training, held_out),
        {**asdict(options), **({} if start is None else {"started": start.facts})},
        asdict(settings),
        module.tensors,
        f"FastDraft, {learnt} on {_data(request.training, options)}, {begun}",
        _loop,
    )


def _settings(options: CompactOptions, vocab_size: int) -> CompactSettings:
    heads = max(options.width // options.head_dim, 1)
    return CompactSettings(
        layers=options.layers,
        width=options.width,
        heads=heads,
        kv_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=options.head_dim,
        mlp_width=options.mlp_width or 3 * options.width,
        window=options.window,
        vocab_size=min(options.vocab_size, vocab_size),
    )


def _data(corpus: Corpus, options: CompactOptions) -> str:
    """What is learnt from."""
    answers = f"answers, prompts count {options.prompt_weight:g}"
    if not corpus.texts:
        return answers
    return "text" if corpus.texts == len(corpus) else f"text and {answers}"


def _loop(**given: Any) -> LoopOptions:
    return LoopOptions(**{"rate": 2e-3, "decay": 0.05, "warm_up": 0.04, **given})


def initial_weights(
    target: Target, settings: CompactSettings, tokens: NDArray[np.int32], seed: int
) -> dict[str, NDArray[Any]]:
    """Weights to train from: the directions in which the target's embeddings differ most, its
    output matrix seen along them, the rest random. tokens: int32 [vocab_size], ascending."""
    rng = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for name, shape in tensor_shapes(target.spec, settings).items():
        made[name] = np.ones(shape, np.float32)
        if len(shape) == 2:
            deep = name.endswith(("output", "down"))
            size = (2.0 * settings.layers) ** -0.5 if deep else 1.0
            values = rng.standard_normal(shape, np.float32)
            made[name] = values * np.float32(0.6 * size / np.sqrt(shape[1]))
    table = target.weights.embedding.dense()
    table = table / np.sqrt((table * table).mean(axis=1, keepdims=True) + 1e-6)
    main = _directions(table, settings.width)
    made["embed"][: len(main)] = main
    head = (target.weights.head.weight.dense()[tokens] * norm_scale(target)) @ main.T
    head /= np.sqrt((head * head).sum(axis=1).mean()) + 1e-6
    made["head"][:, : len(main)] = head
    return {**made, "tokens": np.asarray(tokens, np.int32)}


def _directions(table: Floats, count: int) -> Floats:
    """float32 [at most count, width]: orthonormal directions along which the rows of a table
    [rows, width] differ most."""
    spread = np.zeros((table.shape[1], table.shape[1]))
    for first in range(0, len(table), 8192):
        rows = table[first : first + 8192].astype(np.float64)
        spread += rows.T @ rows
    vectors: Floats = np.linalg.eigh(spread)[1][:, ::-1].T.astype(np.float32)
    return np.ascontiguousarray(vectors[:count])


class CompactTrainee:
    """The draft with its data; see drafters.train.loop.Trainee."""

    def __init__(self, module: CompactModule, training: Packed, held_out: Packed) -> None:
        self.module: CompactModule = module
        self._training = training
        self._held_out = held_out

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self._training.batch(number)

    def evaluate(self) -> Mapping[str, float]:
        """On held-out answers. loss: as in training. accepted: how often the likeliest token is
        what the target said. tokens_per_step: what chains of `CHAIN` bring, the target's own token
        among them. covered: tokens that the draft has in its vocabulary."""
        losses, hits, known, documents, first = [], [], [], [], 0
        for batch in self._held_out.all_batches():
            if first >= HELD_OUT_TOKENS:
                break
            moved = {name: values.to(self.module.device) for name, values in batch.items()}
            judged = self.module.judge(moved)
            losses.append(float(judged.loss))
            answer = batch["answer"].numpy()
            known.append(judged.known.cpu().numpy()[answer])
            hits.append(judged.hits.cpu().numpy()[answer])
            rows = first + np.arange(len(answer))[:, None] * answer.shape[1]
            documents.append((rows + batch["documents"].numpy())[answer])
            first += answer.size
        all_hits = np.concatenate(hits)
        return {
            "loss": float(np.mean(losses)),
            "accepted": float(all_hits.mean()),
            "tokens_per_step": chain_tokens_per_step(all_hits, np.concatenate(documents), CHAIN),
            "covered": float(np.concatenate(known).mean()),
        }


@dataclass(frozen=True)
class Judged:
    """A batch, looked at. hits, known: bool [rows, length]: whether a token is what the draft found
    likeliest after those before it, and whether it can draft it at all."""

    loss: Tensor
    hits: Tensor
    known: Tensor


class CompactModule(nn.Module):
    """A batch to a loss."""

    def __init__(
        self,
        request: Request,
        settings: CompactSettings,
        options: CompactOptions,
        initial: Mapping[str, NDArray[Any]],
    ) -> None:
        """initial: weights to train from, see `initial_weights`."""
        super().__init__()
        tokens: NDArray[np.int32] = initial["tokens"]
        target, self.device = request.target, request.device
        dtype = pick_dtype(self.device, options.dtype)
        weights = {name: dense_weight(name, values) for name, values in initial.items()}
        self._own = {f"{settings.name}.{name}": name for name in initial}
        self.draft = TorchModel(
            compact_part(target, settings, WeightMap(weights)).build,
            train=self._own.__contains__,
            dtype=dtype,
            device=self.device,
        )
        self._options, self._tokens = options, tokens
        places = torch.full((target.spec.vocab_size,), -1)
        places[torch.from_numpy(tokens).long()] = torch.arange(len(tokens))
        self.register_buffer("_places", places.to(self.device), persistent=False)
        self._states: TargetStates | None = None
        if options.distil:
            keep = options.keep if self.device.type == "cpu" else 0
            self._states = TargetStates(target, (), self.device, dtype, keep)
            head = trimmed_head(target.weights.head, tokens.astype(np.int64), settings.name)
            self._teacher = self._states.output(replace(target.weights, head=head))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean of what tokens of answers and prompts cost, and `accepted`: how often
        the likeliest token is that of the answer, among those it can draft."""
        asked, wanted, answer = self._asked(batch)
        logits = self._logits(batch, asked)
        said = torch.log_softmax(logits.float(), -1)
        cost = nn.functional.nll_loss(said, wanted, reduction="none")
        if self._states is not None:
            share = self._options.distil
            cost = (1 - share) * cost + share * self._divergence(batch, asked, said)
        counts = torch.where(answer, 1.0, self._options.prompt_weight)
        loss = (cost * counts).sum() / counts.sum().clamp(min=1e-6)
        hits = (said.detach().argmax(-1) == wanted) & answer
        return loss, {"accepted": hits.sum() / answer.sum().clamp(min=1)}

    @torch.no_grad()
    def judge(self, batch: Batch) -> Judged:
        """What the draft makes of a batch."""
        asked, wanted, answer = self._asked(batch)
        said = torch.log_softmax(self._logits(batch, asked).float(), -1)
        cost = nn.functional.nll_loss(said, wanted, reduction="none")
        hits = torch.zeros_like(batch["answer"])
        after = torch.zeros_like(asked)
        after[:, 1:] = asked[:, :-1]  # the token after each row that was asked
        hits[after] = said.argmax(-1) == wanted
        known = self._places[batch["tokens"]] >= 0
        return Judged(cost[answer].mean(), hits, known)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        learnt = {self._own[name]: values for name, values in self.draft.trained_arrays().items()}
        return {**learnt, "tokens": self._tokens}

    def _asked(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows have a next token in their document that the draft knows: bool [rows,
        length]. For each of these the next token, by the draft's numbers, and whether it belongs to
        an answer."""
        documents, places = batch["documents"], self._places[batch["tokens"]]
        asked = torch.zeros_like(batch["answer"])
        same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
        asked[:, :-1] = same & (places[:, 1:] >= 0)
        if not self._options.prompt_weight:
            asked[:, :-1] &= batch["answer"][:, 1:]
        return asked, places[:, 1:][asked[:, :-1]], batch["answer"][:, 1:][asked[:, :-1]]

    def _logits(self, batch: Batch, asked: Tensor) -> Tensor:
        """[rows asked, vocabulary of the draft]."""
        mask = document_mask(batch["documents"])
        output = self.draft(batch["tokens"], positions=batch["positions"], mask=mask, rows=asked)
        logits: Tensor = output.logits
        return logits

    def _divergence(self, batch: Batch, asked: Tensor, said: Tensor) -> Tensor:
        """How far what the draft says is from what the target does, of the tokens both know."""
        assert self._states is not None  # asked only then  # noqa: S101
        with torch.no_grad():
            last = self._states(batch)[self._states.last]
            taught = self._teacher(features=last[asked][None]).logits[0].float()
        wanted = torch.log_softmax(taught, -1)
        return (wanted.exp() * (wanted - said)).sum(-1)
