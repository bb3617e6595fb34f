"""The manifest: the only contract between export and runtime.

`manifest.json` names every file of a bundle with its hash, the facts of the model, and, per role,
the variants it comes in. Reading one trusts nothing: sizes, depth, names and types are checked
(`quickdraft.bundle` opens, verifies and writes whole bundles).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quickdraft.types import Guarantee, ModelSpec

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

Role = Literal["target", "drafter", "auxiliary", "predictor", "encoder"]
TargetFormat = Literal["onnx", "openvino", "coreml", "reference"]
Flavour = Literal["hotpath", "portable", "static"]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: size in bytes, sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class CacheLayout:
    """How a variant takes its cache: one key and one value tensor per layer.

    kind `slots`: float32 [slots, kv_heads, head_dim], slots a multiple of `alignment`; the step
    writes its rows in place at the slots it is given. Names hold `{layer}`.
    """

    kind: Literal["slots"]
    alignment: int
    past_key: str
    past_value: str
    present_key: str
    present_value: str


@dataclass(frozen=True)
class StepNames:
    """Names of the tensors of one step. biases: attention bias input by window (None: full
    attention). hidden_states: output by number of layers passed."""

    tokens: str
    positions: str
    slots: str
    output_rows: str
    logits: str
    biases: Mapping[int | None, str]
    hidden_states: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One form of a model that a backend can load.

    model: the file to open; files: all files it needs, `model` included. weight_format: `fp32`,
    `fp16`, `int8`, `int4`, or `gguf` (the blocks of the file, kept).
    """

    target_format: TargetFormat
    flavour: Flavour
    weight_format: str
    model: str
    files: tuple[str, ...]
    step: StepNames
    cache: CacheLayout
    guarantee: Guarantee


@dataclass(frozen=True)
class TokenizerEntry:
    """file: a `tokenizer.json`. chat_template: a file, or None. Ids as in the checkpoint."""

    file: str
    chat_template: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceEntry:
    """Where the weights came from: kind `gguf` or `huggingface`, and a fingerprint (sha256)."""

    kind: str
    name: str
    fingerprint: str
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What export wrote and promises. roles: variants by role, best first.

    generation: defaults, as in generation_config.json. written_by: versions by package.
    """

    model: ModelSpec
    roles: Mapping[str, tuple[Variant, ...]]
    tokenizer: TokenizerEntry
    files: Mapping[str, FileEntry]
    source: SourceEntry
    generation: Mapping[str, Any]
    written_by: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION
