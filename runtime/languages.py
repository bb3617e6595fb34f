"""Languages of models that translate text, by the codes in their tokenizers.

Three ways to say a language are known: mBART's and NLLB's codes (`de_DE`, `deu_Latn`) and M2M's
(`__de__`) stand in the source, where the tokenizer puts one, and at the beginning of the answer;
Marian's (`>>deu<<`) stands before the text and names the target alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quickdraft.errors import InputError, OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.runtime.text import Tokenizer

_CODES = {
    "around": re.compile(r"([a-z]{2,3})_[A-Z]{2}|([a-z]{3})_[A-Z][a-z]{3}|__([a-z]{2,3})__"),
    "before": re.compile(r">>([a-z]{2,3}(?:_[A-Za-z]+)?)<<"),
}


@dataclass(frozen=True)
class Translation:
    """A text as a prompt, with the languages it is in and is to be put into: a code of the
    tokenizer, such as `de_DE`, or its first part, `de`, where that is enough. None leaves a
    language to the model."""

    text: str
    source_language: str | None = None
    target_language: str | None = None


@dataclass(frozen=True)
class Languages:
    """Those of a tokenizer. codes: tokens by code. where: codes stand `around` a text, or `before`
    it."""

    codes: Mapping[str, int] = field(default_factory=dict)
    where: str = "around"

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Languages:
        """From its added and its ordinary tokens; the kind with the most codes is taken."""
        vocabulary = tokenizer.vocabulary()
        found = [
            cls({text: token for text, token in vocabulary.items() if code.fullmatch(text)}, where)
            for where, code in _CODES.items()
        ]
        return max(found, key=lambda each: len(each.codes))

    def token(self, name: str) -> int:
        """The token of a language.

        Raises:
            OptionError: there is none, or several begin so.
        """
        if name in self.codes:
            return self.codes[name]
        near = [code for code in self.codes if name.lower() in _names(code, self.where)]
        if len(near) == 1:
            return self.codes[near[0]]
        if near:
            raise OptionError(f"{name!r} may be {' or '.join(sorted(near))}; name one of them")
        known = ", ".join(sorted(self.codes)) or "none"
        raise OptionError(f"the tokenizer has no language {name!r} (there are: {known})")

    def question(
        self, asked: Translation, tokenizer: Tokenizer, opening: Sequence[int]
    ) -> tuple[Source, list[int]]:
        """What the encoder reads, and what the answer begins with. opening: as the model says it.

        Raises:
            OptionError: a language is not there, or the model takes none.
            InputError: the tokenizer does not say where it belongs.
        """
        ids, begins = tokenizer.encode_source(asked.text), list(opening)
        if self.where == "before":
            if asked.source_language is not None:
                raise OptionError(
                    "this model is told the target language only; leave out the other"
                )
            if asked.target_language is not None:
                ids = [self.token(asked.target_language), *ids]
            return Source(tokens=np.asarray(ids, np.int64)), begins
        if asked.source_language is not None:
            ids = self._replaced(ids, self.token(asked.source_language))
        if asked.target_language is not None:
            target, tokens = self.token(asked.target_language), set(self.codes.values())
            begins = [target] if begins[0] in tokens else [begins[0], target]
        return Source(tokens=np.asarray(ids, np.int64)), begins

    def _replaced(self, ids: list[int], token: int) -> list[int]:
        """The source with another language where the tokenizer puts one."""
        tokens = set(self.codes.values())
        places = [at for at in (0, len(ids) - 1) if ids and ids[at] in tokens]
        if not places:
            raise InputError(
                "the tokenizer puts no language around a text, so there is no place for one; "
                "export it from a tokenizer.json with its template, or give token ids"
            )
        ids[places[0]] = token
        return ids


def _names(code: str, where: str) -> set[str]:
    match = _CODES[where].fullmatch(code)
    assert match is not None  # only such codes are kept  # noqa: S101
    return {code.lower(), *(part.lower() for part in match.groups() if part)}
