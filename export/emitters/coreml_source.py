"""Encoder-decoder models as MIL: an encoder, and a decoder that is given its memory.

A memory has a tensor of keys and one of values for every layer of the decoder, [kv_heads, rows,
head_dim] in the compute type: outputs of the encoder, inputs of every function of the target. All
shapes are fixed, so a bias masks rows that the source does not fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb

from quickdraft.errors import UnsupportedModel
from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.coreml_ops import CoremlOps, mask_name
from quickdraft.export.emitters.coreml_weights import Constants, Var
from quickdraft.export.emitters.numpy import Recorder
from quickdraft.export.ops import Attention, RelativeBias
from quickdraft.export.weights import Weight
from quickdraft.manifest import FixedStateLayout, RowsLayout, StaticStep
from quickdraft.types import SourceSpec

MEMORY_LAYOUT = RowsLayout(
    kind="rows",
    alignment=1,
    past_key="memory_{layer}_key",
    past_value="memory_{layer}_value",
    present_key="present_memory_{layer}_key",
    present_value="present_memory_{layer}_value",
)
SOURCE_ROWS = (64, 256, 1024)
"""Rows of the functions that read sources; a target reads memories of the last one's."""


@dataclass(frozen=True)
class Reading:
    """A function that reads sources. rows: of the memory that it puts out; frames: that it reads,
    tokens or features. masks: whether a source may fill less than that."""

    name: str
    rows: int
    frames: int
    masks: bool


def readings(source: SourceSpec, family: str) -> tuple[Reading, ...]:
    """The functions of an encoder, rising.

    Raises:
        UnsupportedModel: the source is frames, of any number.
    """
    if source.fixed:
        rows = source.rows(source.length)
        return (Reading(f"encode_{rows}", rows, source.length, masks=False),)
    if source.width:
        # Zeros behind the last frame would no longer be zeros after the first convolution.
        raise UnsupportedModel(
            f"{family} reads any number of frames, and Core ML packages a fixed one; export it "
            "with --format hotpath, onnx or openvino"
        )
    longest = min(source.length, SOURCE_ROWS[-1])
    every = (*(rows for rows in SOURCE_ROWS if rows < longest), longest)
    return tuple(Reading(f"encode_{rows}", rows, rows, masks=True) for rows in every)


def has_distances(part: Part) -> bool:
    """Whether scores of a part depend on how far apart rows are."""
    recorder = Recorder()
    part.build(recorder)
    return any("relative" in line["weights"] for line in recorder.instructions)


class CoremlSourceOps(CoremlOps):
    """Emits one step of the target of an encoder, or, given a Reading, of the encoder itself."""

    def __init__(
        self,
        inputs: Mapping[str, Var],
        constants: Constants,
        part: Part,
        layout: FixedStateLayout | Reading,
        step: StaticStep,
    ) -> None:
        self._encodes = isinstance(layout, Reading)
        if isinstance(layout, Reading):
            layout = _without_states(layout, step)
        super().__init__(inputs, constants, part, layout, step)
        self._source_bias = inputs.get("source_bias")

    def stage(self, k: Var, v: Var, attention: Attention) -> None:
        """Put out the memory of a layer."""
        if not self._encodes:
            super().stage(k, v, attention)
            return
        names = (MEMORY_LAYOUT.present_key, MEMORY_LAYOUT.present_value)
        for rows, name in zip((k, v), names, strict=True):
            self._result(name.format(layer=attention.layer), self._by_head(rows, attention))

    def encode_attend(self, q: Var, k: Var, v: Var, attention: Attention) -> Var:
        """Attention over the rows themselves."""
        keys, values = (self._by_head(rows, attention) for rows in (k, v))
        bias = self._source_bias
        if attention.relative is not None:
            relative = self._by_distance(attention.relative, attention)
            bias = relative if bias is None else mb.add(x=relative, y=bias)
        return self._mix(q, keys, values, attention, bias)

    def cross_attend(self, q: Var, attention: Attention) -> Var:
        """Attention over the memory of a layer."""
        names = (MEMORY_LAYOUT.past_key, MEMORY_LAYOUT.past_value)
        keys, values = (self._inputs[name.format(layer=attention.layer)] for name in names)
        return self._mix(q, keys, values, attention, self._source_bias)

    def conv1d(self, x: Var, weight: Weight, bias: Weight | None, stride: int) -> Var:
        """A convolution over the last axis; its weights are few and stay dense."""
        half = weight.shape[2] // 2
        columns = mb.expand_dims(x=mb.transpose(x=x, perm=[1, 0]), axes=[0])
        extra = {} if bias is None else {"bias": self._constants.vector(bias)}
        found = mb.conv(
            x=columns,
            weight=self._constants.array(f"{weight.name}.dense", weight.dense),
            strides=[stride],
            pad_type="custom",
            pad=[half, half],
            **extra,
        )
        rows = mb.reshape(x=found, shape=list(found.shape[1:]))
        return mb.transpose(x=rows, perm=[1, 0])

    def _by_head(self, rows: Var, a: Attention) -> Var:
        shaped = mb.reshape(x=rows, shape=[self._rows, a.num_kv_heads, a.head_dim])
        return mb.transpose(x=shaped, perm=[1, 0, 2])

    # Relative positions

    def _score_bias(self, a: Attention) -> Var:
        """The mask, and in rows that are seen the bias of their distance."""
        mask = self._inputs[mask_name(a.window)]
        if a.relative is None:
            return mask
        key = ("masked", a.relative, a.window)
        if key not in self._memo:
            self._memo[key] = mb.add(x=self._by_distance(a.relative, a), y=mask)
        return self._memo[key]

    def _by_distance(self, relative: RelativeBias, a: Attention) -> Var:
        """Biases by distance, [kv_heads, group, rows, rows seen]; shared by all layers."""
        key = ("relative", relative)
        if key not in self._memo:
            reach, distances = np.int32(relative.max_distance), self._distances()
            near = mb.maximum(x=mb.minimum(x=distances, y=reach), y=-reach)
            table = relative.by_distance()
            rows = mb.gather(
                x=self._constants.array(table.name, table.dense),
                indices=mb.add(x=near, y=reach),
                axis=1,
                validate_indices=False,
            )
            shape = [a.num_kv_heads, a.num_heads // a.num_kv_heads, *rows.shape[1:]]
            self._memo[key] = mb.reshape(x=rows, shape=shape)
        return self._memo[key]

    def _distances(self) -> Any:
        """Positions of what is seen less those of the rows, int32 [rows, rows seen]."""
        if not self._encodes:
            return self._inputs["distances"]
        row, column = (mb.expand_dims(x=self.positions(), axes=[axis]) for axis in (0, 1))
        return mb.sub(x=row, y=column)


def _without_states(reading: Reading, step: StaticStep) -> FixedStateLayout:
    """For a part that has no cache: as long as what it reads."""
    rows = reading.rows
    return FixedStateLayout("fixed_state", 1, rows, rows, (), (), (step,), "", 0, "")
