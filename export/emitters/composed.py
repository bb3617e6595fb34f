"""Ops that are compositions of others: what an emitter inherits until it can do better."""

from __future__ import annotations

from typing import Generic, TypeVar

from quickdraft.export.ops import Activation, Ops
from quickdraft.export.weights import Weight

V = TypeVar("V")


class ComposedOps(Generic[V]):
    """A base for emitters without a fused kernel of their own."""

    def gated_mlp(
        self: Ops[V],
        x: V,
        gate: Weight,
        up: Weight,
        down: Weight,
        kind: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> V:
        """down(activate(gate(x)) * up(x)), from linear, activate and multiply."""
        opened = self.activate(self.linear(x, gate, biases[0]), kind)
        inner = self.multiply(opened, self.linear(x, up, biases[1]))
        return self.linear(inner, down, biases[2])
