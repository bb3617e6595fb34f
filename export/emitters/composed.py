"""Ops that are compositions of others: what an emitter inherits until it can do better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from quickdraft.export.ops import Activation, Ops
from quickdraft.export.weights import Weight

V = TypeVar("V")


class ComposedOps(Generic[V]):
    """A base for emitters without a fused kernel of their own."""

    def linears(self: Ops[V], x: V, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[V]:
        """One linear after another."""
        return [self.linear(x, weight, bias) for weight, bias in pairs]

    def gated_mlp(
        self: Ops[V],
        x: V,
        gate: Weight,
        up: Weight,
        down: Weight,
        kind: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> V:
        """down(activate(gate(x)) * up(x)), from linears, activate and multiply."""
        opened, raised = self.linears(x, [(gate, biases[0]), (up, biases[1])])
        inner = self.multiply(self.activate(opened, kind), raised)
        return self.linear(inner, down, biases[2])
