"""Training of the nested draft (quickdraft.export.heads.nested).

Sorted fine-tuning (Kavehzadeh et al., S2D, arXiv 2407.01955): the plain average of the cross
entropies at all exits, on answers of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.drafters.options import checked
from quickdraft.drafters.train.acceptance import chain_tokens_per_step
from quickdraft.drafters.train.compact import CHAIN, HELD_OUT_TOKENS, initial_weights
from quickdraft.drafters.train.data import Packed, document_mask
from quickdraft.drafters.train.kinds import DraftTraining, Request
from quickdraft.drafters.train.loop import Batch, LoopOptions, pick_dtype
from quickdraft.errors import OptionError
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.heads.compact import CompactSettings
from quickdraft.export.heads.nested import KIND, STATE, NestedSettings, nested_parts
from quickdraft.export.heads.parts import as_weights


@dataclass(frozen=True)
class NestedOptions:
    """How to make and train a nested draft.

    exits: numbers of layers, rising, between commas. width, head_dim: of its decoder. mlp_width: 0
    for three times the width. window: tokens that a layer sees. vocab_size: tokens it can draft,
    the commonest of the answers. sure: probability above which an evaluation asks no later exit.
    rows, length: of a batch. dtype: of all products.
    """

    LIMITS: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "width": (32, 2048),
        "head_dim": (32, 256),
        "mlp_width": (0, 1 << 14),
        "window": (8, 8192),
        "vocab_size": (2, 1 << 20),
        "sure": (0.0, 1.0),
        "rows": (1, 1024),
        "length": (8, 8192),
        "dtype": ("auto", "float32", "bfloat16"),
    }
    exits: str = "1,2,4"
    width: int = 256
    head_dim: int = 64
    mlp_width: int = 0
    window: int = 256
    vocab_size: int = 8192
    sure: float = 0.5
    rows: int = 8
    length: int = 512
    dtype: str = "auto"

    def settings(self, request: Request) -> NestedSettings:
        """Of the trained file.

        Raises:
            OptionError: exits are no rising numbers of layers.
        """
        try:
            exits = [int(part) for part in self.exits.split(",")]
        except ValueError:
            exits = []
        if not exits or exits != sorted(set(exits)) or not 1 <= exits[0] <= exits[-1] <= 16:
            raise OptionError(
                f"exits of drafter nested is {self.exits!r}; give rising numbers of layers from 1 "
                "to 16 between commas, such as 1,2,4"
            )
        heads = max(self.width // self.head_dim, 1)
        shape = CompactSettings(
            layers=exits[-1],
            width=self.width,
            heads=heads,
            kv_heads=heads // 2 if heads % 2 == 0 else heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width or 3 * self.width,
            window=self.window,
            vocab_size=min(self.vocab_size, request.target.spec.vocab_size),
            name=KIND,
        )
        return NestedSettings(tuple(exits), shape)


def prepare_nested(request: Request) -> DraftTraining:
    """A nested draft for a target; see drafters.train.kinds.Prepare.

    Raises:
        OptionError: an option is unknown or has a bad value.
    """
    options = checked(NestedOptions, KIND, request.options)
    settings = options.settings(request)
    tokens = request.training.commonest(settings.shape.vocab_size)
    module = NestedModule(request, settings, options, tokens)
    held_out = Packed(request.held_out, options.rows, options.length)
    training = Packed(request.training, options.rows, options.length, request.seed)
    return DraftTraining(
        NestedTrainee(module, training, held_out, options.sure),
        asdict(options),
        settings.values(),
        module.tensors,
        f"S2D, sorted fine-tuning of exits after {options.exits} layers",
        _loop,
    )


def _loop(**given: Any) -> LoopOptions:
    return LoopOptions(**{"rate": 2e-3, "decay": 0.05, "warm_up": 0.04, **given})


class NestedTrainee:
    """The draft with its data; see drafters.train.loop.Trainee."""

    def __init__(
        self, module: NestedModule, training: Packed, held_out: Packed, sure: float
    ) -> None:
        self.module: NestedModule = module
        self._training, self._held_out, self._sure = training, held_out, sure

    def batch(self, number: int) -> Batch:
        """The batch of that number."""
        return self._training.batch(number)

    def evaluate(self) -> Mapping[str, float]:
        """On held-out answers. loss.N, accepted.N: of exit N, its cross entropy and how often its
        likeliest token is what the target said. accepted, tokens_per_step: of what is drafted where
        later exits are asked only if earlier ones are not sure, in chains of `CHAIN`; layers: how
        many are run for that on average."""
        found: list[dict[str, NDArray[Any]]] = []
        first = 0
        for batch in self._held_out.all_batches():
            if first >= HELD_OUT_TOKENS:
                break
            judged = self.module.judge(batch, self._sure)
            answer = batch["answer"].numpy()
            rows = first + np.arange(len(answer))[:, None] * answer.shape[1]
            judged["documents"] = rows + batch["documents"].numpy()
            found.append({name: values[answer] for name, values in judged.items()})
            first += answer.size
        whole = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        hits, documents = whole.pop("hits"), whole.pop("documents")
        return {
            **{name: float(values[values >= 0].mean()) for name, values in whole.items()},
            "accepted": float(hits.mean()),
            "tokens_per_step": chain_tokens_per_step(hits, documents, CHAIN),
        }


class NestedModule(nn.Module):
    """A batch to a loss."""

    def __init__(
        self,
        request: Request,
        settings: NestedSettings,
        options: NestedOptions,
        tokens: NDArray[np.int32],
    ) -> None:
        super().__init__()
        target, self.device = request.target, request.device
        shape, self._exits, self._tokens = settings.shape, settings.exits, tokens
        initial = initial_weights(target, shape, tokens, request.seed)
        self._own = {f"{shape.name}.{name}": name for name in initial}
        self._models = nn.ModuleList()
        share: TorchModel | None = None
        for part in nested_parts(target, settings, as_weights(initial)):
            held = share
            share = TorchModel(
                part.build,
                features=part.features,
                train=lambda name, held=held: (  # type: ignore[misc]
                    name in self._own and (held is None or held.find(name) is None)
                ),
                dtype=pick_dtype(self.device, options.dtype),
                device=self.device,
                share=held,
            )
            self._models.append(share)
        places = torch.full((target.spec.vocab_size,), -1)
        places[torch.from_numpy(tokens).long()] = torch.arange(len(tokens))
        self.register_buffer("_places", places.to(self.device), persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The average of what tokens of answers cost at every exit, and `accepted.N`: how often the
        likeliest token of exit N is that of the answer, among those it can draft."""
        asked, wanted = self._asked(batch)
        costs, figures = [], {}
        for number, logits in enumerate(self._exits_of(batch), 1):
            said = torch.log_softmax(logits[asked].float(), -1)
            costs.append(nn.functional.nll_loss(said, wanted, reduction="sum"))
            hits = said.detach().argmax(-1) == wanted
            figures[f"accepted.{number}"] = hits.sum() / asked.sum().clamp(min=1)
        return torch.stack(costs).mean() / asked.sum().clamp(min=1), figures

    @torch.no_grad()
    def judge(self, batch: Batch, sure: float) -> dict[str, NDArray[Any]]:
        """[rows, length], by the token that is said: `loss.N` (-1 where it cannot be drafted),
        `accepted.N`, `layers` and `hits`, of the first exit that is sure."""
        moved = {name: values.to(self.device) for name, values in batch.items()}
        wanted = self._places[nn.functional.pad(moved["tokens"][:, 1:], (0, 1))]
        found: dict[str, Tensor] = {}
        open_still = torch.ones_like(wanted, dtype=torch.bool)
        hits, layers = torch.zeros_like(open_still), torch.zeros_like(wanted)
        for number, (end, logits) in enumerate(
            zip(self._exits, self._exits_of(moved), strict=True), 1
        ):
            said = torch.log_softmax(logits.float(), -1)
            chance, best = said.max(-1)
            cost = -said.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
            found[f"loss.{number}"] = torch.where(wanted >= 0, cost, -1.0)
            right = best == wanted
            found[f"accepted.{number}"] = right.float()
            hits, layers = (
                torch.where(open_still, right, hits),
                torch.where(open_still, end, layers),
            )
            open_still = open_still & (chance.exp() <= sure)
        found |= {"layers": layers.float(), "hits": hits}
        # Row t says token t + 1.
        return {k: nn.functional.pad(v[:, :-1], (1, 0)).cpu().numpy() for k, v in found.items()}

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """What it has learnt, for a trained file."""
        learnt = {
            self._own[name]: values
            for model in self._models
            for name, values in model.trained_arrays().items()
        }
        return {**learnt, "tokens": self._tokens}

    def _exits_of(self, batch: Batch) -> list[Tensor]:
        """Logits [rows, length, vocabulary of the draft] of every exit."""
        mask, stream, every = document_mask(batch["documents"]), None, []
        for model in self._models:
            output = model(
                batch["tokens"],
                positions=batch["positions"],
                mask=mask,
                features=stream,
                hidden_states=(STATE,),
            )
            stream = output.hidden_states[STATE]
            every.append(output.logits)
        return every

    def _asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows whose next token belongs to an answer and is known to the draft: bool [rows,
        length]; and these tokens, by the draft's numbers."""
        places = self._places[batch["tokens"]]
        asked = torch.zeros_like(batch["answer"])
        same = batch["documents"][:, 1:] == batch["documents"][:, :-1]
        asked[:, :-1] = same & batch["answer"][:, 1:] & (places[:, 1:] >= 0)
        return asked, places[:, 1:][asked[:, :-1]]
