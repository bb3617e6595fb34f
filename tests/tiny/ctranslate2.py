"""A Whisper of a few hundred bytes in CTranslate2's format, and files that are wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEADS, INNER, VOCAB, BINS, SOURCE, TARGET = 8, 2, 12, 20, 5, 6, 7
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>")
_CODES = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4, "u2": 5}


def text(value: str) -> bytes:
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def serialise(
    variables: Mapping[str, NDArray[Any]],
    aliases: Mapping[str, str] = {},
    spec: str = "WhisperSpec",
    version: int = 6,
) -> bytes:
    parts = [struct.pack("<I", version), text(spec), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        parts += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        code = _CODES[value.dtype.str[1:]]
        parts += [struct.pack("<BI", code, value.nbytes), value.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(name) for alias, name in aliases.items()]
    return b"".join(parts)


def variables(dtype: type[np.floating] = np.float16) -> dict[str, NDArray[Any]]:
    """All variables of a model with one layer on each side."""
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/pre_norm": np.array(1, np.int8),
        "encoder/num_heads": np.array(HEADS, np.int16),
        "decoder/num_heads": np.array(HEADS, np.int16),
    }

    def add(name: str, *shape: int) -> None:
        found[name] = rng.normal(0, 0.5, shape).astype(dtype)

    def linear(name: str, rows: int, *columns: int) -> None:
        add(f"{name}/weight", rows, *columns)
        add(f"{name}/bias", rows)

    def norm(name: str) -> None:
        add(f"{name}/gamma", WIDTH)
        add(f"{name}/beta", WIDTH)

    linear("encoder/conv1", WIDTH, BINS, 3)
    linear("encoder/conv2", WIDTH, WIDTH, 3)
    add("encoder/position_encodings/encodings", SOURCE, WIDTH)
    add("decoder/position_encodings/encodings", TARGET, WIDTH)
    add("decoder/embeddings/weight", VOCAB, WIDTH)
    for side in ("encoder", "decoder"):
        norm(f"{side}/layer_norm")
        layer = f"{side}/layer_0"
        norm(f"{layer}/self_attention/layer_norm")
        linear(f"{layer}/self_attention/linear_0", 3 * WIDTH, WIDTH)
        found[f"{layer}/self_attention/linear_0/bias"][WIDTH : 2 * WIDTH] = 0
        linear(f"{layer}/self_attention/linear_1", WIDTH, WIDTH)
        norm(f"{layer}/ffn/layer_norm")
        linear(f"{layer}/ffn/linear_0", INNER, WIDTH)
        linear(f"{layer}/ffn/linear_1", WIDTH, INNER)
    norm("decoder/layer_0/attention/layer_norm")
    linear("decoder/layer_0/attention/linear_0", WIDTH, WIDTH)
    linear("decoder/layer_0/attention/linear_1", 2 * WIDTH, WIDTH)
    found["decoder/layer_0/attention/linear_1/bias"][:WIDTH] = 0
    linear("decoder/layer_0/attention/linear_2", WIDTH, WIDTH)
    return found


def write_folder(folder: Path, model: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(serialise(variables()) if model is None else model)
    words = {f"w{i}": i for i in range(VOCAB - len(SPECIAL))}
    added = [
        {
            "id": VOCAB - len(SPECIAL) + i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, content in enumerate(SPECIAL)
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "lang_ids": [4]}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
