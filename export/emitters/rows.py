"""What graphs share that read a cache and give the rows of a step back, in whatever format.

The cache is outside the graph: a step reads the committed rows of every layer, head by head, and
gives its own rows back. So nothing of a cache is copied, going back is a length, and one graph
serves devices with and without writable inputs. Where every dimension is fixed, the graphs of
several widths are one graph but for these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraft.export.emitters.base import Part, check_staged
from quickdraft.export.emitters.composed import ComposedOps, V
from quickdraft.export.ops import Attention, Rope
from quickdraft.export.weights import Floats
from quickdraft.manifest import RowsLayout, StepNames
from quickdraft.static_shapes import StaticShapes

ALIGNMENT = 64
LAYOUT = RowsLayout(
    kind="rows",
    alignment=ALIGNMENT,
    past_key="past_key_values.{layer}.key",
    past_value="past_key_values.{layer}.value",
    present_key="present.{layer}.key",
    present_value="present.{layer}.value",
)
TARGET_LAYOUT = RowsLayout(
    kind="rows",
    alignment=ALIGNMENT,
    past_key="target.{layer}.key",
    past_value="target.{layer}.value",
    present_key="present_target.{layer}.key",
    present_value="present_target.{layer}.value",
)
"""The cache that a predictor writes; it reads nothing of it."""

WIDTHS = (1, 4, 8, 16)
"""Rows of the graphs that verify; one row more than a draft has."""
PREFILL = 128
"""Rows of the graph that reads prompts."""
SPARE = 32
"""Slots beyond the context, for the nodes of a tree."""
LONGEST = 4096
"""Most slots of a static cache, unless more are asked for: a step reads them all, however few are
taken."""
LONGEST_ANSWER = 1024
"""The same of an encoder-decoder model, whose cache holds no prompt."""


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a step, None where they are dynamic. rows: of the step; wanted: of them, those
    with logits; slots: of the cache. memory: rows that a target of an encoder reads. frames: that
    the encoder itself reads, tokens or features; rows are then those of its memory."""

    rows: int | None = None
    wanted: int | None = None
    slots: int | None = None
    memory: int | None = None
    frames: int | None = None

    @property
    def seen(self) -> int | None:
        """Columns of a bias: the cache, then the rows of the step."""
        return None if self.rows is None or self.slots is None else self.slots + self.rows


