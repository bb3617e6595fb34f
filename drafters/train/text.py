"""Training text from files of all kinds, as rows of tokens of one length."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from quickdraft import strict_json
from quickdraft.answers import read_answers
from quickdraft.errors import InputError
from quickdraft.export.checkpoints.base import Checkpoint

Ids = Sequence[int]
Document = str | Ids
"""A text, or its tokens."""

_PIECE = 16_000
"""Characters after which a long text is cut, at a line, so that the order mixes its parts."""
_MAX_LINE = 64 << 20
_FIELDS = ("text", "prompt", "question", "input", "answer", "solution", "completion", "code")
"""Of a line of JSON, those that are text; joined in this order."""


@dataclass(frozen=True)
class Rows:
    """Tokens to fit to and to test on, int32 [rows, length] each. sha256: of all of them, hex."""

    training: NDArray[np.int32]
    held_out: NDArray[np.int32]
    sha256: str


def read_documents(files: Iterable[Path], fingerprint: str) -> list[Document]:
    """The documents of `.txt` files, of `.jsonl` files (fields such as `text`, or `prompt` with
    `answer`) and of files of `quickdraft train generate`; each also as `.gz`.

    fingerprint: of the checkpoint whose tokens the last ones must hold.

    Raises:
        InputError: a file cannot be read, holds no text, or answers of another model.
    """
    documents: list[Document] = []
    for file in files:
        before = len(documents)
        documents.extend(_documents(file, fingerprint))
        if len(documents) == before:
            raise InputError(f"{file} holds no text to train on")
    return documents


def encoder_of(checkpoint: Checkpoint) -> Callable[[str], Sequence[int]]:
    """A text to its tokens, with the one that a text of this model begins with."""
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.tokenizer_json.decode("utf-8"))
    bos = checkpoint.tokenizer.bos_token_id if checkpoint.tokenizer.add_bos else None

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids if bos is None else [bos, *ids]

    return encode


def make_rows(
    documents: Sequence[Document],
    encode: Callable[[str], Ids],
    *,
    length: int,
    tokens: int,
    held_out: int,
    start: Ids = (),
    seed: int = 0,
) -> Rows:
    """Documents one after another, in an order that the seed decides, cut in rows.

    length: tokens of a row. tokens: to fit to, at most. held_out: rows to test on, of documents
    that no training row has a part of. start: tokens that every document begins with.

    Raises:
        InputError: the text is too short for a row of either.
    """
    order = random.Random(seed)  # noqa: S311  # an order, not a secret
    shuffled = order.sample(list(documents), len(documents))
    rows: list[NDArray[np.int32]] = []
    stream: list[int] = []
    wanted = max(1, tokens // length)
    for document in shuffled:
        stream.extend(start)
        stream.extend(encode(document) if isinstance(document, str) else document)
        # The first rows are held out; what is left of the document then belongs to neither.
        while len(stream) >= length and len(rows) < held_out + wanted:
            rows.append(np.array(stream[:length], np.int32))
            del stream[:length]
            if len(rows) == held_out:
                stream.clear()
        if len(rows) == held_out + wanted:
            break
    if len(rows) < held_out + 1:
        raise InputError(
            f"the text makes {len(rows)} rows of {length} tokens, and {held_out + 1} are needed "
            "at least; give more text (--data)"
        )
    table = np.stack(rows)
    return Rows(table[held_out:], table[:held_out], hashlib.sha256(table.tobytes()).hexdigest())


def _documents(file: Path, fingerprint: str) -> Iterator[Document]:
    inner = file.name.removesuffix(".gz")
    if inner.endswith((".jsonl", ".ndjson")):
        yield from _lines_of_json(file, fingerprint)
    else:
        yield from _pieces(_read(file))


def _lines_of_json(file: Path, fingerprint: str) -> Iterator[Document]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = strict_json.loads(line.encode(), max_bytes=_MAX_LINE, max_depth=16)
        except strict_json.JsonProblem as problem:
            raise InputError(f"{file}: line {number} {problem}") from None
        if number == 1 and isinstance(value, dict) and value.get("quickdraft") == "answers":
            header, answers = read_answers(file)
            if header.fingerprint != fingerprint:
                raise InputError(
                    f"{file} holds answers of {header.model} ({header.fingerprint[:12]}...), which "
                    f"are tokens of that model, and this is the checkpoint {fingerprint[:12]}...; "
                    "give answers of that, or text"
                )
            yield from ([*answer.prompt, *answer.answer] for answer in answers)
            return
        yield from _pieces(_text_of(file, number, value))


def _text_of(file: Path, number: int, value: Any) -> str:
    found = [value[name] for name in _FIELDS if name in value] if isinstance(value, dict) else []
    texts = [text for text in found if isinstance(text, str) and text]
    if not texts:
        raise InputError(
            f"{file}: line {number} has no text; expected a field {', '.join(map(repr, _FIELDS))}"
        )
    return "\n".join(texts)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start + _PIECE // 2, end) + 1 or end
        if text[start:end].strip():
            yield text[start:end]
        start = end


def _read(file: Path) -> str:
    try:
        if file.suffix == ".gz":
            with gzip.open(file, "rb") as stream:
                return stream.read().decode("utf-8")
        return file.read_bytes().decode("utf-8")
    except (OSError, EOFError) as error:
        raise InputError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from (error)
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text in UTF-8") from None
