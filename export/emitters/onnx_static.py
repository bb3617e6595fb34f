"""The static ONNX emitter: a graph for each fixed number of rows, over one file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickdraft.errors import BackendError
from quickdraft.export.emitters.base import EmitRequest, Part, entries, refuse_sources
from quickdraft.export.emitters.onnx import check_graph
from quickdraft.export.emitters.onnx_graph import DataFile, GraphBuilder
from quickdraft.export.emitters.onnx_static_ops import OnnxStaticOps
from quickdraft.export.emitters.onnx_static_weights import Forms, StaticWeights
from quickdraft.export.emitters.rows import LAYOUT, TARGET_LAYOUT, static_sizes
from quickdraft.manifest import StepNames, Variant

if TYPE_CHECKING:
    import onnx_ir as ir

DATA = "static.onnx_data"


def emit_onnx_static(request: EmitRequest) -> list[Variant]:
    """Write `onnx/NAME.ROWS.onnx` for every width of every part, and `onnx/static.onnx_data`.

    Raises:
        UnsupportedModel: it is an encoder-decoder model.
        BackendError: the checker found a graph invalid, or with a dimension that is not fixed (a
            fault of ours).
    """
    refuse_sources(request, "onnx-static")
    folder = request.folder / "onnx"
    folder.mkdir(exist_ok=True)
    data = DataFile(folder / DATA)
    try:
        return [_emit(part, folder, request, data) for part in request.parts]
    finally:
        data.close()


def _emit(part: Part, folder: Path, request: EmitRequest, data: DataFile) -> Variant:
    fmt = part.fmt or request.fmt
    every, capacity = static_sizes(part, request.shapes)
    placed: dict[str, ir.ExternalTensor] = {}
    forms: Forms = {}
    widths: dict[int, str] = {}
    for rows, sizes in every.items():
        graph = GraphBuilder(data, placed)
        ops = OnnxStaticOps(part, graph, StaticWeights(graph, fmt, forms), sizes)
        part.build(ops)
        model = folder / f"{part.name}.{rows}.onnx"
        step: StepNames = ops.finish(model)
        data.flush()  # the checker looks whether tensors lie inside of it
        fix_shapes(model)
        check_graph(model)
        widths[rows] = f"onnx/{model.name}"
    details: dict[str, Any] = entries(part, request.folder, TARGET_LAYOUT)
    return Variant(
        target_format="onnx",
        flavour="static",
        weight_format=fmt.name,
        model=widths[min(widths)],
        files=(*widths.values(), f"onnx/{DATA}"),
        step=step,
        cache=LAYOUT,
        # Products of other numbers of rows round differently, and so do devices.
        guarantee="same_distribution",
        widths=widths,
        capacity=capacity,
        **details,
    )


def fix_shapes(path: Path) -> None:
    """Write the shape of every value into a graph, where providers look for it.

    Raises:
        BackendError: one has none, or a dimension of it is not fixed (a fault of ours).
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    for name in (name for node in graph.node for name in node.output):
        sizes = known[name].type.tensor_type.shape.dim if name in known else ()
        if name not in known or not all(size.HasField("dim_value") for size in sizes):
            raise BackendError(f"{path.name} has no fixed shape for {name}")
    onnx.save(model, str(path))
