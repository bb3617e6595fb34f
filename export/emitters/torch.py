"""The trainable emitter: a description of a model as a differentiable torch module.

It writes no files: a trainer runs the module, and what it trained goes through
`quickdraft.export.trained` to the emitters that do. Needs the extra `train`; nothing but training
imports this file. Shapes as in `quickdraft.export.emitters.torch_ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quickdraft.export.emitters.torch_ops import (
    LayerKeys,
    Past,
    Step,
    TorchMemory,
    TorchOps,
)
from quickdraft.export.ops import Attention
from quickdraft.export.weights import Weight

__all__ = ["LayerKeys", "Past", "TorchMemory", "TorchModel", "TorchOutput"]


@dataclass(frozen=True)
class TorchOutput:
    """What a call gives.

    logits: [b, m, vocabulary], [wanted rows, vocabulary] where rows were a mask, or None where the
    model has none. hidden_states: [b, s, width], those asked for. keys: by layer, if asked for.
    staged: what a predictor or encoder writes, by layer of the target; `TorchMemory.of` makes a
    memory of it. present: the rows of this call.
    """

    logits: Tensor | None
    hidden_states: Mapping[int, Tensor]
    keys: Mapping[int, LayerKeys]
    staged: Mapping[int, LayerKeys]
    present: Past


class TorchModel(nn.Module):
    """A description of a model, run by torch.

    A weight is known by its name: used twice it is one tensor (so tied embeddings stay tied), and
    one derived from another (`map`, `take_rows`, `concat_rows`) has a name and so a tensor of its
    own, which training does not move along. `parameters()` and `state_dict()` hold the trained
    weights alone; the others come from the checkpoint again.
    """

    def __init__(
        self,
        build: Callable[[Any], None],
        *,
        features: int = 0,
        stride: int = 1,
        train: Callable[[str], bool] = lambda name: False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        share: TorchModel | None = None,
    ) -> None:
        """Read the weights that `build` asks for.

        build: as in Part. features: width of the vectors that come with the tokens, or in their
        place. stride: of an encoder, frames to one row of its memory. train: which weights are
        trained, by name; these are float32. dtype: of the others and of the stream.
        share: a model whose weights are used, not read again, where names agree; to be moved
        between devices on its own.

        Raises:
            ValueError: two weights of one name differ in shape, or `train` names a shared one.
        """
        super().__init__()
        self._build, self._dtype, self._stride = build, dtype, stride
        # Held so that it is no part of this module: what it trains is its own affair.
        self._shared = (share,)
        self._frozen: dict[str, Tensor] = {}
        self._trained = nn.Module()
        for name, weight in _weights_of(build, features, stride, dtype).items():
            shared = None if share is None else share.find(name)
            if shared is None and train(name):
                values = torch.tensor(weight.dense(), dtype=torch.float32, device=device)
                self._trained.register_parameter(_escaped(name), nn.Parameter(values))
            elif shared is None:
                self._frozen[name] = torch.tensor(weight.dense(), dtype=dtype, device=device)
            elif shared.shape != weight.shape:
                raise ValueError(f"{name} is {weight.shape}, and {tuple(shared.shape)} as shared")
            elif train(name):
                raise ValueError(f"{name} is shared; the model it comes from says if it trains")

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        features: Tensor | None = None,
        rows: Tensor | None = None,
        past: Past | TorchMemory | None = None,
        hidden_states: Collection[int] = (),
        keys: bool = False,
    ) -> TorchOutput:
        """Run the model.

        tokens: int64 [b, s]; None for a model that reads only features. positions: int64 [s] or
        [b, s]; those after the past unless given. mask: bool, True where a row may look: [s, s] or
        [b, s, s] over these rows (and all of the past), or the same with p + s columns; None is
        causal, and in an encoder every row: there a mask keeps what fills sources up from view. A
        row always sees itself, and windows hold by position. features: [b, s, width], in an
        encoder [b, frames, width].
        rows: those whose logits are wanted: int64 [m] or [b, m], or bool [b, s]; None is all.
        past: rows before these; in the target of an encoder at first the memory of the sources,
        which the rows of a call keep. hidden_states: streams to return, by number of layers passed.
        keys: whether to return `TorchOutput.keys`.
        """
        given = tokens if tokens is not None else features
        if given is None:
            raise ValueError("a model needs tokens, features, or both")
        memory = past if past is None or isinstance(past, TorchMemory) else past.memory
        past = None if isinstance(past, TorchMemory) else past
        first = 0 if past is None else len(past)
        count = -(-given.shape[1] // self._stride)
        plain = positions is None
        if positions is None:
            positions = torch.arange(first, first + count, device=given.device)
        if mask is not None and mask.shape[-2:] not in {(count, count), (count, first + count)}:
            raise ValueError(f"the mask is {tuple(mask.shape)} for {count} rows after {first}")
        if positions.dim() == 1:
            positions = positions[None]
        step = Step(tokens, positions, mask, features, rows, past, plain, memory)
        ops = TorchOps(self._tensor, self._dtype, step, hidden_states, keys)
        self._build(ops)
        missing = sorted(set(hidden_states) - set(ops.offered))
        if missing:
            raise ValueError(f"the model offers no hidden state {missing[0]}")
        present = Past(positions, ops.layers, memory)
        return TorchOutput(ops.result, ops.offered, ops.keys, ops.staged, present)

    def find(self, name: str) -> Tensor | None:
        """The weight of that name, trained, frozen or shared; None if there is none."""
        trained: Tensor | None = self._trained._parameters.get(_escaped(name))
        if trained is not None:
            return trained
        (share,) = self._shared
        frozen = self._frozen.get(name)
        return share.find(name) if frozen is None and share is not None else frozen

    def trained_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained weights by name."""
        for name, values in self._trained.named_parameters():
            yield name.replace("/", "."), values

    def trained_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The trained weights as arrays, for a file."""
        return {name: values.detach().cpu().numpy() for name, values in self.trained_weights()}

    def _tensor(self, weight: Weight) -> Tensor:
        found = self.find(weight.name)
        if found is None:
            raise ValueError(f"the model asks for {weight.name}, which it did not when it was read")
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TorchModel:
        """Move the frozen weights too; `to`, `cuda` and the like end here."""
        super()._apply(fn, recurse)
        self._frozen = {name: fn(values) for name, values in self._frozen.items()}
        return self


def _escaped(name: str) -> str:
    """Names of parameters may have no dots."""
    return name.replace(".", "/")


def _weights_of(
    build: Callable[[Any], None], features: int, stride: int, dtype: torch.dtype
) -> dict[str, Weight]:
    """The weights a model asks for, by name, found by running it on shapes alone."""
    found: dict[str, Weight] = {}

    def note(weight: Weight) -> Tensor:
        known = found.setdefault(weight.name, weight)
        if known.shape != weight.shape:
            raise ValueError(f"two weights are called {weight.name}: {known.shape}, {weight.shape}")
        return torch.empty(weight.shape, dtype=dtype, device="meta")

    with torch.device("meta"), torch.no_grad():
        vectors = torch.zeros(1, 2 * stride, features) if features else None
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        build(_Probe(note, dtype, Step(tokens, torch.arange(2)[None], features=vectors)))
    return found


class _Probe(TorchOps):
    """Ops of which the weights matter and nothing else."""

    def cross_attend(self, q: Tensor, attention: Attention) -> Tensor:
        """There is no memory, and no weight to it."""
        return q
