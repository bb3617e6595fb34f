"""Graphs that lie, behind sound hashes: ONNX Runtime refuses them, and that is a BackendError.

What a bundle's opening refuses before the engine sees a graph is in test_onnx_references.py.
Numbers are those of docs/bad-inputs.md.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny.models import write_tiny_model

from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.onnxruntime import OnnxRuntimeBackend

Model = Any  # onnx.ModelProto, which has no types


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("sound") / "bundle"
    return folder, write_tiny_model(folder, formats=("onnx",))


def constant(model: Model, name: str, *values: int) -> str:
    tensor = numpy_helper.from_array(np.array(values, np.int64), name)
    model.graph.initializer.append(tensor)
    return name


def weight(model: Model) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def external(key: str, value: int | str) -> Callable[[Model], None]:
    """Say something else of where the first weight lies."""

    def change(model: Model) -> None:
        entries = {entry.key: entry for entry in weight(model).external_data}
        entries[key].value = str(value)

    return change


def shape(*sizes: int) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        weight(model).dims[:] = sizes

    return change


def cycle(model: Model) -> None:
    product = next(node for node in model.graph.node if node.op_type == "FusedMatMul")
    product.input[0] = model.graph.node[-2].output[0]


def far_index(model: Model) -> None:
    rows = next(node for node in model.graph.node if "output_rows" in node.input)
    inputs = [rows.input[0], constant(model, "far", *[99_999] * 3)]
    rows.input[:] = inputs


def endless_constant(model: Model) -> None:
    model.graph.node[-1].output[0] = "modest"
    model.graph.node.append(
        helper.make_node("ConstantOfShape", [constant(model, "size", 1 << 40)], ["endless"])
    )
    model.graph.node.append(helper.make_node("ReduceSum", ["endless"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["modest", "sum"], ["logits"]))


def foreign_op(model: Model) -> None:
    model.graph.node[0].domain = "quickdraft.unknown"
    model.opset_import.append(helper.make_opsetid("quickdraft.unknown", 1))


def future(model: Model) -> None:
    model.opset_import[0].version = 9_999


def another_rank(model: Model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 3


def narrow_logits(model: Model) -> None:
    model.graph.node[-1].output[0] = "wide"
    bounds = [constant(model, f"slice{n}", value) for n, value in enumerate((0, 100, 1))]
    model.graph.node.append(helper.make_node("Slice", ["wide", *bounds], ["logits"]))
    output = next(each for each in model.graph.output if each.name == "logits")
    output.type.tensor_type.ClearField("shape")


LIES: dict[str, Callable[[Model], None]] = {
    "29-offset-past-the-end": external("offset", 1 << 40),
    "29-offset-negative": external("offset", -4096),
    "29-offset-beyond-64-bits": external("offset", 1 << 64),
    "29-offset-is-text": external("offset", "abc"),
    "29-length-above-the-file": external("length", 1 << 40),
    "29-length-below-the-tensor": external("length", 16),
    "31-cycle": cycle,
    "33-product-of-dimensions-wraps": shape(1 << 32, 1 << 32),
    "33-negative-dimension": shape(-1, 32),
    "34-constant-of-2-40-elements": endless_constant,
    "35-index-outside": far_index,
    "36-unknown-domain": foreign_op,
    "38-newer-opset": future,
    "39-another-rank": another_rank,
    "40-logits-narrower-than-the-vocabulary": narrow_logits,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_graph_is_a_backend_error(
    lie: str, sound: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = sound
    variant = manifest.roles["target"][0]
    model = onnx.load(folder / variant.model, load_external_data=False)
    LIES[lie](model)
    for name in variant.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / variant.model).write_bytes(model.SerializeToString())
    started = time.process_time()
    with pytest.raises(BackendError, match="onnxruntime"):
        step(OnnxRuntimeBackend(tmp_path, manifest.model, variant))
    assert time.process_time() - started < 2


def step(backend: OnnxRuntimeBackend) -> None:
    """Lies about data that no shape gives away come out in the first step."""
    try:
        backend.step(Tree.chain([1, 2, 3]), backend.new_cache())
    finally:
        backend.close()


def test_the_unchanged_graph_runs(sound: tuple[Path, Manifest]) -> None:
    folder, manifest = sound
    step(OnnxRuntimeBackend(folder, manifest.model, manifest.roles["target"][0]))
