"""Weights as lazily read values: dense, or in blocks that share a scale.

Nothing is decoded before it is emitted, so exporting needs memory for one tensor, not one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """A plain array. values: float32, float16 or bfloat16-expanded float32, any shape."""

    values: NDArray[Any]


@dataclass(frozen=True)
class Levels:
    """The factors of scales in two levels, as the K formats of GGUF store them.

    Blocked.scale is `product(outer, inner)`, Blocked.minimum `-product(outer_minimum,
    inner_minimum)`. outer: float16 [rows, columns / 256]. inner: int8 or uint8 [rows, columns /
    group]. The minimums have the same shapes, or are None where there are none.
    """

    outer: NDArray[np.float16]
    inner: NDArray[Any]
    outer_minimum: NDArray[np.float16] | None = None
    inner_minimum: NDArray[Any] | None = None


def product(outer: NDArray[np.float16], inner: NDArray[Any]) -> Floats:
    """Both levels multiplied, [rows, columns / group]: exact, as 11 bits times 8 fit float32."""
    each = inner.shape[1] // outer.shape[1]
    result: Floats = np.repeat(outer.astype(np.float32), each, axis=1) * inner.astype(np.float32)
    return result


@dataclass(frozen=True)
class Blocked:
    """A matrix whose rows are cut in groups of `group` columns that share a scale.

    value[r, c] = scale[r, c // group] * (codes[r, c] - zero) + minimum[r, c // group]

    codes: uint8 [rows, columns], one code per byte, below 2**bits. scale: float32
    [rows, columns / group]. minimum: the same, or None where there is none. zero: one integer.
    levels: the factors of scale and minimum, where these have two levels.
    """

    codes: NDArray[np.uint8]
    scale: Floats
    minimum: Floats | None
    bits: int
    group: int
    zero: int
    levels: Levels | None = None

    def to_dense(self) -> Floats:
        """Float32 [rows, columns], each product rounded once, as the GGUF reference does."""
        rows, columns = self.codes.shape
        groups = self.codes.reshape(rows, columns // self.group, self.group)
        values = groups.astype(np.float32)
        values -= np.float32(self.zero)
        values *= self.scale[:, :, None]
        if self.minimum is not None:
            values += self.minimum[:, :, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True)
class Weight:
    """A named parameter. shape: rows (outputs) first. load: reads and decodes it, each time.

    `stored_as` is the format in the checkpoint (`F32`, `BF16`, `Q4_1`, ...). sensitive: rounding
    it, or what it multiplies, costs much; an emitter may keep both in floats where that is cheap.
    vocabulary: it has a row for every token, as tables of tokens and heads do.
    """

    name: str
    shape: tuple[int, ...]
    stored_as: str
    load: Callable[[], Dense | Blocked]
    sensitive: bool = False
    vocabulary: bool = False

    def dense(self) -> Floats:
        """The values as float32."""
        data = self.load()
        if isinstance(data, Blocked):
            return data.to_dense()
        return np.asarray(data.values, np.float32)

    def take_rows(self, index: NDArray[np.int64] | slice, name: str) -> Weight:
        """The rows of `index` (outputs), in that order; blocks stay as they are."""

        def load() -> Dense | Blocked:
            data = self.load()
            if isinstance(data, Dense):
                return Dense(np.ascontiguousarray(data.values[index]))
            return _combine([data], lambda arrays: np.ascontiguousarray(arrays[0][index]))

        rows = len(np.arange(self.shape[0])[index])
        shape = (rows, *self.shape[1:])
        return Weight(name, shape, self.stored_as, load, vocabulary=self.vocabulary)

    def map(self, change: Callable[[Floats], Floats], shape: tuple[int, ...], name: str) -> Weight:
        """A float32 function of the values (transpose, add one); blocks are decoded."""
        return Weight(name, shape, "F32", lambda: Dense(change(self.dense())))


def of_vocabulary(weight: Weight) -> Weight:
    """The same weight, known to have a row for every token."""
    return replace(weight, vocabulary=True)


def by_row(weight: Weight) -> Weight:
    """A convolution's weight [out, in, width] as a matrix [out, width * in]: of rows side by side,
    the first one first."""
    outputs, inputs, width = weight.shape

    def change(values: Floats) -> Floats:
        return np.ascontiguousarray(values.transpose(0, 2, 1)).reshape(outputs, -1)

    return weight.map(change, (outputs, width * inputs), f"{weight.name}.by_row")


def dense_weight(name: str, values: NDArray[np.float32]) -> Weight:
    """A weight from an array in memory."""
    return Weight(name, values.shape, "F32", lambda: Dense(values))


def _combine(
    parts: Sequence[Blocked], join: Callable[[list[NDArray[Any]]], NDArray[Any]]
) -> Blocked:
    """Blocks of one form as one: `join` gets the arrays that stand in the same place."""

    def optional(arrays: list[Any]) -> Any:
        return None if any(array is None for array in arrays) else join(arrays)

    levels = [part.levels for part in parts if part.levels is not None]
    together = None
    if len(levels) == len(parts):
        together = Levels(
            join([each.outer for each in levels]),
            join([each.inner for each in levels]),
            optional([each.outer_minimum for each in levels]),
            optional([each.inner_minimum for each in levels]),
        )
    return Blocked(
        join([part.codes for part in parts]),
        join([part.scale for part in parts]),
        optional([part.minimum for part in parts]),
        parts[0].bits,
        parts[0].group,
        parts[0].zero,
        together,
    )


def concat_rows(parts: Sequence[Weight], name: str | None = None) -> Weight:
    """The rows of `parts` one after another; blocks stay as they are where all agree in form.

    name: the names of the parts, joined by "+", unless given.
    """

    def load() -> Dense | Blocked:
        loaded = [part.load() for part in parts]
        blocked = [data for data in loaded if isinstance(data, Blocked)]
        forms = {(data.bits, data.group, data.zero, data.minimum is None) for data in blocked}
        if len(blocked) < len(loaded) or len(forms) != 1:
            values = [p.to_dense() if isinstance(p, Blocked) else p.values for p in loaded]
            return Dense(np.concatenate(values))
        return _combine(blocked, np.concatenate)

    rows = sum(part.shape[0] for part in parts)
    formats = dict.fromkeys(part.stored_as for part in parts)
    name = "+".join(part.name for part in parts) if name is None else name
    return Weight(name, (rows, *parts[0].shape[1:]), "+".join(formats), load)


def join_biases(pairs: Sequence[tuple[Weight, Weight | None]]) -> Weight | None:
    """The biases one after the other, zeros where there is none; None if there are none at all."""
    if all(bias is None for _, bias in pairs):
        return None
    return concat_rows(
        [
            bias or dense_weight(f"{weight.name}.no_bias", np.zeros(weight.shape[0], np.float32))
            for weight, bias in pairs
        ]
    )
