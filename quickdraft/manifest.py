"""The manifest: the only contract between export and runtime.

`manifest.json` names every file of a bundle with its hash, the facts of the model, and, per role,
the variants it comes in. Reading one trusts nothing: sizes, depth, names and types are checked
(`quickdraft.bundle` opens, verifies and writes whole bundles).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quickdraft import filenames, strict_json
from quickdraft.errors import BundleError
from quickdraft.manifest_checks import PART_NAME, check_roles, check_windows
from quickdraft.step_layout import (
    AppendedLayout,
    BlocksLayout,
    CacheLayout,
    FixedStateLayout,
    RecomputedLayout,
    RowsLayout,
    SlotsLayout,
    StatesLayout,
    StaticStep,
    StepNames,
)
from quickdraft.types import Guarantee, ModelSpec

__all__ = [
    "PART_NAME",
    "AppendedLayout",
    "BlocksLayout",
    "CacheLayout",
    "FixedStateLayout",
    "RecomputedLayout",
    "RowsLayout",
    "SlotsLayout",
    "StatesLayout",
    "StaticStep",
    "StepNames",
]

SCHEMA_VERSION = 3
MANIFEST_NAME = "manifest.json"
EXPORT_REVISION = "6"
"""Raised whenever export makes other files of the same checkpoint: what the cache holds from an
older revision is then made again. Stands in `written_by` as "export"."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFEST_DEPTH = 32
MAX_FILES = 1000

Role = Literal["target", "drafter", "auxiliary", "predictor", "encoder", "judge"]
TargetFormat = Literal["onnx", "openvino", "coreml", "reference"]
WeightFormat = Literal["gguf", "fp32", "fp16", "int8", "int4", "int4-g128", "int4-channel"]
Flavour = Literal["hotpath", "portable", "static", "adapted"]
"""adapted: a graph that another exporter wrote, used as it is (docs/adapters.md)."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: size in bytes, sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Variant:
    """One form of a model that a backend can load.

    model: the file to open; files: all files it needs, `model` included. weight_format: `fp32`,
    `fp16`, `int8`, `int4`, `int4-g128`, `int4-channel`, or `gguf` (the blocks of the file, kept).
    guarantee: holds for chains; for branching trees only in the hotpath flavour.

    Of roles other than target: name tells parts of one role and flavour apart. spec: facts of the
    part, None for the target. target_cache: the cache that a predictor writes, None elsewhere.
    memory: of an encoder-decoder model, what the encoder puts out (`present`) and the target of its
    flavour reads (`past`): of `blocks`, or of `slots`, which are the rows of the memory; None in
    other models. The cache of an encoder stands for that of its target, and is not used.
    features: width of the vectors that come with its tokens, or in their place in an encoder.
    token_map: the file with int32 [vocabulary of the part], little-endian, the target's token for
    each of its own, None where they are the same. details: for who opens the part.

    Of the static flavour, whose graphs have one number of rows each: widths: the file by number of
    rows, `model` among them. capacity: slots of its cache. Elsewhere empty and 0.
    """

    target_format: TargetFormat
    flavour: Flavour
    weight_format: str
    model: str
    files: tuple[str, ...]
    step: StepNames
    cache: CacheLayout
    guarantee: Guarantee
    name: str = ""
    spec: ModelSpec | None = None
    target_cache: CacheLayout | None = None
    features: int = 0
    token_map: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    memory: CacheLayout | None = None
    widths: Mapping[int, str] = field(default_factory=dict)
    capacity: int = 0


@dataclass(frozen=True)
class SourceTokenizerEntry:
    """file: a `tokenizer.json`. token_map: the file with int32, little-endian, the model's token
    for each of its own."""

    file: str
    token_map: str


@dataclass(frozen=True)
class TokenizerEntry:
    """file: a `tokenizer.json`. chat_template: a file, or None; of a `.json` file, what stands
    under `chat_template`. Ids as in the checkpoint. source: what cuts the texts that an encoder
    reads, None where `file` does."""

    file: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    source: SourceTokenizerEntry | None = None


@dataclass(frozen=True)
class SourceEntry:
    """Where the weights came from. kind: `gguf` or one of registry.CHECKPOINTS. fingerprint: sha256
    of the weight file, or of the sorted hashes of several, hex."""

    kind: str
    name: str
    fingerprint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What export wrote and promises. roles: variants by role, best first.

    generation: defaults, as in generation_config.json; of an encoder-decoder model also what its
    answers begin with (decoder_start_token_id, forced_bos_token_id, ...) and the tokens that are
    suppressed, as transformers names them. written_by: versions by package, and with `trained` a
    hash of the files of trained parts.
    """

    model: ModelSpec
    roles: Mapping[Role, tuple[Variant, ...]]
    tokenizer: TokenizerEntry
    files: Mapping[str, FileEntry]
    source: SourceEntry
    generation: Mapping[str, Any]
    written_by: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The text of `manifest.json`; `parse_manifest` gives an equal manifest back."""
        text = json.dumps(strict_json.encode(self), indent=1, ensure_ascii=False, allow_nan=False)
        return text + "\n"


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest that nobody vouches for; `where` names it in errors.

    Raises:
        BundleError: it is too large, not JSON, of another version, or says something impossible.
    """
    try:
        value = strict_json.loads(text, max_bytes=MAX_MANIFEST_BYTES, max_depth=MAX_MANIFEST_DEPTH)
        _check_version(value)
        manifest = strict_json.decode(Manifest, value, "the manifest")
        _check_files(manifest)
        check_roles(manifest)
    except strict_json.JsonProblem as problem:
        raise BundleError(f"{where}: {_sentence(str(problem))}") from None
    except BundleError as error:  # from ModelSpec, which knows the field but not the file
        raise BundleError(f"{where}: {error}") from None
    return manifest


def _sentence(problem: str) -> str:
    """Problems of the whole text start with their verb."""
    whole = problem.startswith(("is ", "has ", "holds "))
    return f"the manifest {problem}" if whole else problem


def _check_version(value: Any) -> None:
    """Look at the version before anything else: the rest may have changed its meaning."""
    if not isinstance(value, dict) or "schema_version" not in value:
        raise strict_json.JsonProblem(
            "it has no schema_version, so it is not the manifest of a quickdraft bundle"
        )
    version = value["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise strict_json.JsonProblem("schema_version must be a whole number")
    if version > SCHEMA_VERSION:
        raise strict_json.JsonProblem(
            f"schema_version is {version} and this quickdraft reads {SCHEMA_VERSION}; the bundle "
            "was written by a newer version: upgrade quickdraft"
        )
    if version < SCHEMA_VERSION:
        raise strict_json.JsonProblem(
            f"schema_version is {version} and this quickdraft reads {SCHEMA_VERSION}; export the "
            "model again"
        )


def _check_files(manifest: Manifest) -> None:
    check_windows(manifest.model, "model")
    if not 1 <= len(manifest.files) <= MAX_FILES:
        raise BundleError(f"it lists {len(manifest.files)} files; 1 to {MAX_FILES} are allowed")
    for name, entry in manifest.files.items():
        problem = filenames.name_problem(name)
        if problem:
            raise BundleError(f"the file name {name[:120]!r} cannot be used: {problem}")
        if filenames.fold(name) == MANIFEST_NAME:
            raise BundleError(f"the file {name!r} cannot be listed in itself")
        if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
            raise BundleError(f"sha256 of {name!r} is not 64 lower-case hexadecimal digits")
    same = filenames.collision(manifest.files)
    if same:
        raise BundleError(f"the file names {same[0]!r} and {same[1]!r} collide on some systems")
