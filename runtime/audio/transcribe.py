"""From sound to text: windows of a file, one answer each, cut into segments by the times in it.

The windows move as in OpenAI's Whisper (`transcribe.py`): each begins where the last whole segment
of the one before ended. Ours: a window is asked about by itself, without what was said before, so
that an error does not spread, and only one window of a file is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError
from quickdraft.kvcache.memory import Memories, Source
from quickdraft.runtime.audio.mel import HOP, RATE, log_mel
from quickdraft.runtime.audio.quality import (
    LEAST_LOGPROB,
    MOST_COMPRESSION,
    MOST_SILENCE,
    TEMPERATURES,
    compression_ratio,
    mean_logprob,
    probability,
)
from quickdraft.runtime.audio.sound import Sound
from quickdraft.runtime.audio.speech_tokens import SpeechTokens
from quickdraft.runtime.backends.base import CancelToken, Seq2SeqBackend
from quickdraft.runtime.model import Model
from quickdraft.runtime.result import Result, SourceReport
from quickdraft.runtime.session import Session
from quickdraft.runtime.timestamps import SECONDS_PER_TOKEN
from quickdraft.types import Progress


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
    """What one window gave: its segments, and the whole answer with its times and drafts.

    start, end: seconds from the beginning of the file. language: as the model was told or found
    out, None for a model of English alone. no_speech: how probable it is that nobody speaks, None
    where the model cannot say. silent: taken for silence, so that there are no segments.
    compression: see quality.compression_ratio. logprob: see quality.mean_logprob; None where the
    text was not checked. temperature: above 0 where the text repeated itself or was improbable, and
    was decoded again. cut_off: the answer had no room left, and what else was said is missing.
    """

    segments: tuple[Segment, ...]
    result: Result
    start: float = 0.0
    end: float = 0.0
    language: str | None = None
    no_speech: float | None = None
    silent: bool = False
    compression: float = 0.0
    logprob: float | None = None
    temperature: float = 0.0
    cut_off: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without segments; of the result, its times."""
        return {
            "start": self.start,
            "end": self.end,
            "language": self.language,
            "no_speech": None if self.no_speech is None else round(self.no_speech, 4),
            "silent": self.silent,
            "compression": round(self.compression, 3),
            "logprob": None if self.logprob is None else round(self.logprob, 4),
            "temperature": self.temperature,
            "cut_off": self.cut_off,
            "source": None if self.result.source is None else self.result.source.to_dict(),
            "timings": self.result.timings.to_dict(),
        }


@dataclass(frozen=True)
class _Heard:
    """A window before it is written down. session: of this window alone, so that its memory goes
    with it. opening: what its answer begins with."""

    source: Source
    session: Session
    opening: list[int]
    language: str | None
    no_speech: float | None
    read: SourceReport


