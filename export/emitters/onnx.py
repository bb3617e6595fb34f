"""The portable ONNX emitter: a graph of standard and contrib ops for every part."""

from __future__ import annotations

from pathlib import Path

from quickdraft.errors import BackendError
from quickdraft.export.emitters.base import EmitRequest, Part, entries
from quickdraft.export.emitters.onnx_graph import DataFile, GraphBuilder
from quickdraft.export.emitters.onnx_ops import LAYOUT, TARGET_LAYOUT, OnnxOps
from quickdraft.export.emitters.onnx_source import MEMORY_LAYOUT, OnnxSourceOps
from quickdraft.export.emitters.onnx_weights import WeightStore
from quickdraft.export.quantize import WeightFormat
from quickdraft.manifest import Variant


def emit_onnx(request: EmitRequest) -> list[Variant]:
    """Write `onnx/NAME.onnx` for every part, checked by onnx's full checker, and their data file.

    Raises:
        BackendError: the checker found a graph invalid (a fault of ours).
    """
    folder = request.folder / "onnx"
    folder.mkdir(exist_ok=True)
    data = DataFile(folder / "model.onnx_data")
    try:
        built = [_build(part, part.fmt or request.fmt, data) for part in request.parts]
    finally:
        data.close()
    return [_finish(ops, part, folder, request) for ops, part in built]


def _build(part: Part, fmt: WeightFormat, data: DataFile) -> tuple[OnnxOps, Part]:
    graph = GraphBuilder(data)
    with_source = part.role == "encoder" or part.spec.source is not None
    ops = (OnnxSourceOps if with_source else OnnxOps)(graph, WeightStore(graph, fmt), part)
    part.build(ops)
    return ops, part


def _finish(ops: OnnxOps, part: Part, folder: Path, request: EmitRequest) -> Variant:
    model = folder / f"{part.name}.onnx"
    step = ops.finish(model)
    check_graph(model)
    return Variant(
        target_format="onnx",
        flavour="portable",
        weight_format=(part.fmt or request.fmt).name,
        model=f"onnx/{part.name}.onnx",
        files=(f"onnx/{part.name}.onnx", "onnx/model.onnx_data"),
        step=step,
        cache=LAYOUT,
        memory=MEMORY_LAYOUT if isinstance(ops, OnnxSourceOps) else None,
        guarantee="bit_identical",
        **entries(part, request.folder, TARGET_LAYOUT),
    )


def check_graph(model: Path) -> None:
    """Have onnx look at a written graph.

    Raises:
        BackendError: it is invalid (a fault of ours).
    """
    import onnx

    try:
        onnx.checker.check_model(str(model), full_check=True)
    except onnx.checker.ValidationError as error:
        raise BackendError(f"the exported graph is not valid ONNX: {error}") from error
