"""Messages to token ids, through the chat template of a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from quickdraft import strict_json
from quickdraft.errors import InputError, TemplateError
from quickdraft.runtime.templates import compile_template
from quickdraft.runtime.text import CHARACTERS_PER_TOKEN, Tokenizer

Message = Mapping[str, str]

_MAX_JSON_BYTES, _MAX_JSON_DEPTH = 64 << 20, 64
MAX_MESSAGES = 1_024
ROLES = ("system", "developer", "user", "assistant", "tool")
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF8FF)]


def read_template(path: Path) -> str:
    """The chat template in a file: all of it, or what a `.json` file has under `chat_template`, of
    several the one called default.

    Raises:
        TemplateError: there is none, or the file is damaged.
    """
    try:
        text = path.read_bytes()
        if path.suffix != ".json":
            return text.decode()
        value = strict_json.loads(text, max_bytes=_MAX_JSON_BYTES, max_depth=_MAX_JSON_DEPTH)
    except (OSError, UnicodeDecodeError, strict_json.JsonProblem) as error:
        raise TemplateError(f"{path} cannot be read: {error}") from error
    found = value.get("chat_template") if isinstance(value, dict) else None
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise TemplateError(f"{path} has no chat template")
    return found


class ChatTemplate:
    """A compiled chat template. Thread-safe.

    Text of special tokens stands for them only where the template wrote it; inside a message it is
    plain text, so that no message can end its own turn. For other conversations the ids are those
    of transformers' `apply_chat_template`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._render = compile_template(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        max_characters: int = 1 << 24,
    ) -> str:
        """The text of a conversation, to be read with special tokens recognised.

        Raises:
            TemplateError: the messages are malformed or refused, or the template is over budget.
        """
        check_messages(messages)
        return self._render(
            max_characters,
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        context_length: int,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation.

        Raises:
            TemplateError: as `render`. TokenizerError: a message is not Unicode.
            InputError: the text is far longer than the context holds.
        """
        check_messages(messages)
        limit = CHARACTERS_PER_TOKEN * context_length
        length = sum(len(message["content"]) for message in messages)
        if length > limit:
            raise InputError(
                f"the messages have {length} characters and the model holds {context_length} "
                f"tokens (at most {limit} characters); drop or shorten some"
            )
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        mark = _unused_character(self.source, messages)
        guarded = [
            {**message, "content": _break_up(message["content"], specials, mark)}
            for message in messages
        ]
        text = self.render(
            guarded, add_generation_prompt=add_generation_prompt, max_characters=2 * limit + 4096
        )
        if mark not in text:
            return tokenizer.encode(text, special=True)
        return _encode_marked(text, mark, specials, tokenizer)


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is not a list of {"role": ..., "content": text}.

    Raises:
        TemplateError: which message is wrong, and how.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TemplateError("messages must be a list of {'role': ..., 'content': ...}")
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise TemplateError(f"there are {len(messages)} messages; give 1 to {MAX_MESSAGES}")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TemplateError(f"message {at} is {message!r}; it must have a role and content")
        if message.get("role") not in ROLES:
            raise TemplateError(
                f"message {at} has the role {message.get('role')!r}; use {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise TemplateError(f"the content of message {at} is {kind}; it must be text")


def _unused_character(source: str, messages: Sequence[Message]) -> str:
    """A private-use character that neither the template nor a message has."""
    used = set(source).union(*(message["content"] for message in messages))
    free = next((c for c in _PRIVATE_USE if c not in used), None)
    if free is None:
        raise TemplateError("the messages use every private-use character of Unicode")
    return free


def _break_up(content: str, specials: Iterable[str], mark: str) -> str:
    """Put the mark into every special token's text, also into a part of one at either end that
    the text beside the content could complete."""
    marks = set()
    for special in specials:
        for found in re.finditer(re.escape(special), content):
            marks.add(found.start() + 1)
        for size in range(1, len(special)):
            if content.startswith(special[size:]):
                marks.add(0)
            if content.endswith(special[:size]):
                marks.add(len(content) - size + 1)
    for at in sorted(marks, reverse=True):
        content = content[:at] + mark + content[at:]
    return content


def _encode_marked(
    text: str, mark: str, specials: Sequence[str], tokenizer: Tokenizer
) -> list[int]:
    """Encode with special tokens recognised, except where a mark broke their text."""
    # Special tokens without a mark come from the template; between them, a piece with a mark is
    # plain text and joins no special token.
    pieces = re.split(f"({'|'.join(map(re.escape, specials))})", text)
    ids: list[int] = []
    run = ""
    for piece in pieces:
        if mark not in piece:
            run += piece
            continue
        ids += tokenizer.encode(run, special=True) if run else []
        ids += tokenizer.encode(piece.replace(mark, ""), special=False)
        run = ""
    return ids + (tokenizer.encode(run, special=True) if run else [])
