"""From a checkpoint to a bundle: read, build, emit, check, write; one function per arrow."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

import quickdraft
from quickdraft import registry
from quickdraft.bundle import BundleWriter
from quickdraft.checkpoint_folders import folder_kind
from quickdraft.errors import CheckpointError, OptionError
from quickdraft.export.checkpoints.base import Checkpoint, SourceTokenizer
from quickdraft.export.emitters.base import Emit, EmitRequest, refuse_readers
from quickdraft.export.parts import generation_of, parts_of
from quickdraft.export.quantize import weight_format
from quickdraft.hashes import hash_files
from quickdraft.manifest import (
    EXPORT_REVISION,
    Manifest,
    Role,
    SourceTokenizerEntry,
    TokenizerEntry,
    Variant,
)
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes, is_static
from quickdraft.types import ModelSpec, Progress


def read_checkpoint(source: Path) -> Checkpoint:
    """Read a `.gguf` file or a checkpoint folder; nothing is decoded yet.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    if source.is_dir():
        read: Callable[[Path], Checkpoint] = registry.lookup(
            "kind of checkpoint", registry.CHECKPOINTS, folder_kind(source)
        )
        return read(source)
    if not source.is_file():
        raise CheckpointError(f"{source} is neither a .gguf file nor a checkpoint folder")
    from quickdraft.export.checkpoints.gguf import read_gguf

    return read_gguf(source)


class Contents(TypedDict, total=False):
    """Options of `export_checkpoint`, which says what is taken where one is left out."""

    weights: str
    hidden_states: Sequence[int]
    formats: Sequence[str]
    overwrite: bool
    trained: Sequence[Path]
    shapes: StaticShapes


def export_model(
    source: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    admit: Callable[[Checkpoint], Checkpoint] | None = None,
    **contents: Unpack[Contents],
) -> Manifest:
    """Export the checkpoint at `source` to the bundle folder `out`; see `export_checkpoint`.

    admit: sees the checkpoint before anything is made of it; it may raise, or give back one with
    another source.

    Raises:
        CheckpointError, UnsupportedModel, OptionError, BundleError, or what `admit` raises:
            nothing is written.
    """
    report = progress or _silent
    report("read", 0, 1)
    checkpoint = read_checkpoint(source)
    if admit is not None:
        checkpoint = admit(checkpoint)
    report("read", 1, 1)
    return export_checkpoint(checkpoint, out, progress=report, **contents)


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    progress: Progress | None = None,
    **contents: Unpack[Contents],
) -> Manifest:
    """Export a checkpoint to the bundle folder `out`, all or nothing.

    weights: `auto` (GGUF blocks kept; floats to int8), or a name of `quantize.FORMATS`.
    hidden_states: residual streams to offer as outputs, by number of layers passed; none. formats:
    names of emitters, best first; `onnx`. progress: its stages are `read`, `emit` and `write`.
    overwrite: what lies at `out`; it is refused. trained: files of trained parts to add (see
    export.trained); none. shapes: dimensions of graphs that have fixed ones; those of the emitters.

    Raises:
        CheckpointError, UnsupportedModel, OptionError, BundleError: nothing is written.
    """
    report, formats = progress or _silent, contents.get("formats", ("onnx",))
    emitters = [registry.lookup("format", registry.EMITTERS, name) for name in formats]
    if not emitters:
        raise OptionError("name at least one format to export to")
    shapes = contents.get("shapes", EMITTERS_OWN)
    if shapes.key and not is_static(formats):
        raise OptionError(
            "cache length, widths and prefill chunk are of graphs with fixed dimensions, and "
            f"{', '.join(formats)} has none; leave them out, or add --format openvino-static"
        )
    fmt = weight_format(contents.get("weights", "auto"), checkpoint.source.kind)
    checkpoint.weights.used.clear()
    parts = parts_of(checkpoint, contents.get("hidden_states", ()), contents.get("trained", ()))
    refuse_readers(parts, formats)
    spec = parts[0].spec
    with BundleWriter(out, overwrite=contents.get("overwrite", False)) as writer:
        request = EmitRequest(writer.root, fmt, parts, checkpoint.tokenizer, shapes)
        emitted = [_emit(emit, request, checkpoint, report) for emit in emitters]
        roles: dict[Role, tuple[Variant, ...]] = {}
        for index, part in enumerate(parts):
            variants = tuple(of_parts[index] for of_parts in emitted)
            roles[part.role] = roles.get(part.role, ()) + variants
        return _write(
            writer, checkpoint, spec, roles, report, _versions(contents.get("trained", ()))
        )


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _emit(
    emit: Emit, request: EmitRequest, checkpoint: Checkpoint, report: Progress
) -> list[Variant]:
    weights = checkpoint.weights
    weights.loaded.clear()
    weights.on_load = lambda: report("emit", len(weights.loaded), len(weights.used))
    try:
        return emit(request)
    finally:
        weights.on_load = None


def _write(
    writer: BundleWriter,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    roles: Mapping[Role, tuple[Variant, ...]],
    report: Progress,
    written_by: Mapping[str, str],
) -> Manifest:
    variants = [variant for each in roles.values() for variant in each]
    maps = {variant.token_map for variant in variants if variant.token_map is not None}
    names = sorted({name for variant in variants for name in variant.files} | maps)
    for done, name in enumerate(names):
        report("write", done, len(names))
        writer.add(name)
    tokenizer = checkpoint.tokenizer
    writer.add_bytes("tokenizer.json", tokenizer.tokenizer_json)
    source = _write_source(writer, tokenizer.source)
    template = None
    if tokenizer.chat_template is not None:
        template = "chat_template.jinja"
        writer.add_bytes(template, tokenizer.chat_template.encode("utf-8"))
    manifest = Manifest(
        model=spec,
        roles=roles,
        tokenizer=TokenizerEntry(
            file="tokenizer.json",
            chat_template=template,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=tokenizer.eos_token_ids,
            add_bos=tokenizer.add_bos,
            special_tokens=dict(tokenizer.special_tokens),
            source=source,
        ),
        files=writer.files,
        source=checkpoint.source,
        generation=generation_of(checkpoint),
        written_by=written_by,
    )
    finished = writer.finish(manifest)
    report("write", len(names), len(names))
    return finished


def _write_source(
    writer: BundleWriter, source: SourceTokenizer | None
) -> SourceTokenizerEntry | None:
    """What cuts the texts that an encoder reads, if that is something of its own."""
    if source is None:
        return None
    entry = SourceTokenizerEntry("source_tokenizer.json", "source.tokens")
    writer.add_bytes(entry.file, source.tokenizer_json)
    writer.add_bytes(entry.token_map, np.array(source.token_ids, "<i4").tobytes())
    return entry


def _versions(trained: Sequence[Path]) -> Mapping[str, str]:
    """What a bundle is made by: versions, and a hash of the trained parts."""
    versions = {"quickdraft": quickdraft.__version__, "export": EXPORT_REVISION}
    if trained:
        versions["trained"] = hash_files(trained)
    for package in ("onnx-ir", "numpy"):
        versions[package] = importlib.metadata.version(package)
    return versions
