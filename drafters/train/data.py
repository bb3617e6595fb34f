"""Answers of the target, and people's text, as batches: documents packed into rows, in an order
that a seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quickdraft.answers import read_answers
from quickdraft.drafters.train.text import Document as Text
from quickdraft.drafters.train.text import read_documents
from quickdraft.errors import InputError, OptionError

Tokens = NDArray[np.int32]
_OPEN_ROWS = 64
"""Rows that are filled at the same time."""


@dataclass(frozen=True)
class Document:
    """A prompt with its answer, or a text. tokens: int32, of both; answer: where the answer begins,
    of a text after its first token; key: of its id, spread evenly over 64 bits. sound: in place of
    a prompt, a file and a sample of it. is_text: whether people wrote it, and not the target."""

    tokens: Tokens
    answer: int
    key: int
    sound: tuple[str, int] | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Corpus:
    """Documents for one target. sha256: of all of them in their order, hex. opening: what answers
    of an encoder-decoder model begin with, whose prompts are sources; empty for others."""

    documents: tuple[Document, ...]
    vocab_size: int
    sha256: str
    opening: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    def split(self, share: float = 0.05) -> tuple[Corpus, Corpus]:
        """Those to train on and about `share` of them, at least one, to hold out. Which these are
        depends on the ids alone: what was held out once is so in every larger file. Where there
        are answers, text is not tested on."""
        tested = [document for document in self.documents if not document.is_text]
        order = sorted(document.key for document in tested or self.documents)
        limit = max(int(share * 2**64), order[0])
        held = [document.key <= limit for document in self.documents]
        only = [h and not (tested and d.is_text) for h, d in zip(held, self.documents, strict=True)]
        return self._part([not each for each in held]), self._part(only)

    @property
    def texts(self) -> int:
        """How many documents are text."""
        return sum(document.is_text for document in self.documents)

    def _part(self, wanted: Sequence[bool]) -> Corpus:
        chosen = zip(self.documents, wanted, strict=True)
        documents = tuple(document for document, is_wanted in chosen if is_wanted)
        if not documents:
            raise InputError(
                f"{len(self)} answers or texts are too few to train on some and test on others; "
                "let `quickdraft train generate` make more, or give more text"
            )
        return Corpus(documents, self.vocab_size, self.sha256, self.opening)

    def commonest(
        self, count: int, always: Sequence[int] = (), rather: Sequence[int] = ()
    ) -> Tokens:
        """The `count` tokens that answers use most, those of `always` among them: int32, ascending.
        Of equally common ones, and where answers use fewer, those of `rather`, then the lower
        ids."""
        uses = np.zeros(self.vocab_size, np.int64)
        for document in self.documents:
            answer = document.tokens[document.answer :]
            uses += np.bincount(answer, minlength=self.vocab_size)
        uses *= 2
        uses[[*rather]] += 1
        uses[[*always]] = np.iinfo(np.int64).max
        order = np.argsort(-uses, kind="stable")
        return np.sort(order[: min(count, self.vocab_size)]).astype(np.int32)


def read_corpus(
    files: Sequence[Path],
    fingerprint: str,
    vocab_size: int,
    texts: Sequence[Path] = (),
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Corpus:
    """The answers of one target from files of `quickdraft train generate`, and people's text.

    fingerprint: of its checkpoint. texts: see text.read_documents. encode: a text to its tokens.

    Raises:
        InputError: a file is damaged, or holds answers of another model, or answers where text
            should be.
    """
    documents: list[Document] = []
    openings = set()
    for file in files:
        opening, found = _answers(file, fingerprint, vocab_size)
        openings.add(opening)
        documents += found
    if len(openings) > 1:
        raise InputError(f"{', '.join(map(str, files))}: answers begin with different tokens")
    if texts:
        assert encode is not None  # who gives text can read it  # noqa: S101
        read = read_documents(texts, fingerprint)
        documents += [_text(text, encode, vocab_size) for text in read]
    documents = [document for document in documents if len(document.tokens) > document.answer]
    if not documents:
        named = ", ".join(map(str, [*files, *texts]))
        raise InputError(f"{named}: there is no answer or text to train on")
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.answer.to_bytes(4) + document.tokens.tobytes())
        digest.update(b"" if document.sound is None else repr(document.sound).encode())
    opening = openings.pop() if openings else ()
    return Corpus(tuple(documents), vocab_size, digest.hexdigest(), opening)


def _opening(file: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [None]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise InputError(f"{file}: 'opening' of its first line is not a list of token ids")
    return tuple(ids)


def _answers(
    file: Path, fingerprint: str, vocab_size: int
) -> tuple[tuple[int, ...], list[Document]]:
    """What the answers of a file begin with, and the answers."""
    header, answers = read_answers(file)
    opening = _opening(file, header.options.get("opening", []))
    if header.fingerprint != fingerprint:
        raise InputError(
            f"{file} holds answers of {header.model} ({header.fingerprint[:12]}...), and the "
            f"draft is for the checkpoint {fingerprint[:12]}...; use answers of that"
        )
    documents = []
    for answer in answers:
        tokens = np.array([*answer.prompt, *answer.answer], np.int32)
        if tokens.max(initial=0) >= vocab_size:
            raise InputError(f"{file}: {answer.id!r} has a token above {vocab_size - 1}")
        sound = (answer.sound, answer.start) if answer.sound else None
        key = _key(answer.id.encode())
        documents.append(Document(tokens, len(answer.prompt), key, sound))
    return opening, documents


def _text(text: Text, encode: Callable[[str], Sequence[int]], vocab_size: int) -> Document:
    if not isinstance(text, str):
        raise InputError("a file of answers is given as text (--text); give it as --data")
    tokens = np.array(encode(text), np.int32)
    if tokens.max(initial=0) >= vocab_size:
        raise InputError(f"the tokenizer knows a token above {vocab_size - 1}, the model does not")
    # Nothing comes before the first token that could tell it.
    return Document(tokens, 1, _key(tokens.tobytes()), is_text=True)


def _key(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class Packed:
    """Batches of a corpus, every document once per epoch and whole in one row; an answer that is
    too long is cut (see `cut`), a text is divided.

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
        cuts = [piece for document in corpus.documents for piece in _fitting(document, length)]
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


def _fitting(document: Document, length: int) -> list[Document]:
    """A document as those of at most `length` tokens."""
    if not document.is_text:
        return [cut(document, length)]
    parts = [document.tokens[at : at + length] for at in range(0, len(document.tokens), length)]
    return [replace(document, tokens=part) for part in parts if len(part) > document.answer]


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
