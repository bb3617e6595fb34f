"""The op protocol: the small set of operations every architecture is written in.

An emitter implements it for its own kind of value (a node output, an array, a tensor). Shapes use
n for the rows of a step (tokens), m for the rows whose logits are wanted. Everything is float32
unless said. The meaning of each op is the function of the same name in `quickdraft.numpy_ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

from quickdraft import numpy_ops
from quickdraft.export.weights import Floats, Weight

V = TypeVar("V")
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first 2 * len(frequencies) values of each head, halves rotated
    against each other (the "neox" order).

    frequencies: angle per position, one per pair. attention_factor multiplies sine and cosine.
    """

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias of the scores by how far apart two rows are (Raffel et al. 2020,
    arXiv 1910.10683, section 2.1; the buckets are those of `numpy_ops.relative_buckets`).

    table: [buckets, heads]. max_distance: everything as far away or farther shares a bucket.
    bidirectional: rows before and after have buckets of their own; else what comes after has the
    bucket of distance 0.
    """

    table: Weight
    max_distance: int
    bidirectional: bool

    @property
    def buckets(self) -> int:
        """Rows of the table."""
        return self.table.shape[0]

    def by_distance(self) -> Weight:
        """The biases of distances -max_distance .. max_distance, position of the key less that of
        the query: [heads, 2 * max_distance + 1]. What is farther away has that of the nearer end.
        """
        way = "both" if self.bidirectional else "before"
        distances = np.arange(-self.max_distance, self.max_distance + 1)[None]

        def change(table: Floats) -> Floats:
            values = numpy_ops.relative_bias(
                distances, table, self.max_distance, bidirectional=self.bidirectional
            )
            return np.ascontiguousarray(values[:, 0])

        shape = self.table.shape[1], distances.size
        return self.table.map(change, shape, f"{self.table.name}.{way}.{self.max_distance}")


@dataclass(frozen=True)
class Attention:
    """How one layer attends. window: as in ModelSpec. softcap: cap * tanh(scores / cap), before
    the mask. relative: added to the scaled scores, after the cap."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    relative: RelativeBias | None = None


class Ops(Protocol[V]):
    """One implementation per emitter."""

    def tokens(self) -> V:
        """Token ids of the step, int64 [n]."""

    def positions(self) -> V:
        """Logical positions of the rows, int64 [n]; in an encoder 0 .. rows of the memory - 1."""

    def output_rows(self) -> V:
        """Rows whose logits are wanted, int64 [m]."""

    def features(self) -> V:
        """Vectors that come with the tokens, or in their place in an encoder of features: float32
        [n, width]; only where the part has some."""

    def embed(self, ids: V, table: Weight) -> V:
        """Rows of `table` [vocabulary, width] for `ids` [n]: [n, width]."""

    def take_rows(self, x: V, rows: V) -> V:
        """Rows of x: [n, width] and int64 [m] to [m, width]."""

    def linear(self, x: V, weight: Weight, bias: Weight | None = None) -> V:
        """x @ weight.T + bias: [n, in], weight [out, in] to [n, out]."""

    def linears(self, x: V, pairs: Sequence[tuple[Weight, Weight | None]]) -> list[V]:
        """Several products of the same x, each weight with its bias; a kernel may join them."""

    def rms_norm(self, x: V, weight: Weight | None, eps: float, heads: int = 1) -> V:
        """x / sqrt(mean(x^2) + eps) * weight, over the last axis cut in `heads` equal parts.

        weight: [width / heads], or None for all ones.
        """

    def layer_norm(
        self, x: V, weight: Weight | None, bias: Weight | None, eps: float, heads: int = 1
    ) -> V:
        """(x - mean) / sqrt(variance + eps) * weight + bias, parts as in rms_norm.

        weight: [width / heads] or, where each head has its own, [width].
        """

    def rope(self, x: V, positions: V, rope: Rope, heads: int) -> V:
        """Rotate each of the `heads` parts of x [n, heads * head_dim] by its row's position."""

    def attend(self, q: V, k: V, v: V, attention: Attention) -> V:
        """Stage k and v [n, kv_heads * head_dim] in the cache of the layer, then attend.

        q: [n, heads * head_dim]. Row i sees the committed cache and, of this step, itself and
        its ancestors, all within the window. Returns [n, heads * head_dim].
        """

    def encode_attend(self, q: V, k: V, v: V, attention: Attention) -> V:
        """Attend among the rows of this step alone, which all see each other; nothing is cached.

        Shapes as in attend. A row's position, for `relative`, is its number. Only in an encoder.
        """

    def cross_attend(self, q: V, attention: Attention) -> V:
        """Attend to all rows of the memory of a layer, which an encoder staged; order and distance
        count for nothing. q and result: [n, heads * head_dim]. Only in the target of an encoder.
        """

    def stage(self, k: V, v: V, attention: Attention) -> None:
        """Write k and v [n, kv_heads * head_dim] for a layer of the target; not for use here.

        In a predictor: as the rows of the step into the target's cache, another one than `attend`
        uses. In an encoder: they are the whole memory of the layer.
        """

    def conv1d(self, x: V, weight: Weight, bias: Weight | None, stride: int) -> V:
        """Convolve over the rows: [n, in], weight [out, in, width], width odd, to
        [ceil(n / stride), out]; row i is centred on row i * stride, zeros around x."""

    def stack(self, parts: Sequence[V]) -> V:
        """Rows of the parts [n_i, width], one part after another: [sum of n_i, width]."""

    def activate(self, x: V, kind: Activation) -> V:
        """An activation, value by value."""

    def add(self, a: V, b: V) -> V:
        """Sum of equal shapes."""

    def multiply(self, a: V, b: V) -> V:
        """Product of equal shapes."""

    def scale(self, x: V, factor: float) -> V:
        """Product with a constant."""

    def softcap(self, x: V, cap: float) -> V:
        """cap * tanh(x / cap)."""

    def gated_mlp(
        self,
        x: V,
        gate: Weight,
        up: Weight,
        down: Weight,
        kind: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> V:
        """down(activate(gate(x)) * up(x)); one op so that a kernel may fuse it."""

    def hidden_state(self, x: V, layer: int) -> None:
        """Offer the residual stream [n, width] after `layer` layers (0: the embedding) as an
        output; emitted if it was asked for."""

    def logits(self, x: V) -> None:
        """Name x [m, vocabulary] the result; a predictor has none."""
