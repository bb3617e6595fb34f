"""A step in graphs of given widths: how it is cut in pieces, what each is fed and gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quickdraft.device_profiles import machine
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, BundleError
from quickdraft.kvcache.by_head import ByHeadCache, ByHeadMemory
from quickdraft.kvcache.memory import Memory
from quickdraft.manifest import RowsLayout, Variant
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.step_inputs import (
    MASKED,
    attention_bias,
    distances,
    positions,
)
from quickdraft.types import ModelSpec

Number = TypeVar("Number", np.float32, np.int64)

ANY = 0
"""Stands for the graph of any number of rows where a width is asked for."""


@dataclass(frozen=True)
class Piece:
    """Nodes start to end of a step, in the graph of `width` rows (ANY: in that of any number)."""

    start: int
    end: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of the tensors; those beyond the nodes are filled up."""
        return self.width or self.end - self.start


def pieces(nodes: int, wanted: NDArray[np.int64], widths: Sequence[int]) -> Iterator[Piece]:
    """Cut a step of so many nodes. wanted: those whose logits are asked for. widths: of the graphs,
    rising; the last one reads prompts and gives the logits of one node, the others those of all.

    The narrowest graph that holds what is left ends a step. The one for prompts is taken where
    most of it would be filled.
    """
    if not widths:
        yield Piece(0, nodes, ANY)
        return
    *narrow, wide = widths
    start = 0
    while start < nodes:
        left = nodes - start
        taken = min(left, wide)
        inside = len(np.unique(wanted[(wanted >= start) & (wanted < start + taken)]))
        if not narrow or (inside <= 1 and taken > max(wide // 2, narrow[-1])):
            # The logits of one node a time are slow but right where there is nothing else.
            end, width = start + (taken if inside <= 1 else 1), wide
        else:
            width = next((each for each in narrow if each >= left), narrow[-1])
            end = start + min(left, width)
        yield Piece(start, end, width)
        start = end


@dataclass(frozen=True)
class Step:
    """What is asked of a model. length: committed rows. wanted: rows whose logits are asked for;
    where a graph stacks several rows of every node, row i * n + j is the i-th of node j. features:
    vectors that come with the tokens."""

    tree: Tree
    length: int
    wanted: NDArray[np.int64]
    features: NDArray[np.float32] | None = None

    @property
    def nodes(self) -> NDArray[np.int64]:
        """The nodes of the wanted rows."""
        return self.wanted % len(self.tree)

    def inside(self, piece: Piece) -> NDArray[np.int64]:
        """Which of the wanted rows lie in a piece, as indices into them."""
        return np.flatnonzero((self.nodes >= piece.start) & (self.nodes < piece.end))

    def rows(self, piece: Piece) -> NDArray[np.int64]:
        """Where these lie in the stack of the piece's graph."""
        inside = self.inside(piece)
        level = self.wanted[inside] // len(self.tree)
        return level * piece.rows + self.nodes[inside] - piece.start

    def bias(self, piece: Piece, slots: int, window: int | None) -> NDArray[np.float32]:
        """Additive attention bias of a piece, float32 [nodes, slots + piece.rows]: what lies in the
        cache, nodes of earlier pieces among it, then the nodes of the piece."""
        whole = attention_bias(self.tree, self.length, self.length + len(self.tree), window)
        return self._placed(piece, slots, whole, MASKED)

    def distances(self, piece: Piece, slots: int) -> NDArray[np.int64]:
        """Position of what a row may see less that of the row, int64, placed as in `bias`; 0 for
        what no row may see."""
        whole = distances(self.tree, self.length, self.length + len(self.tree))
        return self._placed(piece, slots, whole, np.int64(0))

    def _placed(
        self, piece: Piece, slots: int, whole: NDArray[Number], nothing: Number
    ) -> NDArray[Number]:
        """The rows of a piece of [n, length + n]: its first columns, and behind `slots` its own."""
        nodes, before = piece.end - piece.start, self.length + piece.start
        placed = np.full((nodes, slots + piece.rows), nothing, whole.dtype)
        mine = whole[piece.start : piece.end]
        placed[:, :before] = mine[:, :before]
        placed[:, slots : slots + nodes] = mine[:, before : before + nodes]
        return placed


class Graphs:
    """The compiled graphs of a variant. Each is compiled when it is first needed: compiled ones
    hold their weights in a form of their own, and most conversations need two or three."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        variant: Variant,
        device: str,
        how: Mapping[str, Any],
        target: ModelSpec | None = None,
    ) -> None:
        """how: properties to compile with. target: facts of the model that a predictor or encoder
        is for.

        Raises:
            BundleError: the variant has no file of weights.
        """
        binaries = [name for name in variant.files if name.endswith(".bin")]
        if len(binaries) != 1:
            raise BundleError(f"{variant.model} has {len(binaries)} files of weights, not one")
        self._weights = folder / binaries[0]
        self._files = {ANY: folder / variant.model}
        self._files |= {rows: folder / name for rows, name in variant.widths.items()}
        self._device, self._how = device, how
        self._names = tensor_names(spec, variant, target)
        self._compiled: dict[int, Any] = {}
        self._lock = Lock()

    def compiled(self, width: int) -> Any:
        """The graph of a width (ANY: of any number of rows).

        Raises:
            BundleError, BackendError: see openvino_device.compile_graph.
        """
        with self._lock:
            if width not in self._compiled:
                model = self._files[width]
                made = openvino_device.compile_graph(model, self._weights, self._device, self._how)
                openvino_device.check_names(model.name, made, *self._names)
                self._compiled[width] = made
            return self._compiled[width]


def tensor_names(
    spec: ModelSpec, variant: Variant, target: ModelSpec | None = None
) -> tuple[set[str], set[str]]:
    """Inputs and outputs that a manifest promises of a graph."""
    step = variant.step
    named = {step.tokens, step.positions, step.output_rows, step.features, *step.biases.values()}
    inputs = {name for name in (*named, step.source, step.distances) if name}
    outputs = {name for name in (step.logits, *step.hidden_states.values()) if name is not None}
    own = variant.cache
    assert isinstance(own, RowsLayout)  # checked on opening  # noqa: S101
    for layer in cached_layers(spec, variant):
        inputs |= {name.format(layer=layer) for name in (own.past_key, own.past_value)}
        outputs |= {name.format(layer=layer) for name in (own.present_key, own.present_value)}
    if isinstance(variant.memory, RowsLayout):
        memory = variant.memory
        for layer in range((target or spec).num_layers):
            if target is None:
                inputs |= {memory.past_key.format(layer=layer)}
                inputs |= {memory.past_value.format(layer=layer)}
            else:
                outputs |= {memory.present_key.format(layer=layer)}
                outputs |= {memory.present_value.format(layer=layer)}
    filled = variant.target_cache
    if target is not None and isinstance(filled, RowsLayout):
        for layer in range(target.num_layers):
            names = (filled.present_key, filled.present_value)
            outputs |= {name.format(layer=layer) for name in names}
    return inputs, outputs


def cached_layers(spec: ModelSpec, variant: Variant) -> range:
    """Layers whose tensors a graph has: none where it does not attend, and so has no bias."""
    return range(spec.num_layers if variant.step.biases else 0)


@dataclass
class Request:
    """A request of one graph for one cache, and the memory that it reads. outputs: rows of logits
    that it gives, 0 for as many as are wanted."""

    request: Any
    outputs: int
    version: int = -1
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    def feed(self, name: str | None, values: NDArray[Any], rows: int) -> None:
        """Give it an input, copied, and filled up with zeros to so many rows."""
        shape = (rows, *values.shape[1:])
        known = self.inputs.get(str(name))
        if known is None or known.shape != shape:
            known = self.inputs[str(name)] = np.zeros(shape, values.dtype)
            self.request.set_tensor(str(name), openvino_device.tensor(known))
        known[: len(values)] = values
        known[len(values) :] = 0

    def bind(self, layout: RowsLayout, cache: ByHeadCache, layers: range) -> None:
        """Let it read the memory of a cache, wherever that is now."""
        if self.version == cache.version:
            return
        for layer in layers:
            names = layout.past_key, layout.past_value
            for name, array in zip(names, cache.by_head(layer), strict=True):
                self.request.set_tensor(name.format(layer=layer), openvino_device.tensor(array))
        self.version = cache.version

    def read(self, variant: Variant, memory: Memory | None) -> None:
        """Let it read the memory of a source, which stays what it is.

        Raises:
            BackendError: another backend made it.
        """
        layout = variant.memory
        if layout is None:
            return
        assert isinstance(layout, RowsLayout)  # checked on opening  # noqa: S101
        if not isinstance(memory, ByHeadMemory):
            raise BackendError(f"this backend needs its own memories, not {type(memory).__name__}")
        for layer, arrays in enumerate(memory.layers):
            for name, array in zip((layout.past_key, layout.past_value), arrays, strict=True):
                self.request.set_tensor(name.format(layer=layer), openvino_device.tensor(array))
        if variant.step.source is not None:
            self.feed(variant.step.source, source_bias(memory.rows, memory.slots), 1)

    def give(
        self, layout: RowsLayout, layers: range, cache: ByHeadCache, first: int, count: int
    ) -> None:
        """Put the first `count` rows of the last run into slots of a cache from `first` on."""
        for layer in layers:
            names = layout.present_key, layout.present_value
            key, value = (self.result(name.format(layer=layer))[:, :count] for name in names)
            cache.put(layer, first, key, value)

    def result(self, name: str | None) -> NDArray[np.float32]:
        """An output of the last run, valid until the next one."""
        values: NDArray[np.float32] = self.request.get_tensor(str(name)).data
        return values


class Runner:
    """Runs pieces of steps of a variant over its caches."""

    def __init__(self, spec: ModelSpec, variant: Variant, graphs: Graphs) -> None:
        assert isinstance(variant.cache, RowsLayout)  # checked on opening  # noqa: S101
        self._variant, self._layout, self._graphs = variant, variant.cache, graphs
        self._layers = cached_layers(spec, variant)
        self._ran: set[int] = set()

    def run(
        self,
        step: Step,
        piece: Piece,
        cache: ByHeadCache,
        requests: dict[int, Request],
        cancel: CancelToken | None,
    ) -> Request:
        """Run a piece of a step that the cache has staged, and put its rows there. requests: those
        of this cache so far. The one that ran is returned, with its results.

        Raises:
            Cancelled, BackendError: see openvino_device.run.
        """
        request = requests.get(piece.width)
        if request is None:
            request = requests[piece.width] = self._request(piece.width, cache.memory)
        names, rows = self._variant.step, piece.rows
        nodes = slice(piece.start, piece.end)
        request.bind(self._layout, cache, self._layers)
        request.feed(names.tokens, step.tree.tokens[nodes], rows)
        request.feed(names.positions, positions(step.tree, step.length)[nodes], rows)
        for window, name in names.biases.items():
            request.feed(name, step.bias(piece, cache.capacity, window), rows)
        if names.distances is not None:
            request.feed(names.distances, step.distances(piece, cache.capacity), rows)
        if step.features is not None:
            request.feed(names.features, step.features[nodes], rows)
        if names.output_rows is not None:
            wanted = step.rows(piece)
            request.feed(names.output_rows, wanted, request.outputs or max(len(wanted), 1))
        openvino_device.run(request.request, cancel)
        if piece.rows not in self._ran:
            # Until here a graph of fixed shapes held a cache of its own, which it has now let go.
            self._ran.add(piece.rows)
            machine.give_back_memory()
        first = step.length + piece.start
        request.give(self._layout, self._layers, cache, first, piece.end - piece.start)
        return request

    def _request(self, width: int, memory: Memory | None) -> Request:
        compiled, outputs = self._graphs.compiled(width), 0
        if width != ANY and self._variant.step.output_rows is not None:
            (outputs,) = compiled.input(self._variant.step.output_rows).shape
        request = Request(compiled.create_infer_request(), outputs)
        request.read(self._variant, memory)
        return request


def source_bias(rows: int, slots: int) -> NDArray[np.float32]:
    """What is added to scores of a memory with so many rows: float32 [1, slots]."""
    bias = np.full((1, slots), MASKED)
    bias[:, :rows] = 0
    return bias
