"""SentencePiece models (`.spm`, `spiece.model`): a protobuf message, read by its bytes alone.

Nothing in a file is believed: counts and lengths have limits, and what our tokenizers cannot do is
refused by name rather than done a little differently.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quickdraft.errors import CheckpointError, UnsupportedModel

MAX_BYTES = 32 << 20
MAX_PIECES = 1 << 19
MAX_FIELDS = 4 * MAX_PIECES
MAX_PIECE_BYTES = 512
MAX_CHARSMAP = 8 << 20

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
_MODELS = {3: "words", 4: "characters"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CUT = "the file is cut off or damaged; fetch it again"


@dataclass(frozen=True)
class Piece:
    """kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """What tokenising needs of a model. Token ids of it are places in `pieces`.

    model: UNIGRAM or BPE. charsmap: the compiled rules of its normaliser, empty if there are none.
    dummy_prefix: texts begin with a space. collapse: runs of spaces count as one, those at the
    ends not at all.
    """

    pieces: tuple[Piece, ...]
    model: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    collapse: bool

    @property
    def unknown(self) -> int:
        """The id of what is not in the vocabulary."""
        return next(i for i, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)


def read_sentencepiece(path: Path) -> SentencePiece:
    """Read a model.

    Raises:
        CheckpointError: the file is too large, damaged, or contradicts itself.
        UnsupportedModel: a kind of model or an option that is not implemented.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} is {size} bytes long; the limit is {MAX_BYTES}")
    return _Reader(path).read(path.read_bytes())


class _Reader:
    """Reads one file, which every error names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields = 0

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._path} is no sound SentencePiece model: {problem}")

    def refuse(self, what: str) -> NoReturn:
        raise UnsupportedModel(f"{self._path}: SentencePiece models {what} are not supported")

    def read(self, data: bytes) -> SentencePiece:
        pieces: list[Piece] = []
        trainer: dict[int, Any] = {}
        normaliser: dict[int, Any] = {}
        for number, value in self.fields(memoryview(data)):
            if number == 1:
                if len(pieces) == MAX_PIECES:
                    self.fail(f"it has more than {MAX_PIECES} pieces")
                pieces.append(self.piece(self.message(value), len(pieces)))
            elif number in (2, 3):
                (trainer if number == 2 else normaliser).update(self.message(value))
        if not pieces:
            self.fail(f"it has no pieces; {_CUT}")
        model = self.integer(trainer, 3, UNIGRAM, "model_type")
        if model not in (UNIGRAM, BPE):
            self.refuse(f"of {_MODELS.get(model, f'kind {model}')} (unigram and BPE are)")
        if self.flag(trainer, 24, False, "treat_whitespace_as_suffix"):
            self.refuse("with spaces at the ends of words")
        if not self.flag(normaliser, 5, True, "escape_whitespaces"):
            self.refuse("that keep spaces as they are")
        found = SentencePiece(
            pieces=tuple(pieces),
            model=model,
            byte_fallback=self.flag(trainer, 35, False, "byte_fallback"),
            charsmap=self.charsmap(normaliser.get(2, b"")),
            dummy_prefix=self.flag(normaliser, 3, True, "add_dummy_prefix"),
            collapse=self.flag(normaliser, 4, True, "remove_extra_whitespaces"),
        )
        self.check(found)
        return found

    def check(self, model: SentencePiece) -> None:
        """What holds of the pieces together."""
        seen: dict[str, int] = {}
        for number, piece in enumerate(model.pieces):
            if seen.setdefault(piece.text, number) != number:
                self.fail(
                    f"the piece {piece.text!r} is there twice, as {seen[piece.text]} and {number}"
                )
        unknown = sum(piece.kind == UNKNOWN for piece in model.pieces)
        if unknown != 1:
            self.fail(f"{unknown} pieces stand for what is unknown; there must be one")
        if not any(piece.kind == NORMAL for piece in model.pieces):
            self.fail("it has no ordinary piece")
        held = {piece.text for piece in model.pieces if piece.kind == BYTE}
        wanted = {f"<0x{byte:02X}>" for byte in range(256)} if model.byte_fallback else set()
        if held != wanted:
            self.fail(f"{len(held)} pieces are bytes; {len(wanted)} must be, each once")

    def piece(self, fields: dict[int, Any], number: int) -> Piece:
        text, score = fields.get(1, b""), fields.get(2, 0.0)
        kind = self.integer(fields, 3, NORMAL, f"the kind of piece {number}")
        if not isinstance(text, memoryview) or not 0 < len(text) <= MAX_PIECE_BYTES:
            self.fail(f"piece {number} has no text of 1 to {MAX_PIECE_BYTES} bytes")
        if not isinstance(score, float) or not math.isfinite(score):
            self.fail(f"the score of piece {number} is no finite number")
        if not NORMAL <= kind <= BYTE:
            self.fail(f"piece {number} is of kind {kind}; kinds {NORMAL} to {BYTE} exist")
        try:
            return Piece(bytes(text).decode(), score, kind)
        except UnicodeDecodeError:
            self.fail(f"piece {number} is not UTF-8")

    def charsmap(self, value: Any) -> bytes:
        """Four bytes with the length of a trie, the trie in units of four bytes, then texts."""
        if not isinstance(value, memoryview | bytes):
            self.fail("the rules of its normaliser are no bytes")
        rules = bytes(value)
        if len(rules) > MAX_CHARSMAP:
            self.fail(f"the rules of its normaliser have {len(rules)} bytes, over {MAX_CHARSMAP}")
        if rules:
            trie = int.from_bytes(rules[:4], "little")
            if len(rules) < 5 or trie % 4 or not 0 < trie <= len(rules) - 4:
                self.fail("the rules of its normaliser do not have the length they state")
        return rules

    def message(self, value: Any) -> dict[int, Any]:
        """The last value of every field, as protobuf has it."""
        if not isinstance(value, memoryview):
            self.fail(_CUT)
        return dict(self.fields(value))

    def integer(self, fields: dict[int, Any], number: int, default: int, name: str) -> int:
        value = fields.get(number, default)
        if not isinstance(value, int):
            self.fail(f"{name} is no integer")
        return value

    def flag(self, fields: dict[int, Any], number: int, default: bool, name: str) -> bool:
        return bool(self.integer(fields, number, default, name))

    def fields(self, data: memoryview) -> Iterator[tuple[int, Any]]:
        """(number, value): integers, floats of 32 bits, and bytes; what else there is, as bytes."""
        at = 0
        while at < len(data):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                self.fail(f"it has more than {MAX_FIELDS} fields")
            tag, at = self.varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, at = self.varint(data, at)
                yield number, value
                continue
            if wire == _BYTES:
                length, at = self.varint(data, at)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                self.fail(f"it has a field of type {wire}, which protobuf does not have; {_CUT}")
            if number == 0 or length > len(data) - at:
                self.fail(_CUT)
            held = data[at : at + length]
            at += length
            yield number, struct.unpack("<f", held)[0] if wire == _FIXED32 else held

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                break
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        self.fail(_CUT)
