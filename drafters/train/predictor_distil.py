"""Training a predictor of the KV cache by gradient, from a fit or the target's own projections.

Losses of Horton et al. 2024, arXiv 2410.08391, section 3.3: that of the target on the predicted
cache, that of the auxiliary as a model of its own, and the distance of the predicted cache from the
true one, averaged over layers. Ours: the target reads what follows the prefix exactly, as it will
when it answers, and is also asked to stay near what it says after the true cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from quickdraft.drafters.train.text import Rows
from quickdraft.export.architectures.decoder import build_decoder
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters.torch import Past, TorchModel
from quickdraft.export.prediction import PredictionSettings, Pruned, read_prediction
from quickdraft.export.predictor_graph import Prediction, build_auxiliary, build_predictor
from quickdraft.export.trained import Target
from quickdraft.export.weights import dense_weight

Tensors = Mapping[str, NDArray[Any]]
_Z = 1e-4
"""Weight of the squared logarithm of the sum of a row's exponentials: keeps logits in bounds."""


@dataclass(frozen=True)
class Losses:
    """What each loss counts. answer: of the target on a predicted prefix. auxiliary: its own.
    cache: mean distance of keys and values, by layer. divergence: from the target on the true
    prefix. The paper has no divergence."""

    answer: float = 1.0
    auxiliary: float = 1.0
    cache: float = 1.0
    divergence: float = 1.0


