"""The manifest: the only contract between export and runtime.

`manifest.json` names every file of a bundle with its hash, the facts of the model, and, per role,
the variants it comes in. Reading one trusts nothing: sizes, depth, names and types are checked
(`quickdraft.bundle` opens, verifies and writes whole bundles).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from quickdraft import filenames, strict_json
from quickdraft.errors import BundleError
from quickdraft.step_layout import (
    ADAPTED,
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
    check_layout,
)
from quickdraft.types import Guarantee, ModelSpec

__all__ = [
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
EXPORT_REVISION = "3"
"""Raised whenever export makes other files of the same checkpoint: what the cache holds from an
older revision is then made again. Stands in `written_by` as "export"."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFEST_DEPTH = 32
MAX_FILES = 1000
PART_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of parts stand in options and messages."""

Role = Literal["target", "drafter", "auxiliary", "predictor", "encoder"]
TargetFormat = Literal["onnx", "openvino", "coreml", "reference"]
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
    `fp16`, `int8`, `int4`, or `gguf` (the blocks of the file, kept). guarantee: holds for chains;
    for branching trees only in the hotpath flavour.

    Of roles other than target: name tells parts of one role and flavour apart. spec: facts of the
    part, None for the target. target_cache: the cache that a predictor writes, None elsewhere.
    memory: what an encoder puts out and the target of its flavour reads, None in other models.
    features: width of the vectors that come with its tokens, or in their place in an encoder.
    token_map: the file with int32
    [vocabulary of the part], little-endian, the target's token for each of its own, None where they
    are the same. details: for who opens the part.

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
    widths: Mapping[int, str] = field(default_factory=dict)
    capacity: int = 0


@dataclass(frozen=True)
class TokenizerEntry:
    """file: a `tokenizer.json`. chat_template: a file, or None; of a `.json` file, what stands
    under `chat_template`. Ids as in the checkpoint."""

    file: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceEntry:
    """Where the weights came from. kind: `gguf` or `huggingface`. fingerprint: sha256 of the weight
    file, or of the sorted hashes of several, hex."""

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
    suppressed, as transformers names them. written_by: versions by package.
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
        _check_roles(manifest)
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
    _check_windows(manifest.model, "model")
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


def _check_roles(manifest: Manifest) -> None:
    """Everything that is named must be listed, so that everything that is read is hashed."""
    if not manifest.roles.get("target"):
        raise BundleError("roles has no variant for 'target', so there is no model to run")
    used = [("tokenizer.file", manifest.tokenizer.file)]
    if manifest.tokenizer.chat_template is not None:
        used.append(("tokenizer.chat_template", manifest.tokenizer.chat_template))
    for role, variants in manifest.roles.items():
        for number, variant in enumerate(variants):
            where = f"roles[{role!r}][{number}]"
            used += [(f"{where}.files", name) for name in variant.files]
            if variant.token_map is not None:
                used.append((f"{where}.token_map", variant.token_map))
            _check_variant(variant, where)
            if role == "target":
                _check_target(manifest.model, variant, where)
            else:
                _check_part(role, variant, where)
        _check_part_names(variants, role)
    for where, name in used:
        if name not in manifest.files:
            raise BundleError(f"{where} names {name[:120]!r}, which files does not list")
    _check_token_maps(manifest)


_OF_PARTS = ("name", "spec", "target_cache", "features", "token_map")


def _check_target(spec: ModelSpec, variant: Variant, where: str) -> None:
    """What a step of the target needs that only the facts of the model tell."""
    for name in _OF_PARTS:
        if getattr(variant, name):
            raise BundleError(f"{where} has {name!r}, which is for parts beside the target")
    _check_step(variant, spec, where, is_predictor=False)
    missing = set(spec.windows) - set(variant.step.biases)
    if variant.cache.kind != "blocks" and missing:
        raise BundleError(
            f"{where}.step.biases has no input for the attention window "
            f"{missing.pop() or strict_json.NONE_KEY}"
        )


def _check_part(role: Role, variant: Variant, where: str) -> None:
    """What a part beside the target must say, and what only a predictor may."""
    if variant.spec is None:
        raise BundleError(f"{where} lacks a spec, which every part beside the target has")
    _check_windows(variant.spec, f"{where}.spec")
    if not PART_NAME.fullmatch(variant.name):
        raise BundleError(
            f"{where}.name is {variant.name[:120]!r}; it must be 1 to 100 letters, digits, dots, "
            "dashes or underscores, a letter or digit first"
        )
    is_predictor = role == "predictor"
    if is_predictor != (variant.target_cache is not None):
        verb = "lacks" if is_predictor else "has"
        raise BundleError(f"{where} {verb} a target_cache, the cache that a predictor writes")
    if is_predictor and variant.token_map is not None:
        raise BundleError(f"{where} has a token_map, and a predictor puts out no tokens")
    if variant.target_cache is not None:
        check_layout(variant.target_cache, f"{where}.target_cache")
        if variant.target_cache.kind != variant.cache.kind:
            raise BundleError(
                f"{where} has a cache of {variant.cache.kind!r} and writes one of "
                f"{variant.target_cache.kind!r}; they must be of one kind"
            )
    _check_step(variant, variant.spec, where, is_predictor=is_predictor)


def _check_part_names(variants: tuple[Variant, ...], role: Role) -> None:
    seen: set[tuple[str, str, str]] = set()
    for variant in variants:
        key = (variant.target_format, variant.flavour, variant.name)
        if role != "target" and key in seen:
            raise BundleError(f"roles[{role!r}] has two parts {variant.name!r} of one flavour")
        seen.add(key)


def _check_token_maps(manifest: Manifest) -> None:
    for role, variants in manifest.roles.items():
        for variant in variants:
            if variant.token_map is None or variant.spec is None:
                continue
            size, rows = manifest.files[variant.token_map].size, variant.spec.vocab_size
            if size != 4 * rows:
                raise BundleError(
                    f"the token map {variant.token_map!r} of the {role} {variant.name!r} is {size} "
                    f"bytes long; a vocabulary of {rows} needs {4 * rows}"
                )


_HEAD = ("full_logits", "top_values", "top_ids", "log_sum", "top")


def _check_step(variant: Variant, spec: ModelSpec, where: str, *, is_predictor: bool) -> None:
    """The names that a step has, and no others: a name that is never bound, or never read, is a
    mistake that would show as wrong answers."""
    step, blocks = variant.step, variant.cache.kind == "blocks"
    slots = variant.cache.kind == "slots"
    kind = f"its cache is {variant.cache.kind!r}"
    if (variant.flavour == "adapted") != (variant.cache.kind in ADAPTED):
        raise BundleError(f"{where} has the flavour {variant.flavour!r}, and {kind}")
    if variant.flavour == "adapted":
        _check_adapted(variant, where)
        return
    wanted = {
        "positions": (True, "only adapted graphs go without"),
        "slots": (slots or variant.cache.kind == "fixed_state", kind),
        "ancestors": (blocks, kind),
        "past": (blocks, kind),
        **dict.fromkeys(_HEAD, (blocks and not is_predictor, kind)),
        "features": (variant.features > 0, f"its features are {variant.features} wide"),
    }
    for name in ("output_rows", "logits"):
        wanted[name] = (not is_predictor, "only a predictor goes without")
    wanted["target_rows"] = (is_predictor and slots, "only a predictor over slots has it")
    wanted["target_past"] = (is_predictor and blocks, "only a predictor over blocks has it")
    for name, (needed, reason) in wanted.items():
        if bool(getattr(step, name)) != needed:
            verb = "lacks" if needed else "has"
            raise BundleError(f"{where}.step {verb} {name!r}, and {reason}")
    if step.top > spec.vocab_size:
        raise BundleError(
            f"{where}.step.top is {step.top}, and the vocabulary has {spec.vocab_size}"
        )


_OF_ADAPTED = ("tokens", "positions", "logits", "mask", "beams", "branch")


def _check_adapted(variant: Variant, where: str) -> None:
    """The names that a step of another exporter's graph has."""
    step = variant.step
    if variant.spec is not None:
        raise BundleError(f"{where} is 'adapted', which only a target is")
    if step.logits is None:
        raise BundleError(f"{where}.step lacks 'logits'")
    for each in fields(step):
        if each.name not in _OF_ADAPTED and getattr(step, each.name):
            raise BundleError(f"{where}.step has {each.name!r}, which no adapted graph has")


def _check_variant(variant: Variant, where: str) -> None:
    if variant.model not in variant.files:
        raise BundleError(f"{where}.model is {variant.model[:120]!r}, which its files lack")
    check_layout(variant.cache, f"{where}.cache")
    _check_widths(variant, where)


def _check_widths(variant: Variant, where: str) -> None:
    static = variant.flavour == "static"
    for name in ("widths", "capacity"):
        if bool(getattr(variant, name)) != static:
            verb = "lacks" if static else "has"
            raise BundleError(f"{where} {verb} {name!r}, which the static flavour alone has")
    for rows, file in variant.widths.items():
        if rows < 1 or file not in variant.files:
            raise BundleError(f"{where}.widths[{rows}] is {file[:120]!r}, which its files lack")
    alignment = getattr(variant.cache, "alignment", 1)  # adapted graphs have no slots to align
    if variant.capacity % alignment:
        raise BundleError(f"{where}.capacity is {variant.capacity}, no multiple of {alignment}")


def _check_windows(spec: ModelSpec, where: str) -> None:
    if any(window == 0 for window in spec.windows):
        raise BundleError(f"{where}.windows has a window of 0; it must be at least 1")
