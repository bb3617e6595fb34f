"""SentencePiece models written byte by byte, and what no honest writer would put in one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiny.random_weights import write_weights
from tiny.seq2seq_configs import SEQ2SEQ_CONFIGS

from quickdraft.export.checkpoints.sentencepiece_file import CONTROL, NORMAL, UNKNOWN, Piece

BEGINS = (Piece("<unk>", 0, UNKNOWN), Piece("<s>", 0, CONTROL), Piece("</s>", 0, CONTROL))
ENGLISH = ("▁the", "▁", "▁rain", "t", "h", "e", "r", "a", "i", "n", "</", "s", ">", "▁in")
GERMAN = ("▁der", "▁", "▁Regen", "d", "e", "r", "n", "i", "▁in", "R", "g")


def varint(value: int) -> bytes:
    """Seven bits a byte."""
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def number(field: int, value: int) -> bytes:
    """A field with an integer."""
    return varint(field << 3) + varint(value)


def data(field: int, value: bytes) -> bytes:
    """A field with bytes."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def real(field: int, value: float) -> bytes:
    """A field with a float."""
    return varint(field << 3 | 5) + struct.pack("<f", value)


def piece_bytes(piece: Piece) -> bytes:
    """One piece; its kind is left out where that means the same."""
    kind = b"" if piece.kind == NORMAL else number(3, piece.kind)
    return data(1, data(1, piece.text.encode()) + real(2, piece.score) + kind)


def ordinary(texts: Sequence[str]) -> list[Piece]:
    """Pieces, the longer the likelier, the earlier the likelier."""
    return [Piece(text, -8.0 + len(text) - 0.01 * i, NORMAL) for i, text in enumerate(texts)]


def spm_bytes(pieces: Sequence[Piece], trainer: bytes = b"", normaliser: bytes = b"") -> bytes:
    """A whole model: pieces, and fields of its two specs."""
    return b"".join(map(piece_bytes, pieces)) + data(2, trainer) + data(3, normaliser)


def charsmap(rules: Mapping[str, str]) -> bytes:
    """Compiled rules of a normaliser: a trie as a double array, a block of 256 for each node that
    has children, then the texts that keys become."""
    units, texts, blocks = [0] * 256, b"", {b"": 0}
    places = {b"": 0}
    for key, value in rules.items():
        raw = key.encode()
        for size in range(len(raw) + 1):
            head = raw[:size]
            if head not in blocks:
                blocks[head] = len(units)
                units += [0] * 256
            if size:
                places[head] = blocks[raw[: size - 1]] ^ raw[size - 1]
                units[places[head]] |= raw[size - 1]
        units[places[raw]] |= 1 << 8
        units[blocks[raw]] = 1 << 31 | len(texts)
        texts += value.encode() + b"\0"
    for head, base in blocks.items():
        units[places[head]] |= (places[head] ^ base) << 10
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + texts


def write_marian_tokenizer(folder: Path) -> dict[str, int]:
    """source.spm, target.spm and vocab.json, which lacks one piece of the source; the ids."""
    (folder / "source.spm").write_bytes(spm_bytes([*BEGINS, *ordinary(ENGLISH)]))
    (folder / "target.spm").write_bytes(spm_bytes([*BEGINS, *ordinary(GERMAN)]))
    texts = dict.fromkeys([">>deu<<", "</s>", *reversed(ENGLISH[1:]), "<unk>", *GERMAN, "<pad>"])
    ids = {text: i for i, text in enumerate(texts)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    return ids


def write_marian(folder: Path) -> dict[str, int]:
    """A Marian of random weights as its makers publish it, with no tokenizer.json; the ids."""
    folder.mkdir(exist_ok=True)
    ids = write_marian_tokenizer(folder)
    config = {
        **SEQ2SEQ_CONFIGS["marian"][1],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": len(ids),
        "eos_token_id": ids["</s>"],
        "pad_token_id": ids["<pad>"],
        "decoder_start_token_id": ids["<pad>"],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder, config)
    return ids
