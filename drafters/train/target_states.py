"""What the frozen target makes of training text, computed once per row of text where there is
room to keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quickdraft.drafters.train.data import document_mask
from quickdraft.export.architectures.decoder import DecoderWeights, build_decoder, decoder_logits
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.trained import Target

_LARGEST = 60000.0
"""Streams of some models have a few values beyond float16."""


class TargetStates:
    """Hidden states of a target, by number of layers passed.

    layers: the streams that are wanted. megabytes: what may be kept, in float16, where all is on
    the CPU: rows of text are the same in every epoch, and most of the cost of a small draft is its
    target. 0 keeps nothing.
    """

    def __init__(
        self,
        target: Target,
        layers: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        megabytes: int = 0,
    ) -> None:
        self.layers = tuple(sorted({*layers, len(target.spec.layers)}))
        self.model = TorchModel(
            lambda ops: build_decoder(ops, target.spec, target.weights), dtype=dtype, device=device
        )
        self._target, self.device, self.dtype = target, device, dtype
        self._kept: dict[bytes, Tensor] = {}
        self._room, self._keeps = megabytes << 20, megabytes > 0

    @property
    def last(self) -> int:
        """The stream that the output reads."""
        return self.layers[-1]

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """[rows, length, hidden] for every layer that is wanted, without gradients."""
        if self._keeps:
            states = torch.stack([self._of_row(batch, row) for row in range(len(batch["tokens"]))])
        else:
            states = self._compute(batch)
        return dict(zip(self.layers, states.to(self.device, self.dtype).unbind(1), strict=True))

    def _of_row(self, batch: Mapping[str, Tensor], row: int) -> Tensor:
        """float16 [layers, length, hidden]. Computed alone, so that it does not depend on what it
        was first met with, and a run that goes on finds what it would have kept."""
        parts = {name: values[row : row + 1] for name, values in batch.items()}
        key = parts["tokens"].numpy().tobytes() + parts["documents"].numpy().tobytes()
        states = self._kept.get(key)
        if states is None:
            states = self._compute(parts)[0].float().clamp(-_LARGEST, _LARGEST).to(torch.float16)
            size = states.numel() * states.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = states
        return states

    def output(
        self, given: DecoderWeights | None = None, share: TorchModel | None = None
    ) -> TorchModel:
        """The target's output alone: from the last stream, as features, to logits. given: weights
        with another output matrix than the target's; share: a model that has it."""
        spec, weights = self._target.spec, given or self._target.weights
        return TorchModel(
            lambda ops: ops.logits(decoder_logits(ops, spec, weights, ops.features())),
            features=spec.hidden_size,
            dtype=self.dtype,
            device=self.device,
            share=share or self.model,
        )

    @torch.no_grad()
    def _compute(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[rows, layers, length, hidden]."""
        output = self.model(
            batch["tokens"],
            positions=batch["positions"],
            mask=document_mask(batch["documents"]),
            rows=torch.zeros(0, dtype=torch.int64, device=batch["tokens"].device),
            hidden_states=self.layers,
        )
        return torch.stack([output.hidden_states[layer] for layer in self.layers], 1)
