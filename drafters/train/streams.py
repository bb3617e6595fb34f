"""Residual streams of training rows on disk, and the layers that take them one further.

A model is run one layer at a time over all rows, so that neither its weights nor its streams have
to fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraft.errors import StorageError
from quickdraft.export.architectures.decoder import (
    DecoderSpec,
    DecoderWeights,
    decoder_embedding,
    decoder_layer,
    decoder_norm,
)
from quickdraft.export.emitters.torch import TorchModel
from quickdraft.export.predictor_graph import normed_stream

Floats = NDArray[np.float32]
_BATCH_TOKENS = 4096
_CPU = torch.device("cpu")


class StreamFiles:
    """Float32 [rows, length, width] under names, in a folder. A file is whole or not there."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._folder, self.shape = folder, shape
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def read(self, name: str) -> Floats:
        """The stream, mapped."""
        return np.memmap(self._path(name), np.float32, "r", shape=self.shape)

    @contextmanager
    def write(self, name: str) -> Iterator[Floats]:
        """A new stream to fill, mapped; it is there when the block ends well.

        Raises:
            StorageError: the disk is full.
        """
        part = self._path(f"{name}.part")
        try:
            with open(part, "wb") as file:
                # Takes the room now: a mapped file that finds none kills the process.
                for _ in range(self.shape[0]):
                    file.write(bytes(4 * self.shape[1] * self.shape[2]))
            values = np.memmap(part, np.float32, "r+", shape=self.shape)
            yield values
            values.flush()
            part.replace(self._path(name))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"{part}: {error.strerror or error}") from error

    def drop(self, name: str) -> None:
        """Remove a stream, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.f32"


class LayerRunner:
    """The pieces of a decoder on streams. One layer's weights are in memory at a time.

    dtype: what products of layers are computed in; streams, norms and projections are float32.
    device: that layers run on; streams stay on the CPU.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        dtype: torch.dtype,
        device: torch.device = _CPU,
    ) -> None:
        self.spec, self.weights = spec, weights
        self._dtype, self._device = dtype, device
        self._models: dict[str, tuple[int, TorchModel]] = {}

    def embed(self, tokens: NDArray[np.int32]) -> Floats:
        """[rows, length] to the stream before the first layer."""

        def build(ops: Any) -> None:
            x = decoder_embedding(ops, self.spec, self.weights, ops.positions())
            ops.hidden_state(x, 0)

        model = self._model("embed", 0, lambda: TorchModel(build, device=self._device))
        with torch.no_grad():
            given = torch.tensor(tokens, dtype=torch.int64, device=self._device)
            found = model(given, hidden_states=(0,))
        return _array(found.hidden_states[0])

    def layer(self, index: int, x: Floats) -> Floats:
        """The stream [rows, length, hidden] one layer on."""

        def build(ops: Any) -> None:
            layer = self.weights.layers[index]
            y = decoder_layer(ops, self.spec, index, layer, ops.features(), ops.positions())
            ops.hidden_state(y, 0)

        return self._run("layer", index, build, self._dtype, x)[0]

    def project(self, index: int, x: Floats) -> tuple[Floats, Floats]:
        """Keys and values of a layer from the stream before it, before norm and rope."""

        def build(ops: Any) -> None:
            layer = self.weights.layers[index]
            normed = decoder_norm(ops, self.spec, ops.features(), layer.attention_norm)
            pairs = [(linear.weight, linear.bias) for linear in (layer.key, layer.value)]
            for number, rows in enumerate(ops.linears(normed, pairs)):
                ops.hidden_state(rows, number)

        keys, values = self._run("project", index, build, torch.float32, x, 2)
        return keys, values

    def normed(self, x: Floats) -> Floats:
        """What maps and bridges read of a stream."""

        def build(ops: Any) -> None:
            ops.hidden_state(normed_stream(ops, self.spec, self.weights, ops.features(), None), 0)

        return self._run("normed", 0, build, torch.float32, x)[0]

    def _run(
        self,
        what: str,
        index: int,
        build: Callable[[Any], None],
        dtype: torch.dtype,
        x: Floats,
        outputs: int = 1,
    ) -> list[Floats]:
        hidden = self.spec.hidden_size
        place: dict[str, Any] = {"features": hidden, "dtype": dtype, "device": self._device}
        model = self._model(what, index, lambda: TorchModel(build, **place))
        with torch.no_grad():
            given = torch.tensor(np.asarray(x), device=self._device)
            found = model(features=given, hidden_states=range(outputs)).hidden_states
        return [_array(found[number]) for number in range(outputs)]

    def _model(self, what: str, index: int, make: Callable[[], TorchModel]) -> TorchModel:
        """The model for `what` of a layer; only the newest of each kind is kept."""
        if what not in self._models or self._models[what][0] != index:
            self._models.pop(what, None)
            self._models[what] = (index, make())
        return self._models[what][1]


def batches(rows: int, length: int) -> Iterator[slice]:
    """Slices of rows that together have some thousand tokens."""
    step = max(1, _BATCH_TOKENS // length)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _array(values: torch.Tensor) -> Floats:
    result: Floats = values.float().cpu().numpy()
    return result
