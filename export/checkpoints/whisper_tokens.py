"""Whisper's special tokens, found by their text, as transformers' configs name them.

OpenAI's Whisper, `tokenizer.py`: a transcript begins with <|startoftranscript|>, in models of
several languages a language and a task, then <|notimestamps|> or the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from quickdraft.errors import CheckpointError

_START, _END, _NO_TIMES = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
_TASKS = ("transcribe", "translate")


def whisper_generation(
    folder: Path, tokenizer_json: bytes, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Special tokens for the config, and generation settings, of a CTranslate2 folder.

    settings: its config.json: suppress_ids, suppress_ids_begin, lang_ids, alignment_heads.

    Raises:
        CheckpointError: the tokenizer lacks a token, or a list is not one of token ids.
    """
    tokenizer = Tokenizer.from_buffer(tokenizer_json)

    def number(text: str) -> int:
        found = tokenizer.token_to_id(text)
        if found is None:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has no token {text!r}: it is not that of a Whisper"
            )
        return int(found)

    start, end = number(_START), number(_END)
    special = {"eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    # <|startoftranscript|> comes right after <|endoftext|>; models of English alone have one token
    # less before the languages.
    vocab = tokenizer.get_vocab_size()
    multilingual = vocab > 51_864
    generation: dict[str, Any] = {
        **special,
        "is_multilingual": multilingual,
        "no_timestamps_token_id": number(_NO_TIMES),
        "suppress_tokens": _ids(folder, settings, "suppress_ids", vocab),
        "begin_suppress_tokens": _ids(folder, settings, "suppress_ids_begin", vocab),
    }
    if multilingual:
        languages = _ids(folder, settings, "lang_ids", vocab)
        generation["lang_to_id"] = {tokenizer.id_to_token(each): each for each in languages}
        generation["task_to_id"] = {task: number(f"<|{task}|>") for task in _TASKS}
    if heads := settings.get("alignment_heads"):
        generation["alignment_heads"] = heads
    return special, generation


def _ids(folder: Path, settings: Mapping[str, Any], key: str, vocab: int) -> list[int]:
    ids = settings.get(key, [])
    if not isinstance(ids, list) or any(type(i) is not int or not 0 <= i < vocab for i in ids):
        raise CheckpointError(f"{folder / 'config.json'}: {key!r} is not a list of token ids")
    return ids
