"""GGUF files as checkpoints."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.checkpoints.gguf_blocks import weights as tensor_weights
from quickdraft.export.checkpoints.gguf_config import read_config
from quickdraft.export.checkpoints.gguf_header import (
    MAGIC,
    Header,
    Value,
    open_file,
    parse_header,
)
from quickdraft.export.checkpoints.gguf_names import hugging_face_weights
from quickdraft.export.checkpoints.gguf_tokenizer import read_tokenizer
from quickdraft.export.weights import Weight
from quickdraft.manifest import SourceEntry

MAX_PARTS = 1_000
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def looks_like_gguf(path: Path) -> bool:
    """Whether `path` is a file that starts as GGUF files do; says nothing about the rest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> Checkpoint:
    """Read a GGUF file, or all parts of a split one when given any of them.

    Weights are decoded when they are loaded, from the mapped file.

    Raises:
        CheckpointError: the file is damaged or hostile, or a part is missing.
        UnsupportedModel: an architecture, tensor type or tokenizer that is not implemented.
    """
    paths = _parts(path)
    header, tensors = _read_parts(paths)
    name = path.name
    config = read_config(name, header.metadata, tensors)
    architecture = str(header.metadata["general.architecture"])
    renamed = hugging_face_weights(name, architecture, config, tensors)
    tokenizer = read_tokenizer(header.metadata, name, tensors["token_embd.weight"].shape[0])
    config["bos_token_id"] = tokenizer.bos_token_id
    config["eos_token_id"] = tokenizer.eos_token_ids[0]
    return Checkpoint(
        config=config,
        weights=WeightMap(renamed),
        tokenizer=tokenizer,
        generation=_generation(name, header.metadata),
        source=SourceEntry(
            kind="gguf",
            name=_text(header.metadata, "general.name") or path.stem,
            fingerprint=_fingerprint(paths),
            licence=_text(header.metadata, "general.license"),
        ),
    )


def _parts(path: Path) -> list[Path]:
    """All files of the model: `path` itself, or every part of a split."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    if not 1 <= count <= MAX_PARTS:
        raise CheckpointError(f"{path}: the name claims {count} parts; 1 to {MAX_PARTS} are read")
    names = [f"{stem}-{index:05}-of-{count:05}.gguf" for index in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {count} parts are missing from its folder: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return [path.parent / name for name in names]


def _read_parts(paths: list[Path]) -> tuple[Header, dict[str, Weight]]:
    """The header of the first part, and the tensors of all."""
    tensors: dict[str, Weight] = {}
    headers = []
    for path in paths:
        data = open_file(path)
        header = parse_header(data, path.name)
        count = header.metadata.get("split.count", 1)
        if count not in (0, len(paths)):
            raise CheckpointError(
                f"{path}: this is one of {count} parts; all are needed, in one folder, under "
                "their own names (...-00001-of-0000N.gguf)"
            )
        part = tensor_weights(data, header)
        if again := tensors.keys() & part.keys():
            raise CheckpointError(f"{path}: the tensor {min(again)!r} is in two parts")
        tensors |= part
        headers.append(header)
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            f"{paths[0]}: the parts hold {len(tensors)} tensors and should hold {total}; they "
            "belong to different models"
        )
    return headers[0], tensors


def _text(metadata: Mapping[str, Value], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _generation(file: str, metadata: Mapping[str, Value]) -> dict[str, Any]:
    """Sampling defaults of the file, by the names of generation_config.json."""
    values: dict[str, Any] = {}
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise CheckpointError(f"{file}: general.sampling.{key} is not a finite number")
        values[name] = value if isinstance(value, int) else round(value, 6)
    return {"do_sample": True, **values} if values else {}


def _fingerprint(paths: list[Path]) -> str:
    """The sha256 of the file, or that of the parts' sorted hashes."""
    hashes = []
    for path in paths:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
