"""The tokens a speech model steers with: languages, tasks, times, silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quickdraft.errors import InputError, OptionError

TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")
_SEVERAL = 51_865
"""Rows of the smallest vocabulary of a Whisper of several languages, and of no English one."""


@dataclass(frozen=True)
class SpeechTokens:
    """start: what answers begin with. silent: says that no times follow; that of time 0 is the next
    one. no_speech: says that nobody speaks, None where there is none. languages, tasks: by name,
    both empty for a model of English alone."""

    start: int
    silent: int
    no_speech: int | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, generation: Mapping[str, Any], special: Mapping[str, int], vocab_size: int
    ) -> SpeechTokens:
        """From a generation config, and where that is silent from the special tokens of the
        tokenizer, by their text.

        Raises:
            InputError: a token that every answer needs is in neither.
        """
        known = generation.get("lang_to_id") or {}
        languages = _named(known) or (
            _named(special) if _has_several(generation, vocab_size) else {}
        )
        tasks = {}
        if languages or known:
            given = generation.get("task_to_id") or {}
            found = {name: given.get(name, special.get(f"<|{name}|>")) for name in TASKS}
            tasks = {name: token for name, token in found.items() if isinstance(token, int)}
        elif _has_several(generation, vocab_size):
            raise InputError(_missing("lang_to_id", "the languages"))
        if languages and TASKS[0] not in tasks:
            raise InputError(_missing("task_to_id", f"the token of the task {TASKS[0]}"))
        silence = [special[name] for name in _SILENCE if name in special]
        return cls(
            _token(generation, "decoder_start_token_id"),
            _token(generation, "no_timestamps_token_id"),
            silence[0] if silence else None,
            languages,
            tasks,
        )

    def task(self, name: str) -> int | None:
        """The token of a task; None for a model of English alone, which has one.

        Raises:
            OptionError: there is no such task, or this model does not have it.
        """
        if name not in TASKS:
            raise OptionError(f"the task is {name!r}; it must be {' or '.join(TASKS)}")
        if not self.languages and name != TASKS[0]:
            raise OptionError("this model knows English only, so there is nothing to translate")
        if self.languages and name not in self.tasks:
            raise OptionError(f"the model has no task {name!r}; it can {', '.join(self.tasks)}")
        return self.tasks.get(name)

    def language(self, name: str | None) -> int | None:
        """The token of a language, as in `en`; None where it has to be found out, or is English.

        Raises:
            OptionError: the model does not have it.
        """
        if name is None or (not self.languages and name.lower() in ("en", "english")):
            return None
        if not self.languages:
            raise OptionError(f"this model knows English only, not {name!r}")
        token = self.languages.get(name.lower())
        if token is None:
            names = ", ".join(sorted(self.languages))
            raise OptionError(f"the model has no language {name!r} (there are: {names})")
        return token


def _named(tokens: Mapping[str, Any]) -> dict[str, int]:
    """Languages by name among tokens by text, such as `<|en|>`."""
    found = {}
    for text, token in tokens.items():
        match = _LANGUAGE.fullmatch(text)
        if match is not None and isinstance(token, int):
            found[match[1]] = token
    return found


def _has_several(generation: Mapping[str, Any], vocab_size: int) -> bool:
    told = generation.get("is_multilingual")
    return told if isinstance(told, bool) else vocab_size >= _SEVERAL


def _token(generation: Mapping[str, Any], key: str) -> int:
    found = generation.get(key)
    if not isinstance(found, int) or found < 1:
        raise InputError(_missing(key, "it"))
    return found


def _missing(key: str, what: str) -> str:
    return (
        f"the bundle does not say {key} of its speech model, and its tokenizer does not have "
        f"{what}; export it again from a checkpoint with a generation_config.json"
    )
