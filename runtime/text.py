"""Text in, text out: the tokenizer of a bundle, and decoding piece by piece."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer as Library

from quickdraft.errors import InputError, TokenizerError
from quickdraft.manifest import SourceTokenizerEntry, TokenizerEntry

MAX_TOKENIZER_BYTES = 64 << 20
CHARACTERS_PER_TOKEN = 16
"""A text longer than this per token of context is refused before it is tokenised."""

REPLACEMENT = "\ufffd"
MAX_PENDING = 64
"""Tokens held back at most while they make no sound text; keeps decoding linear."""


class Tokenizer:
    """A `tokenizer.json`, bound to the vocabulary of a model. Thread-safe.

    vocab_size: rows of the model's embedding; a token beyond them is refused.
    """

    def __init__(
        self,
        content: bytes,
        vocab_size: int,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        add_bos: bool = False,
        source: SourceReader | None = None,
    ) -> None:
        # The switch between the two readings is state of the library's object: one object each.
        self._special = _parse(content)
        self._plain = _twin(self._special) or _parse(content)
        self._plain.encode_special_tokens = True
        self.vocab_size = vocab_size
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.add_bos = add_bos and bos_token_id is not None
        added = self._special.get_added_tokens_decoder()
        self.special_tokens = {token.content: i for i, token in added.items() if token.special}
        self._check(max(added, default=-1))
        self._source = source or SourceReader(self._plain)

    @classmethod
    def from_entry(cls, folder: Path, entry: TokenizerEntry, vocab_size: int) -> Tokenizer:
        """The tokenizer of a bundle."""
        source = None
        if entry.source is not None:
            source = SourceReader.from_entry(folder, entry.source, vocab_size)
        return cls(
            (folder / entry.file).read_bytes(),
            vocab_size,
            bos_token_id=entry.bos_token_id,
            eos_token_ids=entry.eos_token_ids,
            add_bos=entry.add_bos,
            source=source,
        )

    def _check(self, highest_added: int) -> None:
        highest = max(highest_added, self._special.get_vocab_size() - 1)
        if highest >= self.vocab_size:
            raise TokenizerError(
                f"the tokenizer has a token {highest} and the model has {self.vocab_size} tokens; "
                "they do not belong together"
            )
        for token in (self.bos_token_id, *self.eos_token_ids):
            if token is not None and not 0 <= token < self.vocab_size:
                raise TokenizerError(
                    f"the bundle names token {token} as begin or end of text and the model has "
                    f"{self.vocab_size} tokens"
                )
        if "" in self.special_tokens:
            raise TokenizerError("the tokenizer has a special token without text")

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids of a text.

        special: whether the text of special tokens stands for them; else it is plain text.
        bos: whether to begin with the begin-of-text token.

        Raises:
            TokenizerError: the text is not Unicode (lone surrogates), holds a token that the
                model does not have, or is more than a pattern of the tokenizer can take.
        """
        ids = _encode(self._special if special else self._plain, text)
        self._check_ids(ids)
        if bos and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        return ids

    def encode_source(self, text: str) -> list[int]:
        """Token ids of what an encoder reads: plain text, with the special tokens around it that
        the tokenizer puts there. Raises as `encode`."""
        ids = self._source.encode(text)
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and max(ids) >= self.vocab_size:
            raise TokenizerError(
                f"the tokenizer made token {max(ids)} and the model has {self.vocab_size} tokens; "
                "they do not belong together"
            )

    def vocabulary(self) -> dict[str, int]:
        """Every token, the added ones and those of sources included, by its text."""
        own: dict[str, int] = self._special.get_vocab(with_added_tokens=True)
        return {**self._source.vocabulary(), **own}

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids; incomplete UTF-8 becomes the replacement character."""
        if len(ids) and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            raise TokenizerError(
                f"cannot decode token ids from {min(ids)} to {max(ids)}: the vocabulary has "
                f"{self.vocab_size} tokens"
            )
        text: str = self._special.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def difference(self, other: Tokenizer) -> str | None:
        """What keeps two tokenizers from giving every token the same text; None if nothing does."""
        own = self._special.get_vocab(with_added_tokens=True)
        theirs = other._special.get_vocab(with_added_tokens=True)
        if own == theirs:
            return None
        if len(own) != len(theirs):
            return f"its tokenizer has {len(theirs)} tokens, not {len(own)}"
        text, token = min((own.items() - theirs.items()), key=lambda entry: entry[1])
        return f"its tokenizer has {theirs.get(text, 'no token')} for {text!r}, not {token}"

    def check_length(self, text: str, context_length: int) -> None:
        """Refuse a text that cannot fit a context, before spending time on it.

        Raises:
            InputError: the text is too long; the message has both numbers.
        """
        limit = CHARACTERS_PER_TOKEN * context_length
        if len(text) > limit:
            raise InputError(
                f"the text has {len(text)} characters and the model holds {context_length} tokens "
                f"(at most {limit} characters); shorten it"
            )


class SourceReader:
    """Cuts the texts that an encoder reads. Thread-safe.

    token_ids: the model's token for each of the library's; None where they are the same.
    """

    def __init__(self, library: Library, token_ids: Sequence[int] | None = None) -> None:
        self._library = library
        self._token_ids = token_ids

    @classmethod
    def from_entry(cls, folder: Path, entry: SourceTokenizerEntry, vocab_size: int) -> SourceReader:
        """What a bundle has for sources.

        Raises:
            TokenizerError: it cannot be read, or its map does not fit it or the model.
        """
        library = _parse((folder / entry.file).read_bytes())
        library.encode_special_tokens = True
        data = (folder / entry.token_map).read_bytes()
        tokens = library.get_vocab_size()
        if len(data) != 4 * tokens:
            raise TokenizerError(
                f"{entry.token_map} has {len(data)} bytes; the {tokens} tokens of {entry.file} "
                f"need {4 * tokens}"
            )
        token_ids = struct.unpack(f"<{tokens}i", data)
        if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise TokenizerError(
                f"{entry.token_map} names tokens from {min(token_ids)} to {max(token_ids)}, and "
                f"the model has {vocab_size}"
            )
        return cls(library, token_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of the model, with special tokens around them; none of a text without any."""
        if not _encode(self._library, text):
            return []
        ids = _encode(self._library, text, around=True)
        return ids if self._token_ids is None else [self._token_ids[token] for token in ids]

    def vocabulary(self) -> dict[str, int]:
        """The model's tokens by their text."""
        found: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        ids = self._token_ids
        return found if ids is None else {text: ids[token] for text, token in found.items()}