@dataclass(frozen=True)
class _Said:
    """The answer about a window, and what is known of it: see Window."""

    result: Result
    silent: bool
    compression: float
    logprob: float | None
    temperature: float


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
        checks: bool = True,
        **overrides: Any,
    ) -> None:
        """language: as in `en`; None lets a model of several find out, window by window. task:
        transcribe, or translate to English. timestamps: let the model say times, too; without them
        a segment is a whole window. checks: leave out windows in which nobody speaks, and decode a
        text that repeats itself or is improbable again, see `quality`. overrides: options of
        generation by name.

        Raises:
            InputError: the model does not read sound, or does not say what a speech model must.
            OptionError: a language or task that the model does not have.
        """
        source = model.spec.source
        if source is None or not source.width:
            raise InputError(
                f"{model.name} reads text, not sound; give a speech model such as whisper-tiny.en"
            )
        self._model, self._source, self._checks = model, source, checks
        special = model.tokenizer.special_tokens
        self._tokens = SpeechTokens.of(model.manifest.generation, special, model.spec.vocab_size)
        self._task = self._tokens.task(task)
        self._language = self._tokens.language(language)
        self._timestamps = timestamps
        self._options = dict(overrides)
        self._options.setdefault("max_new_tokens", max(1, model.spec.context_length // 2))
        if timestamps:
            self._options["timestamp_begin"] = self._tokens.silent + 1
        model.check_options(self._options)

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
            features = log_mel(samples, self._source.length, self._source.width)
            window, advance = self._window(self._hear(features, cancel), at, len(samples), cancel)
            yield window
            step = length if advance is None else round(advance * SECONDS_PER_TOKEN * RATE)
            at += step or length
        if progress is not None:
            progress("transcribe", max(1, len(sound) * 10 // RATE), max(1, len(sound) * 10 // RATE))

    def question(self, sound: Sound) -> tuple[Source, list[int]]:
        """The first window of a file, and what an answer about it begins with.

        Raises:
            AudioError: the file is damaged. BackendError: the engine failed.
        """
        samples = sound.read(0, self._source.length * HOP)
        heard = self._hear(log_mel(samples, self._source.length, self._source.width), None)
        return heard.source, heard.opening

    def segments(
        self, sound: Sound, cancel: CancelToken | None = None, progress: Progress | None = None
    ) -> Iterator[Segment]:
        """The segments of `windows`, one after another."""
        for window in self.windows(sound, cancel, progress):
            yield from window.segments

    def _window(
        self, heard: _Heard, at: int, samples: int, cancel: CancelToken | None
    ) -> tuple[Window, int | None]:
        """One window that begins at sample `at`, and where the next begins within it, see _Cut."""
        said = self._answer(heard, cancel)
        result, silent = replace(said.result, source=heard.read), said.silent
        cut = self._cut(result.token_ids)
        start, seconds = at / RATE, samples / RATE
        segments = () if silent else tuple(self._segments(cut, start, seconds))
        advance = None if silent else cut.advance
        window = Window(
            segments,
            result,
            start,
            start + seconds,
            heard.language,
            heard.no_speech,
            silent,
            said.compression,
            said.logprob,
            said.temperature,
            cut_off=result.finish_reason == "length" and advance is None and not silent,
        )
        return window, advance

    def _hear(self, features: np.ndarray[Any, Any], cancel: CancelToken | None) -> _Heard:
        """Encode a window; find out its language, and whether somebody speaks."""
        source, tokens = Source(features=features), self._tokens
        session = self._model.session(memories=Memories(limit=0))
        read, logits = session.read(source, cancel), None
        if (self._checks and tokens.no_speech is not None) or (
            tokens.languages and self._language is None
        ):
            logits = self._first_logits(session, cancel)
        opening, language = [tokens.start], None
        if tokens.languages:
            by_token = {token: name for name, token in tokens.languages.items()}
            token = self._language
            if token is None:
                assert logits is not None  # computed above  # noqa: S101
                token = max(by_token, key=lambda each: float(logits[each]))
            assert self._task is not None  # SpeechTokens sees to it  # noqa: S101
            opening, language = [*opening, token, self._task], by_token[token]
        if not self._timestamps:
            opening.append(tokens.silent)
        no_speech = None
        if self._checks and logits is not None and tokens.no_speech is not None:
            no_speech = probability(logits, tokens.no_speech)
        return _Heard(source, session, opening, language, no_speech, read)

    def _first_logits(
        self, session: Session, cancel: CancelToken | None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What the model says right after the start, float32 [vocabulary]. Its row stays."""
        start = [self._tokens.start]
        with session.busy():
            session.rewind(start)
            output = self._model.backend.step(Tree.chain(start), session.cache, None, cancel)
            session.cache.commit([0])
        logits: np.ndarray[Any, np.dtype[np.float32]] = output.logits[0]
        return logits

    def _answer(self, heard: _Heard, cancel: CancelToken | None) -> _Said:
        """The answer about a window: of the first temperature whose text can be trusted, else of
        the last one."""
        drawn = "temperature" in self._options or "do_sample" in self._options
        temperatures = TEMPERATURES if self._checks and not drawn else TEMPERATURES[:1]
        for temperature in temperatures[:-1]:
            said = self._said(heard, temperature, cancel)
            if said.silent or not _is_doubtful(said):
                return said
        return self._said(heard, temperatures[-1], cancel)

    def _said(self, heard: _Heard, temperature: float, cancel: CancelToken | None) -> _Said:
        """One answer about a window, and the checks on it."""
        options = dict(self._options)
        if temperature:  # drafts would make it depend on more than the seed
            options |= {"temperature": temperature, "top_k": 0, "seed": 0}
            options |= {"num_beams": 1, "num_draft_tokens": 0}
        result = self._model.generate(
            heard.source, opening=heard.opening, session=heard.session, cancel=cancel, **options
        )
        if cancel is not None:
            cancel.check()
        words = [token for token in result.token_ids if token < self._tokens.silent]
        ratio = compression_ratio(self._model.detokenize(words).strip())
        logprob = self._mean_logprob(heard, result, options, cancel) if self._checks else None
        silent = heard.no_speech is not None and heard.no_speech > MOST_SILENCE
        silent = silent and logprob is not None and logprob <= LEAST_LOGPROB
        return _Said(result, silent, ratio, logprob, temperature)

    def _mean_logprob(
        self, heard: _Heard, result: Result, options: dict[str, Any], cancel: CancelToken | None
    ) -> float:
        """How probable an answer is to the model, by the rules that it was chosen by."""
        backend, memory = self._model.backend, heard.session.memory
        assert isinstance(backend, Seq2SeqBackend)  # it reads sound  # noqa: S101
        assert memory is not None  # it has just answered  # noqa: S101
        config = self._model.generation_config.replace(**options).after(len(heard.opening))
        eos_ids = config.eos_token_id
        rules = config, self._model.tokenizer.eos_token_ids if eos_ids is None else eos_ids
        said = heard.opening, result.token_ids
        return mean_logprob(backend, memory, said, rules, cancel)

    def _cut(self, tokens: Sequence[int]) -> _Cut:
        ends, begin = self._model.tokenizer.eos_token_ids, self._tokens.silent + 1
        kept = [token for token in tokens if token not in ends]
        if self._timestamps:
            return cut_at_times(kept, begin)
        return _Cut(((0, None, tuple(token for token in kept if token < begin)),), None)

    def _segments(self, cut: _Cut, offset: float, seconds: float) -> Iterator[Segment]:
        for start, end, tokens in cut.parts:
            text = self._model.detokenize(tokens).strip()
            if not text:
                continue
            first = min(start * SECONDS_PER_TOKEN, seconds)
            last = seconds if end is None else min(end * SECONDS_PER_TOKEN, seconds)
            yield Segment(offset + first, offset + max(first, last), text, tokens)


def _is_doubtful(said: _Said) -> bool:
    """Whether a text repeats itself or is improbable."""
    improbable = said.logprob is not None and said.logprob < LEAST_LOGPROB
    return improbable or said.compression > MOST_COMPRESSION


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
