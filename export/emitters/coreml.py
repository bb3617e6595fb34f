"""The Core ML emitter: an ML program for iOS 18 and macOS 15, built with coremltools' MIL builder.

`coreml/NAME.mlpackage` of a part holds one function per number of rows, all over the same weights
and states, and one that moves rows of the states. coremltools runs on Linux and macOS; torch is
not needed.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.errors import MissingExtra, UnsupportedModel
from quickdraft.export.emitters.base import EmitRequest, Part, entries
from quickdraft.export.quantize import WeightFormat
from quickdraft.manifest import FixedStateLayout, StaticStep, StepNames, Variant
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes
from quickdraft.types import WIDE_FAMILIES

SPECIFICATION = 9
"""Of iOS 18 and macOS 15: the first with states and several functions."""
VERIFY_ROWS = (1, 4, 8, 16)
PREFILL_ROWS = 64
MOVE_ROWS = 16
CACHE_LENGTH = 4096
"""Rows of a conversation, where the model's context is longer: every step attends over all slots,
so a longer cache costs even those who do not fill it."""
ANSWER_LENGTH = 1024
"""The same of an encoder-decoder model, whose cache holds no prompt."""
_FILES = (
    "Manifest.json",
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
)


def emit_coreml(request: EmitRequest) -> list[Variant]:
    """Write `coreml/NAME.mlpackage` for every part.

    int4, int8 and GGUF blocks stay blocks, and what is computed is float16; with `fp32`, and for
    WIDE_FAMILIES always, float32, which runs on the CPU and GPU.

    Raises:
        UnsupportedModel: a part is a predictor, or an encoder of any number of frames.
        OptionError: a weight does not fit float16, or a part cannot have the shapes that are asked
            for. MissingExtra: coremltools is not installed.
    """
    with _quiet():
        try:
            import coremltools  # noqa: F401
        except ImportError as error:
            raise MissingExtra("coremltools", "coreml") from error
        for part in request.parts:
            if part.role not in ("target", "drafter", "auxiliary", "encoder", "judge"):
                raise UnsupportedModel(
                    f"the part {part.name!r} is of the role {part.role!r}, which Core ML packages "
                    "cannot hold yet; export it to another format, such as onnx"
                )
        (request.folder / "coreml").mkdir(exist_ok=True)
        return [
            (_emit_encoder if part.role == "encoder" else _emit)(part, request)
            for part in request.parts
        ]


def layout_of(
    part: Part, dtype: type[np.floating], shapes: StaticShapes = EMITTERS_OWN
) -> FixedStateLayout:
    """The states of a part: as long as its context, up to CACHE_LENGTH or ANSWER_LENGTH where no
    other `shapes` are asked for, and behind it room for a tree and for the rows that fill a step
    up."""
    widths, prefill = shapes.rows(VERIFY_ROWS, PREFILL_ROWS)
    longest = CACHE_LENGTH
    if part.spec.source is not None:
        shapes, longest = replace(shapes, longest_cache=None), ANSWER_LENGTH
    length = shapes.length(part.spec.context_length, longest)
    both = ("", "_rest") if dtype is np.float32 else ("",)
    steps = [StaticStep(f"verify_{rows}", rows, rows) for rows in widths]
    steps.append(StaticStep(f"prefill_{prefill}", prefill, 1))
    return FixedStateLayout(
        kind="fixed_state",
        alignment=1,
        length=length,
        slots=length + 2 * max(prefill, PREFILL_ROWS),
        keys=tuple(f"keys{suffix}" for suffix in both),
        values=tuple(f"values{suffix}" for suffix in both),
        steps=tuple(steps),
        move="move",
        move_rows=MOVE_ROWS,
        source="source",
    )


def _emit(part: Part, request: EmitRequest) -> Variant:
    from quickdraft.export.emitters import coreml_program
    from quickdraft.export.emitters.coreml_source import MEMORY_LAYOUT

    fmt = part.fmt or request.fmt
    dtype = _dtype(part, fmt)
    layout = layout_of(part, dtype, request.shapes)
    package = f"coreml/{part.name}.mlpackage"
    program = coreml_program.build(part, fmt, dtype, layout)
    coreml_program.write(program, request.folder / package, SPECIFICATION)
    facts = {
        "family": part.spec.family,
        "weights": fmt.name,
        "role": part.role,
        "part": part.name,
        "cache_length": layout.length,
        "rows": [step.rows for step in layout.steps],
    }
    _describe(request.folder / package / _FILES[1], part, facts)
    files = tuple(f"{package}/{name}" for name in _FILES)
    return Variant(
        target_format="coreml",
        flavour="static",
        weight_format=fmt.name,
        model=files[1],
        files=files,
        step=_names(part),
        cache=layout,
        memory=MEMORY_LAYOUT if part.spec.source is not None else None,
        widths={step.rows: files[1] for step in layout.steps},
        capacity=layout.slots,
        guarantee="same_distribution",
        # A part beside the target that writes no cache but its own.
        **entries(part, request.folder, layout),
    )


def _emit_encoder(part: Part, request: EmitRequest) -> Variant:
    from quickdraft.export.emitters import coreml_program
    from quickdraft.export.emitters.coreml_source import MEMORY_LAYOUT, readings

    assert part.target is not None and part.target.source is not None  # noqa: S101, PT018
    fmt = part.fmt or request.fmt
    functions = readings(part.target.source, part.spec.family)
    package = f"coreml/{part.name}.mlpackage"
    program = coreml_program.build_encoder(part, fmt, _dtype(part, fmt), functions)
    coreml_program.write(program, request.folder / package, SPECIFICATION)
    facts = {
        "family": part.spec.family,
        "weights": fmt.name,
        "role": part.role,
        "part": part.name,
        "rows": [each.rows for each in functions],
    }
    _describe(request.folder / package / _FILES[1], part, facts)
    files = tuple(f"{package}/{name}" for name in _FILES)
    details = {"functions": {str(each.rows): each.name for each in functions}}
    return Variant(
        target_format="coreml",
        flavour="static",
        weight_format=fmt.name,
        model=files[1],
        files=files,
        step=StepNames(
            tokens="" if part.features else "tokens",
            positions="positions",
            features="features" if part.features else None,
            source="source_bias" if functions[-1].masks else None,
        ),
        cache=MEMORY_LAYOUT,
        memory=MEMORY_LAYOUT,
        widths={each.rows: files[1] for each in functions},
        capacity=functions[-1].rows,
        guarantee="same_distribution",
        **{**entries(part, request.folder, MEMORY_LAYOUT), "details": details},
    )


def _dtype(part: Part, fmt: WeightFormat) -> type[np.floating]:
    """What a part computes in."""
    wide = fmt.name == "fp32" or part.spec.family in WIDE_FAMILIES
    return np.float32 if wide else np.float16


def _names(part: Part) -> StepNames:
    from quickdraft.export.emitters.coreml_ops import mask_name
    from quickdraft.export.emitters.coreml_source import has_distances, readings

    source = part.spec.source
    masks = source is not None and readings(source, part.spec.family)[-1].masks
    return StepNames(
        tokens="tokens",
        positions="positions",
        slots="first_slot",
        output_rows="output_rows",
        logits="logits",
        biases={window: mask_name(window) for window in part.spec.distinct_windows},
        hidden_states={layer: f"hidden_states_{layer}" for layer in part.hidden_states},
        features="features" if part.features else None,
        source="source_bias" if masks else None,
        distances="distances" if source is not None and has_distances(part) else None,
    )


def _describe(model: Path, part: Part, facts: dict[str, Any]) -> None:
    """Add what Xcode shows of a model, and what tells where it came from."""
    from coremltools.proto import Model_pb2

    import quickdraft

    spec = Model_pb2.Model()
    spec.ParseFromString(model.read_bytes())
    metadata = spec.description.metadata
    metadata.shortDescription = (
        f"{part.spec.family}, {facts['weights']} weights, a language model as quickdraft runs it: "
        "one function per number of rows, keys and values as states"
    )
    metadata.versionString = quickdraft.__version__
    metadata.author = "quickdraft"
    metadata.userDefined["quickdraft"] = json.dumps(facts)
    model.write_bytes(spec.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of coremltools, and its warnings about what macOS alone has."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
