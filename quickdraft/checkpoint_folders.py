"""What kind of checkpoint a folder holds, and which of its files make it up; reads no weights."""

from __future__ import annotations

import struct
from pathlib import Path

FILES = {
    "ctranslate2": ("model.bin", "tokenizer.json", "config.json"),
    "onnx": ("encoder.onnx", "decoder.onnx", "tokenizer.json"),
}
"""By kind, for those that are not of Hugging Face."""
_HEAD = 70


def folder_kind(folder: Path) -> str:
    """A name of registry.CHECKPOINTS; `huggingface` for whatever has no sign of another kind."""
    if looks_like_ctranslate2(folder / "model.bin"):
        return "ctranslate2"
    graphs = all((folder / name).is_file() for name in FILES["onnx"])
    return "onnx" if graphs and not (folder / "config.json").is_file() else "huggingface"


def looks_like_ctranslate2(path: Path) -> bool:
    """Whether a file begins as CTranslate2's do (a version and the name of a class, `...Spec`);
    says nothing about the rest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if len(head) < 7:
        return False
    version, size = struct.unpack_from("<IH", head)
    name = head[6 : 6 + size]
    return version <= 99 and len(name) == size and name.endswith(b"Spec\0")
