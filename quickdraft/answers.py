"""Files of answers that a model gave to training prompts: written by runtime, read by training.

JSON lines: the first says which model answered and how, every other is one answer. A file grows by
whole lines; whoever writes it may be killed at any moment, so a last line that is torn is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from quickdraft import strict_json
from quickdraft.errors import InputError
from quickdraft.hashes import storage_error, sync

VERSION = 1
_MAX_LINE = 64 << 20
_MAX_DEPTH = 8


@dataclass(frozen=True)
class AnswersHeader:
    """Which model answered, and how.

    model: its name, for people. fingerprint: of its checkpoint (manifest.SourceEntry). weights: its
    weight format. tokenizer: sha256 of the tokenizer file. vocab_size: all ids are below it.
    options: of the answers. Two files with equal headers may be joined.
    """

    model: str
    fingerprint: str
    weights: str
    tokenizer: str
    vocab_size: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True)
class Answer:
    """An answer. id: of its prompt. prompt, answer: token ids, those of the chat template and an
    end-of-text token included. finish: stop, or length where it was cut. sound: of a speech model,
    the file that it answers about, which has no prompt then; start: its first sample, at 16 kHz."""

    id: str
    prompt: Sequence[int]
    answer: Sequence[int]
    temperature: float
    seed: int
    finish: str
    sound: str = ""
    start: int = 0


_OF_SOUND = {"sound", "start"}


def read_answers(file: Path) -> tuple[AnswersHeader, Iterator[Answer]]:
    """The header of a file, and its answers in order, read as they are asked for.

    Raises:
        InputError: it is missing, or is not a file of answers; also raised by the iterator.
    """
    lines = _complete_lines(file)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{file} holds no answers; make it with `quickdraft train generate`")
    return _header(file, first[1]), (_answer(file, at, line) for at, line in lines)


class AnswersWriter:
    """Adds answers to a file, which it makes if there is none. One writer at a time.

    done: ids of the answers it held. A torn last line is cut off first. Use it in a `with`.
    """

    def __init__(self, file: Path, header: AnswersHeader) -> None:
        """Raises:
        InputError: the file holds answers of another model or with other options, or another
            process writes to it.
        StorageError: it cannot be written.
        """
        self._path = file
        self.done: set[str] = set()
        self.tokens = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(file, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise storage_error(error, str(file)) from error
        try:
            self._lock()
            self._go_on(header)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        """Hold the file for this process, where the system can; a lock ends with its process."""
        try:
            import fcntl
        except ImportError:  # not a Unix
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process writes to {self._path}; wait for it") from None
        except OSError:  # a file system without locks
            return

    def _go_on(self, header: AnswersHeader) -> None:
        kept = 0
        for at, line in _complete_lines(self._path):
            if at == 1:
                _check_same(self._path, _header(self._path, line), header)
            else:
                answer = _answer(self._path, at, line)
                self.done.add(answer.id)
                self.tokens += len(answer.answer)
            kept += len(line)
        self._file.truncate(kept)
        if not kept:
            self._write({"quickdraft": "answers", **vars(header)})

    def __enter__(self) -> AnswersWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, answer: Answer) -> None:
        """Add an answer; it is in the file when this returns.

        Raises:
            StorageError: it cannot be written.
        """
        value = vars(answer) | {"prompt": [*answer.prompt], "answer": [*answer.answer]}
        left_out = set() if answer.sound else _OF_SOUND
        self._write({name: each for name, each in value.items() if name not in left_out})
        self.done.add(answer.id)
        self.tokens += len(answer.answer)

    def _write(self, value: Mapping[str, Any]) -> None:
        line = dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        data = memoryview(f"{line}\n".encode())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise storage_error(error, str(self._path)) from error

    def close(self) -> None:
        """Push everything to the disk and let go of the file. Calling twice is harmless."""
        if self._file.closed:
            return
        try:
            sync(self._file)
        except OSError as error:
            raise storage_error(error, str(self._path)) from error
        finally:
            self._file.close()


def _complete_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and bytes of the lines that end with a line break. What a crash of the
    system leaves after them (nothing, half a line, zeros) has none."""
    try:
        with open(file, "rb") as lines:
            size = os.fstat(lines.fileno()).st_size
            at = 0
            while line := lines.readline(_MAX_LINE):
                at += 1
                if not line.endswith(b"\n"):
                    if lines.tell() < size:
                        raise InputError(f"{file}: line {at} is longer than {_MAX_LINE} bytes")
                    return
                yield at, line
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def _parse(
    file: Path, at: int, line: bytes, fields: set[str], more: Set[str] = frozenset()
) -> dict[str, Any]:
    try:
        value = strict_json.loads(line, max_bytes=_MAX_LINE, max_depth=_MAX_DEPTH)
    except strict_json.JsonProblem as problem:
        raise InputError(f"{file}: line {at} {problem}") from None
    if not isinstance(value, dict) or not fields <= set(value) <= fields | more:
        raise InputError(
            f"{file}: line {at} is not what `quickdraft train generate` writes: it must have "
            f"{', '.join(sorted(fields))}"
        )
    return value


def _header(file: Path, line: bytes) -> AnswersHeader:
    fields = {"quickdraft", *AnswersHeader.__dataclass_fields__}
    value = _parse(file, 1, line, fields)
    if value.pop("quickdraft") != "answers" or value["version"] != VERSION:
        raise InputError(
            f"{file} is not a file of answers that this quickdraft reads (version {VERSION})"
        )
    for name, kind in (
        ("model", str),
        ("fingerprint", str),
        ("vocab_size", int),
        ("options", dict),
    ):
        if not isinstance(value[name], kind):
            raise InputError(f"{file}: {name!r} of its first line has a wrong type")
    return AnswersHeader(**value)


def _answer(file: Path, at: int, line: bytes) -> Answer:
    value = _parse(file, at, line, set(Answer.__dataclass_fields__) - _OF_SOUND, _OF_SOUND)
    for name in ("prompt", "answer"):
        ids = value[name]
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
            raise InputError(f"{file}: {name!r} of line {at} is not a list of token ids")
    sound, start = value.get("sound", ""), value.get("start", 0)
    if not isinstance(sound, str) or type(start) is not int or start < 0:
        raise InputError(f"{file}: line {at} names a sound that cannot be")
    if not isinstance(value["id"], str) or not (value["prompt"] or sound):
        raise InputError(f"{file}: line {at} has no id or no prompt")
    return Answer(**value)


def _check_same(file: Path, held: AnswersHeader, wanted: AnswersHeader) -> None:
    """Refuse to mix answers."""
    for name in ("fingerprint", "weights", "tokenizer", "vocab_size", "seed", "options"):
        was, now = getattr(held, name), getattr(wanted, name)
        if was != now:
            raise InputError(
                f"{file} holds answers with another {name}: {_short(was)}, and now it is "
                f"{_short(now)}; name another file, or use what it was begun with"
            )


def _short(value: Any) -> str:
    text = dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 200 else f"{text[:197]}..."
