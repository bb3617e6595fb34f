"""Values that are written into the graph only when it is known how they are used.

A kernel of the hot path does several ops at once: a norm before a product, an activation or a
residual sum after it, a rotation before attention. So an op of the protocol returns one of these,
and the op that uses it either takes it in or has it written by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from quickdraft.errors import UnsupportedModel
from quickdraft.export.ops import Activation, Rope
from quickdraft.export.weights import Weight


@dataclass(eq=False)
class Lazy:
    """done: the value in the graph, once it was written. uses: how many ops read it so far."""

    done: ir.Value | None = field(default=None, kw_only=True)
    uses: int = field(default=0, kw_only=True)


Value = ir.Value | Lazy


def use(x: Value) -> Value:
    """x, counted as read once more."""
    if isinstance(x, Lazy):
        x.uses += 1
    return x


@dataclass(frozen=True)
class NormSpec:
    """A norm over parts of `width` values. weight, bias: [width], or all parts one after the
    other; None for ones and zeros."""

    kind: Literal["rms", "layer"]
    eps: float
    width: int
    weight: Weight | None
    bias: Weight | None = None

    def times(self, factor: float) -> NormSpec:
        """The norm, then a product with a constant; only of a norm with a weight."""

        def scaled(weight: Weight | None) -> Weight | None:
            name = weight and f"{weight.name}*{factor}"
            by = np.float32(factor)
            return weight and weight.map(lambda values: values * by, weight.shape, str(name))

        return replace(self, weight=scaled(self.weight), bias=scaled(self.bias))


@dataclass(eq=False)
class Normed(Lazy):
    """The norm of each of `heads` parts of x."""

    x: Value
    norm: NormSpec
    heads: int


@dataclass(eq=False)
class Product(Lazy):
    """activation(x @ weight.T + bias). With `up`, a second matrix of the same shape:
    activation(x @ weight.T) * (x @ up.T), biases one after the other in `bias`."""

    x: Value
    weight: Weight
    bias: Weight | None
    activation: Activation | None = None
    up: Weight | None = None


@dataclass(eq=False)
class Columns(Lazy):
    """Columns of a joined product."""

    product: Product
    offset: int
    width: int


@dataclass(eq=False)
class Sum(Lazy):
    """A sum whose products and norms, if nothing else reads them, may take in the sum so far."""

    terms: tuple[Value, ...]


@dataclass(eq=False)
class Rotated(Lazy):
    """Rope of x, which attention does itself."""

    x: Value
    rope: Rope


@dataclass(eq=False)
class Embedded(Lazy):
    """Rows of a table times scale. keep_float: the table is small and stays float32."""

    ids: ir.Value
    table: Weight
    scale: float
    keep_float: bool


@dataclass(eq=False)
class Taken(Lazy):
    """Rows of x."""

    x: Value
    rows: ir.Value


@dataclass(eq=False)
class Stacked(Lazy):
    """Rows of the parts, one part after another."""

    parts: tuple[Value, ...]


@dataclass(eq=False)
class Capped(Lazy):
    """cap * tanh(x / cap), which the output head does itself."""

    x: Value
    cap: float


def width_of(x: Value) -> int | None:
    """Columns of x, where the value itself tells."""
    match x:
        case Product():
            return x.weight.shape[0]
        case Columns():
            return x.width
        case Embedded():
            return x.table.shape[1]
        case Normed():
            return x.heads * x.norm.width
        case Taken() | Rotated():
            return width_of(x.x)
        case Sum() | Stacked():
            inner = x.terms if isinstance(x, Sum) else x.parts
            return next((width for width in map(width_of, inner) if width is not None), None)
        case ir.Value(shape=ir.Shape() as shape) if len(shape) == 2:
            return shape[1] if isinstance(shape[1], int) else None
    return None


def unsupported(reason: str) -> UnsupportedModel:
    """What no kernel takes in, and the way out."""
    return UnsupportedModel(f"the hotpath flavour {reason}; export this model with --format onnx")
