"""A `tokenizer.json` out of the metadata of a GGUF file.

Two kinds exist: `gpt2` (byte-level BPE with a list of merges) and `llama` (SentencePiece BPE, whose
merges follow from the scores). Rules that a GGUF file names only by a word (`tokenizer.ggml.pre`)
are those of the published tokenizers of the models that use the word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from tokenizers import Tokenizer

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import TokenizerFiles
from quickdraft.export.checkpoints.gguf_header import Value
from quickdraft.export.checkpoints.gguf_pretokenizers import (
    COMPOSES_FIRST,
    IGNORE_MERGES,
    byte_level_rule,
    pre_tokenizer_word,
    sentencepiece_decoder,
    sentencepiece_normaliser,
)

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARACTERS = 512
MAX_TEMPLATE_CHARACTERS = 1 << 20
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

_STOP_TEXTS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>", "<|return|>",
)  # fmt: skip
"""Control tokens that end an answer in every model that has them; files often name only one."""

_SPM_DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}


@dataclass(frozen=True)
class _Vocabulary:
    """kind: `gpt2` or `llama`. types: a GGUF token type for each token. ids: token by text."""

    file: str
    architecture: str
    kind: str
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    metadata: Mapping[str, Value]

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.file}: {problem}")

    def special_id(self, name: str) -> int | None:
        """The id in `tokenizer.ggml.<name>_token_id`, checked to name a token."""
        key = f"tokenizer.ggml.{name}_token_id"
        default = _SPM_DEFAULT_IDS.get(name) if self.kind == "llama" else None
        value = self.metadata.get(key, default)
        if value is None or (key not in self.metadata and value >= len(self.tokens)):  # type: ignore[operator]
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key} is not an integer")
        if not 0 <= value < len(self.tokens):
            self.fail(f"{key} is {value}; the vocabulary has {len(self.tokens)} tokens")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """The boolean `tokenizer.ggml.<name>`."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            self.fail(f"tokenizer.ggml.{name} is not a boolean")
        return value


def read_tokenizer(metadata: Mapping[str, Value], file: str, rows: int) -> TokenizerFiles:
    """Rebuild the tokenizer of a model whose embedding has `rows` rows.

    Raises:
        CheckpointError: an array is missing or has the wrong type or length, a token appears
            twice, an id is out of range, or no token ends a text.
        UnsupportedModel: a tokenizer kind or pre-tokenizer that is not implemented.
    """
    vocabulary = _read_vocabulary(metadata, file, rows)
    build = _byte_level if vocabulary.kind == "gpt2" else _sentencepiece
    description = build(vocabulary)
    specials = {
        f"{name}_token": vocabulary.special_id(key)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    add_bos = _adds_bos(vocabulary)
    description["post_processor"] = _post_processor(vocabulary, add_bos)
    text = json.dumps(description, ensure_ascii=False).encode()
    try:
        Tokenizer.from_buffer(text)
    except Exception as error:
        raise CheckpointError(f"{file}: the tokenizer cannot be rebuilt: {error}") from error
    return TokenizerFiles(
        tokenizer_json=text,
        chat_template=_chat_template(vocabulary),
        bos_token_id=specials["bos_token"],
        eos_token_ids=_stop_ids(vocabulary),
        add_bos=add_bos,
        special_tokens={
            name: vocabulary.tokens[token] for name, token in specials.items() if token is not None
        },
    )


def _read_vocabulary(metadata: Mapping[str, Value], file: str, rows: int) -> _Vocabulary:
    def fail(problem: str) -> NoReturn:
        raise CheckpointError(f"{file}: {problem}")

    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(
            f"{file}: tokenizer.ggml.model is {kind!r}; supported are 'gpt2' and 'llama'"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple) or not tokens:
        fail("tokenizer.ggml.tokens is not a list of strings")
    if len(tokens) > min(rows, MAX_TOKENS):
        fail(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens for an embedding of {rows} rows "
            f"(limit {MAX_TOKENS})"
        )
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = np.full(len(tokens), _NORMAL, np.int32)
    if not isinstance(types, np.ndarray) or types.dtype not in (np.int32, np.uint32):
        fail("tokenizer.ggml.token_type is not a list of 32-bit integers")
    if len(types) != len(tokens):
        fail(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    if types.min() < 0 or types.max() > _BYTE:
        fail(f"tokenizer.ggml.token_type holds {types.max()}; types 0 to {_BYTE} exist")
    kinds: list[int] = types.tolist()
    texts: tuple[str, ...] = tokens
    # User-defined runs of spaces are stored plain; the model knows them with the visible mark.
    if kind == "llama":
        texts = tuple(
            text.replace(" ", "▁") if type_ == _USER_DEFINED and not text.strip(" ") else text
            for text, type_ in zip(tokens, kinds, strict=True)
        )
    ids: dict[str, int] = {}
    for index, (text, type_) in enumerate(zip(texts, kinds, strict=True)):
        if ids.setdefault(text, index) != index:
            fail(f"the token {text!r} has two ids, {ids[text]} and {index}")
        if len(text) > MAX_TOKEN_CHARACTERS:
            fail(f"token {index} has {len(text)} characters; the limit is {MAX_TOKEN_CHARACTERS}")
        if type_ == _BYTE and not _BYTE_TOKEN.fullmatch(text):
            fail(f"token {index} is marked as a byte but reads {text!r}; '<0x00>' is the form")
        if not text and type_ in (_CONTROL, _USER_DEFINED):
            fail(f"the special token {index} has no text")
    architecture = str(metadata.get("general.architecture"))
    return _Vocabulary(file, architecture, str(kind), texts, kinds, ids, metadata)


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    """A `gpt2` tokenizer as the content of a tokenizer.json, without post-processor."""
    word = pre_tokenizer_word(
        vocabulary.metadata.get("tokenizer.ggml.pre"), vocabulary.architecture, vocabulary.file
    )
    model = _model(_checked_merges(vocabulary), vocabulary)
    model["ignore_merges"] = word in IGNORE_MERGES
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": {"type": "NFC"} if word in COMPOSES_FIRST else None,
        "pre_tokenizer": byte_level_rule(word, vocabulary.flag("add_space_prefix", False)),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": model,
    }


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """A `llama` tokenizer as the content of a tokenizer.json, without post-processor."""
    prefix = vocabulary.flag("add_space_prefix", True)
    model = _model(_merges_from_scores(vocabulary), vocabulary)
    unknown = vocabulary.special_id("unknown")
    model["unk_token"] = None if unknown is None else vocabulary.tokens[unknown]
    model["fuse_unk"] = True
    model["byte_fallback"] = _BYTE in vocabulary.types
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": sentencepiece_normaliser(prefix),
        "pre_tokenizer": None,
        "decoder": sentencepiece_decoder(prefix),
        "model": model,
    }