def static_sizes(
    part: Part, shapes: StaticShapes, memory: int | None = None
) -> tuple[dict[int, Sizes], int]:
    """Dimensions of the static graphs of a part by their rows, and slots of its cache. shapes: what
    is asked for. memory: rows that a target of an encoder reads.

    Raises:
        OptionError: they cannot be had.
    """
    widths, prefill = shapes.rows(WIDTHS, PREFILL)
    longest = LONGEST
    if part.spec.source is not None:
        shapes, longest = replace(shapes, longest_cache=None), LONGEST_ANSWER
    wanted = shapes.length(part.spec.context_length, longest - SPARE) + SPARE
    capacity = -(-wanted // ALIGNMENT) * ALIGNMENT
    sizes = {rows: Sizes(rows, rows, capacity, memory) for rows in widths}
    # The prefill wants the logits of one row at most, and those of many are most of its time.
    return {**sizes, prefill: Sizes(prefill, 1, capacity, memory)}, capacity


def turn_table(rope: Rope, places: NDArray[Any], factor: float) -> Floats:
    """Cosines and then sines of the angles of places, times a factor: float32 [places, 2 * pairs].

    Graphs read their rows: a device that computes in float16 holds no position above 2048 exactly,
    and the cosine of an angle that is off by one is any number.
    """
    frequencies = np.asarray(rope.frequencies, np.float32).astype(places.dtype)
    angles = places[:, None] * frequencies
    both = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return np.asarray(both, np.float32) * np.float32(factor)


class RowsOps(ComposedOps[V], ABC):
    """Names, shapes and order of the inputs and outputs of a step of a part.

    A subclass makes inputs and outputs of its own kind, and computes.
    """

    def __init__(self, part: Part, sizes: Sizes) -> None:
        self._part = part
        self._sizes = sizes
        self._biases: dict[int | None, str] = {}
        self._staged: set[int] = set()
        self._hidden: dict[int, str] = {}
        self._levels = 1
        self._positions = self._input("position_ids", np.int64, [sizes.rows])

    @abstractmethod
    def _input(self, name: str, kind: Any, shape: Sequence[int | None]) -> V:
        """The input `name`, made when it is first asked for. kind: np.int64 or np.float32."""

    @abstractmethod
    def _output(self, value: V, name: str, shape: Sequence[int | None]) -> None:
        """Make a float32 value the output `name`."""

    @abstractmethod
    def _by_head(self, rows: V, a: Attention) -> V:
        """[n, kv_heads * head_dim] to [kv_heads, n, head_dim]."""

    def tokens(self) -> V:
        """Token ids, [n]."""
        return self._input("input_ids", np.int64, [self._sizes.rows])

    def positions(self) -> V:
        """Positions, [n]."""
        return self._positions

    def output_rows(self) -> V:
        """Rows whose logits are wanted, [m]; of a stack so many of each value."""
        return self._input("output_rows", np.int64, [self._wanted])

    @property
    def _wanted(self) -> int | None:
        wanted = self._sizes.wanted
        return wanted and wanted * self._levels

    def features(self) -> V:
        """Vectors that come with the tokens, [n, width]."""
        return self._input("features", np.float32, [self._sizes.rows, self._part.features])

    def hidden_state(self, x: V, layer: int) -> None:
        """Emit the residual stream if this layer was asked for."""
        if layer in self._part.hidden_states:
            self._hidden[layer] = f"hidden_states.{layer}"
            shape = [self._sizes.rows, self._part.spec.hidden_size]
            self._output(x, self._hidden[layer], shape)

    def logits(self, x: V) -> None:
        """Name the result."""
        self._output(x, "logits", [self._wanted, self._part.spec.vocab_size])

    def stage(self, k: V, v: V, attention: Attention) -> None:
        """Give k and v as rows of the target's cache."""
        self._staged.add(attention.layer)
        self._present(k, v, attention, TARGET_LAYOUT)

    def _present(self, k: V, v: V, a: Attention, layout: RowsLayout) -> tuple[V, V]:
        """Rows of the step by head, [kv_heads, n, head_dim], also given back."""
        found = []
        for rows, name in ((k, layout.present_key), (v, layout.present_value)):
            found.append(self._by_head(rows, a))
            shape = [a.num_kv_heads, self._sizes.rows, a.head_dim]
            self._output(found[-1], name.format(layer=a.layer), shape)
        return found[0], found[1]

    def _past(self, a: Attention) -> tuple[V, V]:
        shape = [a.num_kv_heads, self._sizes.slots, a.head_dim]
        names = (LAYOUT.past_key, LAYOUT.past_value)
        key, value = (self._input(name.format(layer=a.layer), np.float32, shape) for name in names)
        return key, value

    def _bias(self, window: int | None) -> V:
        """The bias of one window, [n, slots + n]."""
        name = "attention_bias" if window is None else f"attention_bias.window_{window}"
        self._biases[window] = name
        return self._input(name, np.float32, [self._sizes.rows, self._sizes.seen])

    def _finish_inputs(self) -> StepNames:
        """Make the inputs that nothing has read; how all are called.

        Raises:
            BackendError: a predictor leaves out a layer of its target (a fault of its builder).
        """
        part = self._part
        if part.role != "encoder" or not part.features:
            self.tokens()
        if part.target is not None:
            check_staged(part, self._staged)
        else:
            self.output_rows()
        if part.features:
            self.features()
        return StepNames(
            tokens="input_ids",
            positions="position_ids",
            output_rows="output_rows" if part.target is None else None,
            logits="logits" if part.target is None else None,
            biases=self._biases,
            hidden_states=self._hidden,
            features="features" if part.features else None,
        )
