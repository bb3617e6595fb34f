"""The OpenVINO emitters: one graph a part for any number of rows, or one for each fixed number.

Both are the same graph but for its dimensions. Those of the static flavour, which NPUs need, share
one file of weights.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickdraft.errors import BackendError, MissingExtra
from quickdraft.export.emitters.base import (
    EmitRequest,
    Part,
    entries,
)
from quickdraft.export.emitters.rows import LAYOUT, TARGET_LAYOUT, Sizes, static_sizes
from quickdraft.manifest import StepNames, Variant
from quickdraft.static_shapes import StaticShapes

try:
    import openvino as ov

    from quickdraft.export.emitters.openvino_ops import OpenVinoOps
    from quickdraft.export.emitters.openvino_source import (
        MEMORY_LAYOUT,
        OpenVinoSourceOps,
        source_sizes,
    )
    from quickdraft.export.emitters.openvino_weights import WeightStore
except ImportError:  # reported when something is exported, with the extra to install
    ov = None


def emit_openvino(request: EmitRequest) -> list[Variant]:
    """Write `openvino/NAME.xml` and `openvino/NAME.bin` for every part.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    folder = _folder(request)
    return [_emit_portable(part, folder, request) for part in request.parts]


def emit_openvino_static(request: EmitRequest) -> list[Variant]:
    """Write `openvino/NAME.ROWS.xml` for every width, and `openvino/NAME.static.bin`, for every
    part.

    Raises:
        MissingExtra: OpenVINO is not installed.
        UnsupportedModel: it is an encoder of any number of frames.
        OptionError: a part cannot have the shapes that are asked for.
        BackendError: two widths would not read the same weights (a fault of ours).
    """
    folder = _folder(request)
    return [_emit_static(part, folder, request) for part in request.parts]


def _folder(request: EmitRequest) -> Path:
    if ov is None:
        raise MissingExtra("openvino", "openvino")
    folder = request.folder / "openvino"
    folder.mkdir(exist_ok=True)
    return folder


def _emit_portable(part: Part, folder: Path, request: EmitRequest) -> Variant:
    store = WeightStore(part.fmt or request.fmt)
    xml, binary = folder / f"{part.name}.xml", folder / f"{part.name}.bin"
    step = _write(part, store, Sizes(), xml, binary)
    return _variant(part, request, step, flavour="portable", model=xml.name, files=[binary.name])


def _emit_static(part: Part, folder: Path, request: EmitRequest) -> Variant:
    store = WeightStore(part.fmt or request.fmt)
    every, capacity = _static_sizes(part, request.shapes)
    binary = folder / f"{part.name}.static.bin"
    again = folder / f"{part.name}.again.bin"
    widths: dict[int, str] = {}
    for rows, sizes in every.items():
        xml = folder / f"{part.name}.{rows}.xml"
        step = _write(part, store, sizes, xml, again if widths else binary)
        if widths and not filecmp.cmp(binary, again, shallow=False):
            raise BackendError(f"the graphs of {part.name} do not read the same weights")
        again.unlink(missing_ok=True)
        widths[rows] = f"openvino/{xml.name}"
    files = [binary.name, *(Path(name).name for name in widths.values())]
    model = Path(widths[min(widths)]).name
    more = {"widths": widths, "capacity": capacity}
    return _variant(part, request, step, flavour="static", model=model, files=files, **more)


def _static_sizes(part: Part, shapes: StaticShapes) -> tuple[dict[int, Sizes], int]:
    """Dimensions of the static graphs of a part by their rows, and slots of its cache; of an
    encoder, rows of the memory that its target reads."""
    read = source_sizes(part) if _with_source(part) else {}
    if part.role == "encoder":
        return read, max(read)
    return static_sizes(part, shapes, max(read, default=None))


def _with_source(part: Part) -> bool:
    return part.role == "encoder" or part.spec.source is not None


def _write(part: Part, store: WeightStore, sizes: Sizes, xml: Path, binary: Path) -> StepNames:
    """Build a graph and write it with its weights."""
    ops = (OpenVinoSourceOps if _with_source(part) else OpenVinoOps)(part, store, sizes)
    part.build(ops)
    model, step = ops.finish()
    ov.serialize(model, str(xml), str(binary))
    return step


def _variant(
    part: Part,
    request: EmitRequest,
    step: StepNames,
    *,
    flavour: Any,
    model: str,
    files: list[str],
    **more: Any,
) -> Variant:
    names = dict.fromkeys([f"openvino/{model}", *(f"openvino/{name}" for name in files)])
    details: Mapping[str, Any] = entries(part, request.folder, TARGET_LAYOUT)
    return Variant(
        target_format="openvino",
        flavour=flavour,
        weight_format=(part.fmt or request.fmt).name,
        model=f"openvino/{model}",
        files=tuple(names),
        step=step,
        # What an encoder puts out is counted in rows, not in slots of a cache.
        cache=MEMORY_LAYOUT if part.role == "encoder" else LAYOUT,
        memory=MEMORY_LAYOUT if _with_source(part) else None,
        # Its products round differently for different numbers of rows (docs/openvino.md).
        guarantee="same_distribution",
        **details,
        **more,
    )