@contextmanager
def _translated(complaint: str) -> Iterator[None]:
    """Turn what the library raises, which is plain Exception, and its panics, into our error."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{complaint}: {error}") from error
        raise


def _parse(content: bytes) -> Library:
    if len(content) > MAX_TOKENIZER_BYTES:
        raise TokenizerError(
            f"the tokenizer has {len(content)} bytes; at most {MAX_TOKENIZER_BYTES} are read"
        )
    with _translated("the tokenizer cannot be read"):
        library = Library.from_buffer(content)
        library.no_truncation()
        library.no_padding()
    return library


def _twin(library: Library) -> Library | None:
    """A second object over the same vocabulary: parsing it again takes as long as all the rest of
    loading a model. None if the added tokens do not come out the same."""
    twin = Library(library.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(library, part) is not None:
            setattr(twin, part, getattr(library, part))
    added = library.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (twin.add_special_tokens if token.special else twin.add_tokens)([token])
    return twin if twin.get_added_tokens_decoder() == added else None


def _encode(library: Library, text: str, *, around: bool = False) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate at character {error.start}, which is no Unicode "
            "text; decode the input with errors='replace'"
        ) from None
    # The library gives up on a pattern that backtracks without end, by a panic.
    with _translated("the tokenizer failed, probably a pattern in it that takes too long"):
        ids: list[int] = library.encode(text, add_special_tokens=around).ids
    return ids


class Detokenizer:
    """Decodes an answer token by token; the pieces joined are the text of the whole.

    Text that may still change (incomplete UTF-8) is held back. Each token decodes a window that
    begins two pieces back, so that decoders which treat a beginning differently see none, and so
    that the cost of a token does not grow with the answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that this token decides; often a word, sometimes nothing."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        pending = len(self._window) - self._settled
        if pending <= MAX_PENDING and (text.endswith(REPLACEMENT) or len(text) <= len(self._shown)):
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """What is still held back, incomplete characters replaced."""
        return self._settle(self._tokenizer.decode(self._window))

    def _settle(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._shown = self._tokenizer.decode(self._window)
        return new


class StopStrings:
    """Ends a text before the first of some strings, wherever tokens split it."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string came."""
        if not self._strings:
            return text, False
        held = self._held + text
        starts = [at for string in self._strings if (at := held.find(string)) >= 0]
        if starts:
            self._held = ""
            return held[: min(starts)], True
        split = len(held) - self._undecided(held)
        self._held = held[split:]
        return held[:split], False

    def flush(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that may begin a stop string."""
        longest = 0
        for string in self._strings:
            for size in range(min(len(string) - 1, len(text)), longest, -1):
                if text.endswith(string[:size]):
                    longest = size
                    break
        return longest