class Distillation(nn.Module):
    """The target, frozen, on a cache that the predictor writes."""

    def __init__(
        self,
        target: Target,
        prediction: Prediction,
        name: str,
        exact_first: int,
        losses: Losses,
        train_layers: bool,
        place: Mapping[str, Any],
    ) -> None:
        """train_layers: whether weights of the auxiliary are trained, too. place: dtype, device."""
        super().__init__()
        spec, layers = target.spec, target.weights.layers
        self._exact_first, self._losses = exact_first, losses
        own = (f"predictor-{name}.", *([f"auxiliary-{name}."] if train_layers else []))

        def is_ours(weight: str) -> bool:
            return weight.startswith(own)

        # Not a part of this module: nothing of it is trained or kept in a checkpoint.
        self._target = (TorchModel(lambda ops: build_decoder(ops, spec, target.weights), **place),)
        self.predictor = TorchModel(
            lambda ops: build_predictor(ops, prediction, spec, layers),
            train=is_ours,
            share=self._target[0],
            **place,
        )
        # What both have is trained where the predictor has it.
        self.auxiliary = TorchModel(
            lambda ops: build_auxiliary(ops, prediction),
            train=lambda weight: is_ours(weight) and self.predictor.find(weight) is None,
            share=self.predictor,
            **place,
        )

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its parts. tokens: int64 [b, s]; prefix: how many of them are
        predicted."""
        tokens, prefix = batch["tokens"], int(batch["prefix"])
        rest = torch.arange(prefix, tokens.shape[1], device=tokens.device)
        (target,) = self._target
        with torch.no_grad():
            whole = target(tokens, rows=rest, keys=True)
            assert whole.logits is not None  # a target has logits  # noqa: S101
            true = whole.logits[:, :-1].float().log_softmax(-1)
        staged = self.predictor(tokens[:, :prefix]).staged
        first = self._exact_first
        rows, distances = {}, []
        for layer, exact in whole.keys.items():
            found = staged[layer]
            rows[layer] = (
                torch.cat([exact.key[:, :first], found.key[:, first:]], 1),
                torch.cat([exact.value[:, :first], found.value[:, first:]], 1),
            )
            for mine, theirs in ((found.unrotated, exact.unrotated), (found.value, exact.value)):
                distances.append((mine - theirs[:, :prefix])[:, first:].abs().float().mean())
        before = torch.arange(prefix, device=tokens.device)[None]
        after = target(tokens[:, prefix:], past=Past(before, rows))
        wanted = tokens[:, prefix + 1 :]
        answer, answered = _cross_entropy(after.logits, wanted)
        own = self.auxiliary(tokens, rows=rest)
        auxiliary, _ = _cross_entropy(own.logits, wanted)
        cache = torch.stack(distances).sum() / len(whole.keys)
        divergence = (true.exp() * (true - answered)).sum(-1).mean()
        parts = {
            "answer": answer,
            "auxiliary": auxiliary,
            "cache": cache,
            "divergence": divergence,
        }
        loss = torch.stack([getattr(self._losses, k) * v for k, v in parts.items()]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}


class PredictorTrainee:
    """Rows of text with prefixes drawn at random, see loop.Trainee.

    batch_rows: rows of a step.
    """

    def __init__(self, module: Distillation, rows: Rows, batch_rows: int, seed: int) -> None:
        self.module = module
        self._rows, self._count, self._seed = rows, batch_rows, seed

    def batch(self, number: int) -> dict[str, Tensor]:
        """Some rows, cut somewhere between a quarter and three quarters."""
        random = np.random.default_rng((self._seed, number))
        length = self._rows.training.shape[1]
        chosen = self._rows.training[random.integers(len(self._rows.training), size=self._count)]
        return _batch(chosen, int(random.integers(length // 4, 3 * length // 4 + 1)))

    def evaluate(self) -> Mapping[str, float]:
        """All losses on held-out rows, cut in the middle."""
        device = next(iter(self.module.parameters())).device
        sums: dict[str, float] = {}
        held = self._rows.held_out
        for start in range(0, len(held), self._count):
            part = held[start : start + self._count]
            batch = _batch(part, held.shape[1] // 2)
            batch["tokens"] = batch["tokens"].to(device)
            for name, value in self.module(batch)[1].items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
        return {name: value / len(held) for name, value in sums.items()}


def prepare_distillation(
    target: Target,
    settings: PredictionSettings,
    tensors: Tensors,
    *,
    losses: Losses,
    train_layers: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Distillation:
    """A predictor with its maps and bridges ready to be trained; train_layers: and the auxiliary's
    layers, which, if it is pruned, are then no longer the target's own and cost room. tensors: with
    all weights of a sibling."""
    start = dict(tensors)
    if train_layers and isinstance(settings.auxiliary, Pruned):
        start = {**_layers(target, settings.auxiliary.keep), **start}
    weights = WeightMap({name: dense_weight(name, np.asarray(v)) for name, v in start.items()})
    prediction = read_prediction(settings, weights, target)
    place = {"dtype": dtype, "device": device}
    name, first = settings.name, settings.exact_first
    return Distillation(target, prediction, name, first, losses, train_layers, place)


def trained_tensors(module: Distillation, settings: PredictionSettings) -> dict[str, Any]:
    """What was trained, by the names of a trained file."""
    prefixes = (f"predictor-{settings.name}.", f"auxiliary-{settings.name}.")
    found = {**module.predictor.trained_arrays(), **module.auxiliary.trained_arrays()}
    return {
        name.removeprefix(next(p for p in prefixes if name.startswith(p))): values
        for name, values in found.items()
    }


def _layers(target: Target, keep: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """The matrices of the auxiliary's layers, as they are in the target."""
    found: dict[str, NDArray[Any]] = {}
    for index, kept in enumerate(keep):
        layer = target.weights.layers[kept]
        for place in ("query", "key", "value", "output", "gate", "up", "down"):
            linear = getattr(layer, place)
            if linear is not None:
                found[f"auxiliary.{index}.{place}.weight"] = linear.weight.dense()
    return found


def _cross_entropy(logits: Tensor | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of all rows but the last, with its z-loss, and their log-probabilities."""
    assert logits is not None  # targets and auxiliaries have logits  # noqa: S101
    rows = logits[:, :-1].float()
    total = rows.logsumexp(-1)
    log_probs = rows - total[..., None]
    loss = functional.nll_loss(log_probs.flatten(0, 1), wanted.flatten())
    return loss + _Z * (total**2).mean(), log_probs


def _batch(rows: NDArray[np.int32], prefix: int) -> dict[str, Tensor]:
    tokens = torch.tensor(rows, dtype=torch.int64)
    return {"tokens": tokens, "prefix": torch.tensor(prefix)}
