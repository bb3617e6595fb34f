"""Answers of the target as batches: documents packed into rows, in an order that a seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickdraft.answers import read_answers
from quickdraft.errors import InputError, OptionError

Tokens = NDArray[np.int32]
_OPEN_ROWS = 64
"""Rows that are filled at the same time."""


@dataclass(frozen=True)
class Document:
    """A prompt with its answer. tokens: int32, of both; answer: where the answer begins; key: of
    its id, spread evenly over 64 bits. sound: in place of a prompt, a file and a sample of it."""

    tokens: Tokens
    answer: int
    key: int
    sound: tuple[str, int] | None = None


@dataclass(frozen=True)
class Corpus:
    """Documents of one target. sha256: of all of them in their order, hex. opening: what answers of
    an encoder-decoder model begin with, whose prompts are sources; empty for others."""

    documents: tuple[Document, ...]
    vocab_size: int
    sha256: str
    opening: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    def split(self, share: float = 0.05) -> tuple[Corpus, Corpus]:
        """Those to train on and about `share` of them, at least one, to hold out. Which these are
        depends on the ids alone: what was held out once is so in every larger file."""
        order = sorted(document.key for document in self.documents)
        limit = max(int(share * 2**64), order[0])
        held = [document.key <= limit for document in self.documents]
        return self._part(held, False), self._part(held, True)

    def _part(self, held: Sequence[bool], which: bool) -> Corpus:
        chosen = zip(self.documents, held, strict=True)
        documents = tuple(document for document, is_held in chosen if is_held is which)
        if not documents:
            raise InputError(
                f"{len(self)} answers are too few to train on some and test on others; let "
                "`quickdraft train generate` make more"
            )
        return Corpus(documents, self.vocab_size, self.sha256, self.opening)

    def commonest(self, count: int, always: Sequence[int] = ()) -> Tokens:
        """The `count` tokens that answers use most, those of `always` among them: int32, ascending.
        Of equally common ones, and where answers use fewer, the lower ids."""
        uses = np.zeros(self.vocab_size, np.int64)
        for document in self.documents:
            answer = document.tokens[document.answer :]
            uses += np.bincount(answer, minlength=self.vocab_size)
        uses[[*always]] = np.iinfo(np.int64).max
        order = np.argsort(-uses, kind="stable")
        return np.sort(order[: min(count, self.vocab_size)]).astype(np.int32)


def read_corpus(files: Sequence[Path], fingerprint: str, vocab_size: int) -> Corpus:
    """The answers of one target from files of `quickdraft train generate`.

    fingerprint: of its checkpoint.

    Raises:
        InputError: a file is damaged, or holds answers of another model.
    """
    documents: list[Document] = []
    digest = hashlib.sha256()
    openings = set()
    for file in files:
        header, answers = read_answers(file)
        openings.add(_opening(file, header.options.get("opening", [])))
        if header.fingerprint != fingerprint:
            raise InputError(
                f"{file} holds answers of {header.model} ({header.fingerprint[:12]}...), and the "
                f"draft is for the checkpoint {fingerprint[:12]}...; use answers of that"
            )
        for answer in answers:
            tokens = np.array([*answer.prompt, *answer.answer], np.int32)
            if tokens.max(initial=0) >= vocab_size:
                raise InputError(f"{file}: {answer.id!r} has a token above {vocab_size - 1}")
            if len(answer.answer):
                key = hashlib.blake2b(answer.id.encode(), digest_size=8).digest()
                at = len(answer.prompt)
                sound = (answer.sound, answer.start) if answer.sound else None
                documents.append(Document(tokens, at, int.from_bytes(key), sound))
                digest.update(at.to_bytes(4) + tokens.tobytes())
                digest.update(b"" if sound is None else repr(sound).encode())
    if not documents:
        raise InputError(f"{', '.join(map(str, files))}: there is no answer to train on")
    if len(openings) > 1:
        raise InputError(f"{', '.join(map(str, files))}: answers begin with different tokens")
    return Corpus(tuple(documents), vocab_size, digest.hexdigest(), openings.pop())


def _opening(file: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [None]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise InputError(f"{file}: 'opening' of its first line is not a list of token ids")
    return tuple(ids)


class Packed:
    """Batches of a corpus, every document once per epoch and whole in one row; what is too long is
    cut (see `cut`).

    A batch: `tokens` int64 [rows, length], padded with 0; `positions` int64, from 0 in every
    document; `documents` int64, 1, 2, ... within a row and 0 for padding; `answer` bool, tokens
    that the target chose.
    """

    def __init__(self, corpus: Corpus, rows: int = 8, length: int = 512, seed: int = 0) -> None:
        """rows, length: of a batch. seed: decides what shares a row, and the order of rows."""
        if rows < 1 or length < 8:
            raise OptionError(
                f"batches of {rows} rows of {length} tokens are too small; give at least one row "
                "of 8 tokens"
            )
        self._seed, self._rows, self._length = seed, rows, length
        cuts = [cut(document, length) for document in corpus.documents]
        self._documents = cuts
        order = np.random.default_rng([seed, 0]).permutation(len(cuts))
        self._packed = _pack([len(d.tokens) for d in cuts], order.tolist(), length)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def batches(self) -> int:
        """Batches of an epoch; the last one may reach into the next epoch."""
        return -(-len(self._packed) // self._rows)

    def batch(self, number: int) -> dict[str, Tensor]:
        """The batch of that number, of an endless stream."""
        first = number * self._rows
        return self._made([self._row(at) for at in range(first, first + self._rows)])

    def all_batches(self) -> Iterator[dict[str, Tensor]]:
        """Every row once, in one order; the last batch may have fewer rows."""
        for first in range(0, len(self._packed), self._rows):
            yield self._made(self._packed[first : first + self._rows])

    def _row(self, at: int) -> list[int]:
        epoch, place = divmod(at, len(self._packed))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, 1, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self._packed))
        return self._packed[int(self._order[place])]

    def _made(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        shape = len(rows), self._length
        tokens, positions, documents = (np.zeros(shape, np.int64) for _ in range(3))
        answer = np.zeros(shape, np.bool_)
        for row, members in enumerate(rows):
            at = 0
            for number, member in enumerate(members, 1):
                document = self._documents[member]
                end = at + len(document.tokens)
                tokens[row, at:end] = document.tokens
                positions[row, at:end] = np.arange(end - at)
                documents[row, at:end] = number
                answer[row, at + document.answer : end] = True
                at = end
        made = {"tokens": tokens, "positions": positions, "documents": documents, "answer": answer}
        return {name: torch.from_numpy(values) for name, values in made.items()}


def cut(document: Document, length: int) -> Document:
    """A document of at most `length` tokens: of its prompt the end is kept, at least a quarter of
    the length; then of its answer the beginning."""
    tokens, at = document.tokens, document.answer
    if len(tokens) <= length:
        return document
    answer = min(len(tokens) - at, length - min(at, length // 4))
    prompt = length - answer
    return Document(tokens[at - prompt : at + answer], prompt, document.key)


def document_mask(documents: Tensor) -> Tensor:
    """bool [rows, length, length]: what each token may look at, from `documents` of a batch: its
    own document up to itself."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, :, None] == documents[:, None, :]) & causal


def _pack(lengths: Sequence[int], order: Sequence[int], length: int) -> list[list[int]]:
    """Put documents, in order, where they leave least room; the fullest row is closed when there
    are too many open ones."""
    rows: list[list[int]] = []
    opened: list[int] = []
    room: list[int] = []
    for member in order:
        need = lengths[member]
        fits = [(room[row], row) for row in opened if room[row] >= need]
        if fits:
            row = min(fits)[1]
        else:
            if len(opened) == _OPEN_ROWS:
                opened.remove(min(opened, key=room.__getitem__))
            row = len(rows)
            rows.append([])
            room.append(length)
            opened.append(row)
        rows[row].append(member)
        room[row] -= need
    return rows