def _model(merges: list[tuple[str, str]], vocabulary: _Vocabulary) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _checked_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, tuple):
        vocabulary.fail("tokenizer.ggml.merges is not a list of strings")
    ids, pairs = vocabulary.ids, []
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            vocabulary.fail(
                f"item {index} of tokenizer.ggml.merges, {merge[:80]!r}, is not a pair of tokens "
                "that joins to a token"
            )
        pairs.append((left, right))
    return pairs


def _merges_from_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two normal tokens to a third, best score first, as SentencePiece does.

    Equal scores: longer left part, then longer right part, then lower ids first.
    """
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float32:
        vocabulary.fail("tokenizer.ggml.scores is not a list of 32-bit floats")
    if len(scores) != len(vocabulary.tokens):
        vocabulary.fail(
            f"tokenizer.ggml.scores has {len(scores)} entries for {len(vocabulary.tokens)} tokens"
        )
    if not np.isfinite(scores).all():
        vocabulary.fail("tokenizer.ggml.scores holds NaN or infinite values")
    normal = {
        text: index for text, index in vocabulary.ids.items() if vocabulary.types[index] <= _NORMAL
    }
    joins = []
    for text, index in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                rank = (-scores[index], -cut, -len(right), index, normal[left], normal[right])
                joins.append((rank, left, right))
    joins.sort()
    return [(left, right) for _, left, right in joins]


def _added_tokens(vocabulary: _Vocabulary) -> list[dict[str, Any]]:
    """Control tokens (hidden when decoding for people) and user-defined ones, by id."""
    special = {_CONTROL} | ({_UNKNOWN} if vocabulary.kind == "llama" else set())
    named = {vocabulary.special_id(name) for name in ("bos", "eos", "eot", "padding")}
    strips = vocabulary.architecture == "phi3" and vocabulary.kind == "llama"
    gemma = vocabulary.kind == "llama" and not vocabulary.flag("add_space_prefix", True)
    added = []
    for index, (text, type_) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        hidden = type_ in special or (index in named and type_ != _USER_DEFINED)
        if not hidden and type_ != _USER_DEFINED:
            continue
        added.append(
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                # The published Phi-3 tokenizer eats the spaces after its own special tokens.
                "rstrip": strips and text not in ("<unk>", "<s>", "<|endoftext|>"),
                # Gemma's runs of spaces are looked for after spaces got their visible mark.
                "normalized": gemma and not hidden,
                "special": hidden,
            }
        )
    return added


def _adds_bos(vocabulary: _Vocabulary) -> bool:
    default = vocabulary.kind == "llama"
    if vocabulary.kind == "gpt2":
        default = vocabulary.metadata.get("tokenizer.ggml.pre") in IGNORE_MERGES
    adds = vocabulary.flag("add_bos_token", default)
    if adds and vocabulary.special_id("bos") is None:
        if "tokenizer.ggml.add_bos_token" not in vocabulary.metadata:
            return False
        vocabulary.fail("tokenizer.ggml.add_bos_token is set, but there is no bos_token_id")
    return adds


def _post_processor(vocabulary: _Vocabulary, add_bos: bool) -> dict[str, Any] | None:
    bos = vocabulary.special_id("bos")
    if add_bos and bos is not None:
        text = vocabulary.tokens[bos]
        first = {"SpecialToken": {"id": text, "type_id": 0}}
        a, b = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
        return {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, first, b],
            "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}},
        }
    if vocabulary.kind == "gpt2":
        return {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }
    return None


def _stop_ids(vocabulary: _Vocabulary) -> tuple[int, ...]:
    """Ids that end an answer: the named ones first, then the well-known control tokens."""
    stops = [vocabulary.special_id(name) for name in ("eos", "eot", "eom")]
    stops += [
        vocabulary.ids[text]
        for text in _STOP_TEXTS
        if text in vocabulary.ids and vocabulary.types[vocabulary.ids[text]] == _CONTROL
    ]
    found = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
    if not found:
        vocabulary.fail(
            "no token ends a text: tokenizer.ggml.eos_token_id is missing and no well-known "
            "token stands in for it"
        )
    return found


def _chat_template(vocabulary: _Vocabulary) -> str | None:
    template = vocabulary.metadata.get("tokenizer.chat_template")
    if template is None:
        return None
    if not isinstance(template, str):
        vocabulary.fail("tokenizer.chat_template is not text")
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        vocabulary.fail(
            f"tokenizer.chat_template has {len(template)} characters; the limit is "
            f"{MAX_TEMPLATE_CHARACTERS}"
        )
    return template
