"""From sound to text: windows of a file, one answer each, cut into segments by the times in it.

The windows move as in OpenAI's Whisper (`transcribe.py`): each begins where the last whole segment
of the one before ended. Ours: a window is asked about by itself, without what was said before, so
that an error does not spread, and only one window of a file is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quickdraft.errors import InputError, OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.runtime.audio.mel import HOP, RATE, log_mel
from quickdraft.runtime.audio.sound import Sound
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.model import Model
from quickdraft.runtime.result import Result
from quickdraft.runtime.timestamps import SECONDS_PER_TOKEN
from quickdraft.types import Progress

TASKS = ("transcribe", "translate")
_CHOSEN = 1e4
"""Added to logits of languages, so that one of them is chosen."""


@dataclass(frozen=True)
class Segment:
    """Something said. start, end: seconds from the beginning of the file."""

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "token_ids": list(self.token_ids)}


@dataclass(frozen=True)
class Window:
    """What one window gave: its segments, and the whole answer with its times and drafts."""

    segments: tuple[Segment, ...]
    result: Result


@dataclass(frozen=True)
class _Cut:
    """How an answer is cut: parts of its tokens with start and end in tokens of time, None where
    there is none. advance: where the next window begins, in tokens of time; None: after this."""

    parts: tuple[tuple[int, int | None, tuple[int, ...]], ...]
    advance: int | None


class Transcriber:
    """Writes down sound with a loaded speech model."""

    def __init__(
        self,
        model: Model,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = True,
        **overrides: Any,
    ) -> None:
        """language: as in `en`; None lets a model of several find out, window by window. task:
        transcribe, or translate to English. timestamps: let the model say times, too; without them
        a segment is a whole window. overrides: options of generation by name.

        Raises:
            InputError: the model does not read sound.
            OptionError: a language or task that the model does not have.
        """
        source = model.spec.source
        if source is None or not source.width:
            raise InputError(
                f"{model.name} reads text, not sound; give a speech model such as whisper-tiny.en"
            )
        self._model, self._source = model, source
        generation = model.manifest.generation
        self._silent = _token(generation, "no_timestamps_token_id")
        self._start = _token(generation, "decoder_start_token_id")
        self._languages: Mapping[str, int] = generation.get("lang_to_id") or {}
        self._task = _task(generation, task)
        self._language = _language(self._languages, language)
        self._timestamps = timestamps
        self._options = dict(overrides)
        self._options.setdefault("max_new_tokens", max(1, model.spec.context_length // 2))
        if timestamps:
            self._options["timestamp_begin"] = self._silent + 1

    def windows(
        self, sound: Sound, cancel: CancelToken | None = None, progress: Progress | None = None
    ) -> Iterator[Window]:
        """Write down a file, window by window. progress: stage `transcribe`, in tenths of seconds.

        Raises:
            AudioError: the file is damaged. Cancelled: `cancel` was called. BackendError: the
                engine failed.
        """
        length = self._source.length * HOP
        at = 0
        while at < len(sound):
            if cancel is not None:
                cancel.check()
            if progress is not None:
                progress("transcribe", at * 10 // RATE, max(1, len(sound) * 10 // RATE))
            samples = sound.read(at, length)
            result = self._answer(log_mel(samples, self._source.length, self._source.width), cancel)
            if cancel is not None:
                cancel.check()
            cut = self._cut(result.token_ids)
            seconds = len(samples) / RATE
            yield Window(tuple(self._segments(cut, at / RATE, seconds)), result)
            step = length if cut.advance is None else round(cut.advance * SECONDS_PER_TOKEN * RATE)
            at += step or length
        if progress is not None:
            progress("transcribe", max(1, len(sound) * 10 // RATE), max(1, len(sound) * 10 // RATE))

    def segments(
        self, sound: Sound, cancel: CancelToken | None = None, progress: Progress | None = None
    ) -> Iterator[Segment]:
        """The segments of `windows`, one after another."""
        for window in self.windows(sound, cancel, progress):
            yield from window.segments

    def _answer(self, features: np.ndarray[Any, Any], cancel: CancelToken | None) -> Result:
        source = Source(features=features)
        opening = [self._start]
        if self._languages:
            opening += [self._language or self._detect(source, cancel), self._task or 0]
        if not self._timestamps:
            opening.append(self._silent)
        return self._model.generate(source, opening=opening, cancel=cancel, **self._options)

    def _detect(self, source: Source, cancel: CancelToken | None) -> int:
        """The likeliest language: what the model says right after the start."""
        biases = dict.fromkeys(self._languages.values(), _CHOSEN)
        options: dict[str, Any] = {"logit_bias": biases, "max_new_tokens": 1, "suppress_tokens": ()}
        found = self._model.generate(
            source, opening=[self._start], cancel=cancel, **options, begin_suppress_tokens=()
        )
        return found.token_ids[0]

    def _cut(self, tokens: Sequence[int]) -> _Cut:
        ends = self._model.tokenizer.eos_token_ids
        return cut_at_times([token for token in tokens if token not in ends], self._silent + 1)

    def _segments(self, cut: _Cut, offset: float, seconds: float) -> Iterator[Segment]:
        for start, end, tokens in cut.parts:
            text = self._model.detokenize(tokens).strip()
            if not text:
                continue
            first = min(start * SECONDS_PER_TOKEN, seconds)
            last = seconds if end is None else min(end * SECONDS_PER_TOKEN, seconds)
            yield Segment(offset + first, offset + max(first, last), text, tokens)


def cut_at_times(tokens: Sequence[int], begin: int) -> _Cut:
    """Cut an answer without its end-of-text token where one time follows another.

    begin: the token of time 0. What comes after the last pair of times belongs to the next window,
    unless a single time ends the answer: then nothing more is said in this one.
    """
    whole = len(tokens) > 1 and tokens[-1] >= begin > tokens[-2]
    borders = [i for i in range(1, len(tokens)) if tokens[i] >= begin and tokens[i - 1] >= begin]
    if not borders:
        times = [token - begin for token in tokens if token >= begin]
        said = tuple(token for token in tokens if token < begin)
        start = times[0] if times and tokens[0] >= begin else 0
        end = times[-1] if times and times[-1] > start else None
        return _Cut(((start, end, said),), None)
    borders += [len(tokens)] if whole else []
    parts = []
    for first, last in zip([0, *borders], borders, strict=False):
        piece = tokens[first:last]
        said = tuple(token for token in piece if token < begin)
        parts.append((max(0, piece[0] - begin), max(0, piece[-1] - begin), said))
    return _Cut(tuple(parts), None if whole else tokens[borders[-1] - 1] - begin)


def _token(generation: Mapping[str, Any], key: str) -> int:
    found = generation.get(key)
    if not isinstance(found, int) or found < 1:
        raise InputError(
            f"the bundle does not say {key} of its speech model; export it again from a checkpoint "
            "with a generation_config.json"
        )
    return found


def _task(generation: Mapping[str, Any], task: str) -> int | None:
    """The token of a task; None for a model that has one task only."""
    if task not in TASKS:
        raise OptionError(f"the task is {task!r}; it must be {' or '.join(TASKS)}")
    known: Mapping[str, int] = generation.get("task_to_id") or {}
    if not known and task != TASKS[0]:
        raise OptionError("this model knows English only, so there is nothing to translate")
    return known.get(task)


def _language(known: Mapping[str, int], language: str | None) -> int | None:
    if language is None:
        return None
    if not known:
        if language.lower() in ("en", "english"):
            return None
        raise OptionError(f"this model knows English only, not {language!r}")
    token = known.get(f"<|{language.lower()}|>")
    if token is None:
        names = ", ".join(sorted(name.strip("<|>") for name in known))
        raise OptionError(f"the model has no language {language!r} (there are: {names})")
    return token
