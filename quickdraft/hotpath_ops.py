"""The meaning of the hot path's custom ops: one NumPy function per op, on the same packed bytes.

Attributes and inputs are those of the ops (domain `quickdraft`); those of the cache are in
`quickdraft.hotpath_attention`. Kernels add in float32 in a fixed order, these functions in float64,
so results agree to float32 rounding; what is rounded to int8 on the way is rounded alike. Shapes
use n for the rows of a step, m for the rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft import numpy_ops, weight_layout
from quickdraft.weight_layout import BLOCK, LAYOUTS, Bytes

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

GROUP = 32
"""Columns of an activation that share a scale."""
_SMALLEST = np.float32(1e-30)
"""A group with nothing larger is rounded to zeros."""


@dataclass(frozen=True)
class Matrix:
    """A packed matrix: uint8 [blocks, record]. n: outputs, k: columns.

    gated: blocks of two matrices [n, k] alternate, gate first.
    """

    data: Bytes
    format: str
    n: int
    k: int
    gated: bool = False

    def values(self) -> Floats:
        """Float32 [n, k]; gated: [2 n, k], gate first."""
        if not self.gated:
            return weight_layout.unpack(self.data, self.format, self.n, self.k)
        halves = (self.data[start::2] for start in (0, 1))
        return np.concatenate(
            [weight_layout.unpack(half, self.format, self.n, self.k) for half in halves]
        )


@dataclass(frozen=True)
class Norm:
    """kind: `none`, `rms` or `layer`. weight, bias: [width], or None for ones and zeros."""

    kind: str = "none"
    eps: float = 0.0
    weight: Floats | None = None
    bias: Floats | None = None


def norm(
    x: Floats,
    how: Norm,
    heads: int = 1,
    width: int | None = None,
    offset: int = 0,
    residual: Floats | None = None,
) -> Floats:
    """The op Norm: of `heads` parts of `width` columns from `offset` on, plus the residual.

    x: [n, columns]. Weights: [width], or [heads * width] where each part has its own. Returns
    [n, heads * width].
    """
    width = x.shape[1] if width is None else width
    chosen = x[:, offset : offset + heads * width].astype(np.float64)
    parts: NDArray[Any] = chosen.reshape(-1, width)
    if how.kind == "layer":
        parts = parts - parts.mean(axis=1, keepdims=True)
    if how.kind != "none":
        parts = parts / np.sqrt(np.square(parts).mean(axis=1, keepdims=True) + how.eps)
    values: NDArray[Any] = parts.reshape(len(x), heads, width)
    if how.weight is not None:
        values = values * how.weight.reshape(-1, width)
    if how.bias is not None:
        values = values + how.bias.reshape(-1, width)
    values = values.reshape(len(x), heads * width)
    if residual is not None:
        values = values + residual
    return values.astype(np.float32)


def round_activations(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Each group of 32 columns as int8: codes [n, k / 32, 32] and scales [n, k / 32].

    scale is the largest magnitude over 127; codes are rounded to the nearest, halves to even. A
    group that holds infinity or NaN has scale NaN.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    finite = np.isfinite(largest)
    codable = finite & (largest > _SMALLEST)
    scale = np.where(codable, largest * (np.float32(1) / np.float32(127)), np.float32(0))
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=codable)
    whole = np.where(codable[..., None], groups, np.float32(0))
    codes = np.rint(whole * inverse[..., None]).astype(np.int8)
    return codes, np.where(finite, scale, np.float32(np.nan))


def coarse_groups(scale: Floats) -> NDArray[np.bool_]:
    """Which groups have a scale above 2.6 times the root mean square of their row's; a row that
    holds infinity or NaN has none. scale: [n, groups]."""
    squares = np.square(scale)
    total = np.zeros(len(scale), np.float32)
    for column in squares.T:  # one after the other, in float32, as the kernels add
        total += column
    limit = np.float32(6.76) * total / np.float32(scale.shape[1])
    coarse: NDArray[np.bool_] = squares > limit[:, None]
    return coarse


def rounded(x: Floats) -> NDArray[np.float64]:
    """x as quantised products see it: rounded to int8 by groups, and in coarse groups what that
    lost rounded again. [n, k], exact."""
    codes, scale = round_activations(x)
    first = (codes * scale[..., None].astype(np.float64)).reshape(x.shape)
    codes, fine = round_activations((x - first).astype(np.float32))
    fine = np.where(coarse_groups(scale), fine, np.float32(0))
    second = (codes * fine[..., None].astype(np.float64)).reshape(x.shape)
    total: NDArray[np.float64] = np.add(first, second)
    return total


def q_linear(
    x: Floats,
    matrix: Matrix,
    bias: Floats | None = None,
    residual: Floats | None = None,
    before: Norm = Norm(),
    activation: str = "none",
) -> Floats:
    """The op QLinear: activation(norm(x) @ weight.T + bias) + residual; [n, k] to [n, N].

    gated: activation(gate) * up, with both biases in `bias`, gate first.
    """
    y = _product(x, matrix, bias, before)
    if matrix.gated:
        gate, up = np.split(y, 2, axis=1)
        y = _activate(gate, activation) * up
    else:
        y = _activate(y, activation)
    return y if residual is None else y + residual


def _product(x: Floats, matrix: Matrix, bias: Floats | None, before: Norm) -> Floats:
    normed = x if before.kind == "none" else norm(x, before)
    quantised = LAYOUTS[matrix.format].dense is None
    inputs = rounded(normed) if quantised else normed.astype(np.float64)
    y = inputs @ matrix.values().astype(np.float64).T
    if bias is not None:
        y = y + bias
    return y.astype(np.float32)


def _activate(x: Floats, kind: str) -> Floats:
    return x if kind == "none" else numpy_ops.activate(x, kind)


def rope_table(positions: Ints, frequencies: Floats, factor: float = 1.0) -> Floats:
    """The op RopeTable: cosines, then sines, of position times frequency: [n, 2, pairs]."""
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (table * factor).astype(np.float32)


def embed(ids: Ints, matrix: Matrix, scale: float = 1.0) -> Floats:
    """The op Embed: rows of a packed table times scale, [n, k]."""
    blocks, places = np.unique(ids // BLOCK, return_inverse=True)
    rows = weight_layout.unpack(matrix.data[blocks], matrix.format, len(blocks) * BLOCK, matrix.k)
    chosen: Floats = rows[places * BLOCK + ids % BLOCK]
    return chosen * np.float32(scale)


def head_top_k(
    x: Floats,
    rows: Ints,
    matrix: Matrix,
    top: int,
    bias: Floats | None = None,
    before: Norm = Norm(),
    softcap: float = 0.0,
) -> tuple[Floats, Ints, Floats, Floats]:
    """The op HeadTopK: the product of chosen rows and its `top` largest values.

    Returns values and ids [m, top], largest first and equal ones by id, the log of the sum of
    exp(logits) [m], and the logits [m, N].
    """
    logits = _product(x[rows], matrix, bias, before)
    if softcap:
        logits = numpy_ops.softcap(logits, softcap)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    largest = logits.max(axis=1, keepdims=True)
    sums = np.exp((logits - largest).astype(np.float64)).sum(axis=1)
    log_sum = (np.log(sums) + largest[:, 0]).astype(np.float32)
    return np.take_along_axis(logits, ids, axis=1), ids.astype(np.int64), log_sum, logits
