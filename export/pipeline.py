"""From a checkpoint to a bundle: read, build, emit, check, write; one function per arrow."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import quickdraft
from quickdraft import registry
from quickdraft.bundle import BundleWriter
from quickdraft.errors import CheckpointError, OptionError
from quickdraft.export.architectures.decoder import build_decoder
from quickdraft.export.checkpoints.base import Checkpoint
from quickdraft.export.emitters.base import Emit, EmitRequest, Part
from quickdraft.export.quantize import weight_format
from quickdraft.export.trained import Attach, Target, check_target, read_trained
from quickdraft.manifest import (
    EXPORT_REVISION,
    PART_NAME,
    Manifest,
    Role,
    TokenizerEntry,
    Variant,
)
from quickdraft.types import ModelSpec, Progress


def read_checkpoint(source: Path) -> Checkpoint:
    """Read a `.gguf` file or a Hugging Face folder; nothing is decoded yet.

    Raises:
        CheckpointError: it is neither, or damaged.
    """
    if source.is_dir():
        from quickdraft.export.checkpoints.hf import read_huggingface

        return read_huggingface(source)
    if not source.is_file():
        raise CheckpointError(f"{source} is neither a .gguf file nor a checkpoint folder")
    from quickdraft.export.checkpoints.gguf import read_gguf

    return read_gguf(source)


class Contents(TypedDict, total=False):
    """Options of `export_checkpoint`."""

    weights: str
    hidden_states: Sequence[int]
    formats: Sequence[str]
    overwrite: bool
    trained: Sequence[Path]


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
    weights: str = "auto",
    hidden_states: Sequence[int] = (),
    formats: Sequence[str] = ("onnx",),
    progress: Progress | None = None,
    overwrite: bool = False,
    trained: Sequence[Path] = (),
) -> Manifest:
    """Export a checkpoint to the bundle folder `out`, all or nothing.

    weights: `auto` (GGUF blocks kept; floats to int8), `fp32`, `fp16`, `int8`, `int4`, `gguf`.
    hidden_states: residual streams to offer as outputs, by number of layers passed. formats:
    names of emitters, best first. progress: its stages are `read`, `emit` and `write`. trained:
    files of trained parts to add (see export.trained).

    Raises:
        CheckpointError, UnsupportedModel, OptionError, BundleError: nothing is written.
    """
    report = progress or _silent
    emitters = [registry.lookup("format", registry.EMITTERS, name) for name in formats]
    if not emitters:
        raise OptionError("name at least one format to export to")
    fmt = weight_format(weights, checkpoint.source.kind)
    checkpoint.weights.used.clear()
    target = Target.of(checkpoint)
    spec = target.spec.model_spec()
    _check_hidden_states(hidden_states, spec)
    used = [checkpoint.weights[name].shape for name in sorted(checkpoint.weights.used)]
    spec = replace(spec, num_parameters=sum(math.prod(shape) for shape in used))
    target.hidden_states.update(hidden_states)
    others = [part for path in trained for part in _attach(path, checkpoint, target)]
    parts = (_target_part(target, spec), *others)
    _check_names(parts)
    with BundleWriter(out, overwrite=overwrite) as writer:
        request = EmitRequest(writer.root, fmt, parts)
        emitted = [_emit(emit, request, checkpoint, report) for emit in emitters]
        roles: dict[Role, tuple[Variant, ...]] = {}
        for index, part in enumerate(parts):
            variants = tuple(of_parts[index] for of_parts in emitted)
            roles[part.role] = roles.get(part.role, ()) + variants
        return _write(writer, checkpoint, spec, roles, report)


def _target_part(target: Target, spec: ModelSpec) -> Part:
    return Part(
        role="target",
        name="model",
        build=lambda ops: build_decoder(ops, target.spec, target.weights),
        spec=spec,
        hidden_states=tuple(sorted(target.hidden_states)),
    )


def _attach(path: Path, checkpoint: Checkpoint, target: Target) -> Sequence[Part]:
    """The graphs that a file of a trained part adds."""
    trained = read_trained(path)
    check_target(trained, checkpoint, path.name)
    attach: Attach = registry.lookup("kind of trained part", registry.TRAINED, trained.kind)
    return attach(trained, target)


def _check_names(parts: Sequence[Part]) -> None:
    """Names of parts are names of files, and stand in options.

    Raises:
        CheckpointError: two parts have one name, or one has a name that cannot be used.
    """
    seen = set()
    for part in parts:
        if not PART_NAME.fullmatch(part.name):
            raise CheckpointError(f"a trained part cannot be called {part.name[:120]!r}")
        if part.name.casefold() in seen:
            raise CheckpointError(
                f"two parts of the bundle would be called {part.name!r}; leave out one of the "
                "trained files, or train one again under another name"
            )
        seen.add(part.name.casefold())


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _check_hidden_states(layers: Sequence[int], spec: ModelSpec) -> None:
    for layer in layers:
        if not 0 <= layer <= spec.num_layers:
            raise OptionError(
                f"--hidden-states {layer}: the model has {spec.num_layers} layers, so the streams "
                f"are 0 to {spec.num_layers}"
            )


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
) -> Manifest:
    variants = [variant for each in roles.values() for variant in each]
    maps = {variant.token_map for variant in variants if variant.token_map is not None}
    names = sorted({name for variant in variants for name in variant.files} | maps)
    for done, name in enumerate(names):
        report("write", done, len(names))
        writer.add(name)
    tokenizer = checkpoint.tokenizer
    writer.add_bytes("tokenizer.json", tokenizer.tokenizer_json)
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
        ),
        files=writer.files,
        source=checkpoint.source,
        generation=dict(checkpoint.generation),
        written_by=_versions(),
    )
    finished = writer.finish(manifest)
    report("write", len(names), len(names))
    return finished


def _versions() -> Mapping[str, str]:
    versions = {"quickdraft": quickdraft.__version__, "export": EXPORT_REVISION}
    for package in ("onnx-ir", "numpy"):
        versions[package] = importlib.metadata.version(package)
    return versions
