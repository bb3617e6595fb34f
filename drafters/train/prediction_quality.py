"""What predicting a prefix costs: how well the target goes on after it, against other prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from quickdraft.export.architectures.decoder import build_decoder
from quickdraft.export.emitters.torch import Past, TorchModel
from quickdraft.export.predictor_graph import Prediction, build_auxiliary, build_predictor
from quickdraft.export.trained import Target

_LOGITS = 1 << 26
"""How many are in memory at a time, and some copies of them."""


@dataclass(frozen=True)
class Continuations:
    """Mean negative log-likelihood, in nats per token, of the text after a prefix.

    exact: the target after its own prefix. predicted: after the predicted one. without: after
    none. auxiliary: the auxiliary model alone, after its own; skipping: that without its bridges.
    divergence: of `exact` from `predicted`, in nats. agreement: share of tokens at which both find
    the same token likeliest. rows, prefix, tokens: what it was measured on.
    """

    exact: float
    predicted: float
    without: float
    auxiliary: float
    skipping: float
    divergence: float
    agreement: float
    rows: int
    prefix: int
    tokens: int


@torch.no_grad()
def measure(
    target: Target,
    prediction: Prediction,
    rows: NDArray[Any],
    *,
    prefix: int,
    exact_first: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008  # does not change
) -> Continuations:
    """Go on after the first `prefix` tokens of every row [rows, length], to its end."""
    spec, layers = target.spec, target.weights.layers
    place: dict[str, Any] = {"dtype": dtype, "device": device}
    model = TorchModel(lambda ops: build_decoder(ops, spec, target.weights), **place)
    shared: dict[str, Any] = {**place, "share": model}
    bare = replace(prediction, bridges=(None,) * len(prediction.bridges))
    predictor = TorchModel(lambda ops: build_predictor(ops, prediction, spec, layers), **shared)
    auxiliary = TorchModel(lambda ops: build_auxiliary(ops, prediction), **shared)
    skipping = TorchModel(lambda ops: build_auxiliary(ops, bare), **shared)
    sums: dict[str, float] = {}
    step = max(1, _LOGITS // (spec.vocab_size * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        tokens = torch.tensor(rows[part], dtype=torch.int64, device=device)
        found = _figures(model, predictor, (auxiliary, skipping), tokens, prefix, exact_first)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    count, length = rows.shape
    tokens_seen = count * (length - prefix - 1)
    means = {name: round(value / tokens_seen, 4) for name, value in sums.items()}
    return Continuations(**means, rows=count, prefix=prefix, tokens=tokens_seen)


def _figures(
    target: TorchModel,
    predictor: TorchModel,
    others: tuple[TorchModel, TorchModel],
    tokens: Tensor,
    prefix: int,
    exact_first: int,
) -> Mapping[str, float]:
    """Sums over the tokens after the prefix and its next token."""
    following, wanted = tokens[:, prefix:], tokens[:, prefix + 1 :]
    before = target(tokens[:, :prefix], rows=_none(tokens)).present
    staged = predictor(tokens[:, :prefix]).staged
    mixed = {
        layer: (
            torch.cat([k[:, :exact_first], staged[layer].key[:, exact_first:]], 1),
            torch.cat([v[:, :exact_first], staged[layer].value[:, exact_first:]], 1),
        )
        for layer, (k, v) in before.layers.items()
    }
    exact = _log_probs(target(following, past=before).logits)
    predicted = _log_probs(target(following, past=Past(before.positions, mixed)).logits)
    rest = torch.arange(prefix, tokens.shape[1], device=tokens.device)
    without = _log_probs(target(following, positions=rest).logits)
    figures = {
        "exact": _nll(exact, wanted),
        "predicted": _nll(predicted, wanted),
        "without": _nll(without, wanted),
        "divergence": float((exact.exp() * (exact - predicted)).sum()),
        "agreement": float((exact.argmax(-1) == predicted.argmax(-1)).sum()),
    }
    for name, model in zip(("auxiliary", "skipping"), others, strict=True):
        logits = model(tokens, rows=rest).logits
        figures[name] = _nll(_log_probs(logits), wanted)
    return figures


def _log_probs(logits: Tensor | None) -> Tensor:
    """Of all tokens but the last, whose next one is not known."""
    assert logits is not None  # targets and auxiliaries have logits  # noqa: S101
    return logits[:, :-1].float().log_softmax(-1)


def _nll(log_probs: Tensor, wanted: Tensor) -> float:
    return float(functional.nll_loss(log_probs.flatten(0, 1), wanted.flatten(), reduction="sum"))


def _none(tokens: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=tokens.device)
