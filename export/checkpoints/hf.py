"""Reading a Hugging Face checkpoint folder: config, safetensors, tokenizer. No code is imported:
`auto_map` and pickled weights are data that is never executed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from quickdraft import strict_json
from quickdraft.errors import CheckpointError
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.checkpoints.hf_tokenizer import read_tokenizer_files
from quickdraft.export.checkpoints.model_card import read_licence
from quickdraft.export.checkpoints.safetensors_file import read_safetensors
from quickdraft.export.weights import Weight
from quickdraft.manifest import SourceEntry

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 64

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_huggingface(folder: Path) -> Checkpoint:
    """Read a checkpoint folder; weights stay on disk until they are loaded.

    Raises:
        CheckpointError: a file is missing, damaged or hostile; the message names it.
        TokenizerError: tokenizer.json cannot be used.
    """

    def read_json(name: str) -> Mapping[str, Any]:
        return read_json_file(folder / name)

    config = read_json("config.json")
    if not config:
        raise CheckpointError(f"{folder} has no config.json; is it a checkpoint folder?")
    weights, files = _read_weights(folder, bool(config.get("is_encoder_decoder")))
    generation = read_json("generation_config.json")
    return Checkpoint(
        config=config,
        weights=WeightMap(weights),
        tokenizer=read_tokenizer_files(folder, read_json, config, generation),
        generation=generation,
        source=SourceEntry(
            "huggingface",
            folder.resolve().name,
            _fingerprint(files),
            licence=read_licence(folder),
        ),
    )


def read_json_file(path: Path) -> Mapping[str, Any]:
    """The object in a file, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise strict_json.JsonProblem(f"is longer than {MAX_JSON_BYTES} bytes")
        value = strict_json.loads(
            path.read_bytes(), max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH
        )
        if not isinstance(value, dict):
            raise strict_json.JsonProblem("is not an object")
    except strict_json.JsonProblem as problem:
        raise CheckpointError(f"{path} {problem}") from None
    return value


def _read_weights(folder: Path, encodes: bool) -> tuple[dict[str, Weight], list[Path]]:
    """Weights by name, and the files they are in."""
    if (folder / SINGLE).is_file():
        return read_safetensors(folder / SINGLE), [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        name = "AutoModelForSeq2SeqLM" if encodes else "AutoModelForCausalLM"
        raise CheckpointError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which can run any program "
            "when they are opened, so they are never read; convert them where you trust them "
            f"with: {name}.from_pretrained(folder).save_pretrained(folder), from the package "
            "transformers"
        )
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")


def _read_shards(folder: Path) -> tuple[dict[str, Weight], list[Path]]:
    names = read_json_file(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{folder / INDEX} has no 'weight_map'")
    shards: dict[Path, dict[str, Weight]] = {}
    weights = {}
    for name, shard in names.items():
        path = _shard_path(folder, shard)
        if path not in shards:
            shards[path] = read_safetensors(path)
        if name not in shards[path]:
            raise CheckpointError(f"{folder / INDEX} says {name!r} is in {shard}, which lacks it")
        weights[name] = shards[path][name]
    return weights, list(shards)


def _shard_path(folder: Path, shard: Any) -> Path:
    name = shard if isinstance(shard, str) and shard.isprintable() else ""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    if not plain or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{folder / INDEX} names {str(shard)[:120]!r}, which is not a safetensors file of "
            "this folder"
        )
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} lacks {name}, which {INDEX} names; fetch it again")
    return path


def _fingerprint(files: list[Path]) -> str:
    """sha256 of the sorted sha256 of the weight files."""
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
