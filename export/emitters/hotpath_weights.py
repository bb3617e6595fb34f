"""Weights of the hot path: packed for the kernels, each stored once."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from quickdraft.export.emitters.base import refuse_groups
from quickdraft.export.emitters.onnx_graph import GraphBuilder
from quickdraft.export.ops import RelativeBias
from quickdraft.export.packing import Packed, pack, pack_gated
from quickdraft.export.quantize import GROUP, WeightFormat, store
from quickdraft.export.weights import Dense, Weight


@dataclass(frozen=True)
class Stored:
    """A matrix in the graph: uint8 [blocks, record]. n: outputs, k: columns."""

    value: ir.Value
    format: str
    n: int
    k: int


class PackedStore:
    """Puts matrices and vectors into the graph.

    float_values: sensitive matrices stay in floats where the format promises quality: those whose
    results every token of an answer reads, and which are computed once (decision 003).
    """

    def __init__(
        self, graph: GraphBuilder, fmt: WeightFormat, *, float_values: bool = False
    ) -> None:
        """Raises:
        OptionError: the kernels read no such groups.
        """
        refuse_groups(fmt, "the hotpath flavour", (GROUP,))
        self._graph = graph
        self._format = fmt
        self._float_values = float_values and fmt.float_values and not fmt.keep
        self._stored: dict[str, Stored] = {}

    def vector(self, weight: Weight | None) -> ir.Value | None:
        """A norm scale or bias, float32; None stays None."""
        if weight is None:
            return None
        known = self._graph.find(weight.name)
        return known or self._graph.weight(weight.name, weight.dense().reshape(-1))

    def relative(self, bias: RelativeBias) -> ir.Value:
        """What relative positions add, float32 [heads, 2 * max_distance + 1]."""
        weight = bias.by_distance()
        return self._graph.find(weight.name) or self._graph.weight(weight.name, weight.dense())

    def matrix(self, weight: Weight, keep_float: bool = False) -> Stored:
        """A matrix in the weight format, or as float32."""
        name = f"{weight.name}.float" if keep_float else weight.name
        if name not in self._stored:
            floats = keep_float or self._in_floats(weight)
            data = Dense(weight.dense()) if floats else store(weight, self._format)
            self._stored[name] = self._add(name, pack(data))
        return self._stored[name]

    def gated(self, gate: Weight, up: Weight) -> Stored:
        """Two matrices whose blocks alternate; n is that of one."""
        name = f"{gate.name}+{up.name}"
        if name not in self._stored:
            packed = pack_gated(store(gate, self._format), store(up, self._format))
            self._stored[name] = self._add(name, packed)
        return self._stored[name]

    def _add(self, name: str, packed: Packed) -> Stored:
        value = self._graph.weight(name, packed.data)
        return Stored(value, packed.format, packed.n, packed.k)

    def form(self, weight: Weight) -> str:
        """What two matrices of the same input must share to be stored as one."""
        if self._format.keep:
            return weight.stored_as
        return "floats" if self._in_floats(weight) else ""

    def _in_floats(self, weight: Weight) -> bool:
        return self._float_values and weight.sensitive
