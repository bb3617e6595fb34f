"""MIL programs of several functions: build one for a part, write it as a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools
import numpy as np
from coremltools.converters.mil.converter import mil_convert
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

from quickdraft.export.emitters.base import Part
from quickdraft.export.emitters.coreml_ops import CoremlOps, mask_name, place
from quickdraft.export.emitters.coreml_source import (
    MEMORY_LAYOUT,
    CoremlSourceOps,
    Reading,
    has_distances,
    readings,
)
from quickdraft.export.emitters.coreml_weights import Constants
from quickdraft.export.quantize import WeightFormat
from quickdraft.manifest import FixedStateLayout, StaticStep

OPSET = coremltools.target.iOS18


def build(part: Part, fmt: WeightFormat, dtype: type[np.floating], layout: FixedStateLayout) -> Any:
    """A program with a function for every step of the layout, and the one that moves rows.

    dtype: of what is computed. Returns a coremltools Program.
    """
    program = Program()
    constants = Constants(fmt, dtype)
    for step in layout.steps:
        program.add_function(step.name, _step(part, constants, layout, step))
    program.add_function(layout.move, _move(part, layout))
    return _finished(program, layout.steps[0].name)


def build_encoder(
    part: Part, fmt: WeightFormat, dtype: type[np.floating], functions: tuple[Reading, ...]
) -> Any:
    """The program of an encoder, a function for every Reading. Returns a coremltools Program."""
    program = Program()
    constants = Constants(fmt, dtype)
    for reading in functions:
        program.add_function(reading.name, _read(part, constants, reading))
    return _finished(program, functions[0].name)


def _finished(program: Any, first: str) -> Any:
    program.default_function_name = first
    program.export_as_multifunction = True
    # Nothing is left to fuse or to cast: ops and types are those that Core ML runs.
    program.skip_all_passes = True
    return program


def _step(part: Part, constants: Constants, layout: FixedStateLayout, step: StaticStep) -> Any:
    real = _real(constants)
    inputs: dict[str, Any] = {
        "tokens": mb.TensorSpec((step.rows,), types.int32),
        "positions": mb.TensorSpec((step.rows,), types.int32),
        "first_slot": mb.TensorSpec((1,), types.int32),
        "output_rows": mb.TensorSpec((step.output_rows,), types.int32),
    }
    for window in part.spec.distinct_windows:
        inputs[mask_name(window)] = mb.TensorSpec((step.rows, layout.slots), real)
    if part.features:
        inputs["features"] = mb.TensorSpec((step.rows, part.features), real)
    kind = CoremlOps if part.spec.source is None else CoremlSourceOps
    if part.spec.source is not None:
        inputs |= _memory(part, constants)
        if has_distances(part):
            inputs["distances"] = mb.TensorSpec((step.rows, layout.slots), types.int32)
    constants.start()
    with Function(inputs | _states(part, layout), opset_version=OPSET) as function:
        ops = kind(function.inputs, constants, part, layout, step)
        part.build(ops)
        function.set_outputs(list(ops.outputs().values()))
    return function


def _memory(part: Part, constants: Constants) -> dict[str, Any]:
    """Inputs of a target: the memory of its source."""
    assert part.spec.source is not None  # asked of such targets alone  # noqa: S101
    widest = readings(part.spec.source, part.spec.family)[-1]
    real, inputs = _real(constants), {}
    for layer, heads in enumerate(part.spec.num_kv_heads):
        for name in (MEMORY_LAYOUT.past_key, MEMORY_LAYOUT.past_value):
            shape = (heads, widest.rows, part.spec.head_dim)
            inputs[name.format(layer=layer)] = mb.TensorSpec(shape, real)
    if widest.masks:
        inputs["source_bias"] = mb.TensorSpec((1, widest.rows), real)
    return inputs


def _read(part: Part, constants: Constants, reading: Reading) -> Any:
    """A function of an encoder."""
    real = _real(constants)
    inputs: dict[str, Any] = {"positions": mb.TensorSpec((reading.rows,), types.int32)}
    if part.features:
        inputs["features"] = mb.TensorSpec((reading.frames, part.features), real)
    else:
        inputs["tokens"] = mb.TensorSpec((reading.frames,), types.int32)
    if reading.masks:
        inputs["source_bias"] = mb.TensorSpec((1, reading.rows), real)
    constants.start()
    with Function(inputs, opset_version=OPSET) as function:
        step = StaticStep(reading.name, reading.rows, reading.rows)
        ops = CoremlSourceOps(function.inputs, constants, part, reading, step)
        part.build(ops)
        function.set_outputs(list(ops.outputs().values()))
    return function


def _real(constants: Constants) -> Any:
    return types.fp32 if constants.dtype is np.float32 else types.fp16


def _move(part: Part, layout: FixedStateLayout) -> Any:
    """Copy the slots that `source` names to those from `first_slot` on, in every state."""
    rows, heads = layout.move_rows, sum(part.spec.num_kv_heads)
    inputs = {
        layout.source: mb.TensorSpec((rows,), types.int32),
        "first_slot": mb.TensorSpec((1,), types.int32),
    }
    with Function(inputs | _states(part, layout), opset_version=OPSET) as function:
        slot = function.inputs["first_slot"]
        begin, end = place(slot, rows, (0, heads), part.spec.head_dim)
        for name in (*layout.keys, *layout.values):
            state = function.inputs[name]
            held = mb.read_state(input=state)
            moved = mb.gather(
                x=held, indices=function.inputs[layout.source], axis=1, validate_indices=False
            )
            held = mb.slice_update(x=held, update=moved, begin=begin, end=end)
            mb.coreml_update_state(state=state, value=held)
        # A function must put something out.
        following = mb.add(x=slot, y=np.array([rows], np.int32), name="next_slot")
        function.set_outputs([following])
    return function


def _states(part: Part, layout: FixedStateLayout) -> dict[str, Any]:
    shape = (sum(part.spec.num_kv_heads), layout.slots, part.spec.head_dim)
    names = (*layout.keys, *layout.values)
    return {name: mb.StateTensorSpec(shape, types.fp16) for name in names}


def write(program: Any, package: Path, specification: int) -> None:
    """Write a program as an .mlpackage. specification: version of the format."""
    mil_convert(
        program,
        convert_from="milinternal",
        convert_to="mlprogram",
        specification_version=specification,
        compute_units=coremltools.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
        package_dir=str(package),
        # Passes that are skipped are still each followed by a check of the whole program.
        main_pipeline=coremltools.PassPipeline.EMPTY,
    )
