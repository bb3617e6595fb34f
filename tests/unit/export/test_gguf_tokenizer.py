"""Tokenizers rebuilt from metadata: what they do, and which metadata they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from tiny.gguf_file import BOOL, F32, I32, STRING, U8, U32, GgufFile, array, pair
from tiny.gguf_models import (
    CONTROL,
    MERGES,
    NORMAL,
    SPECIALS,
    USER,
    byte_alphabet,
    byte_level,
    sentencepiece,
)
from tokenizers import Tokenizer

from quickdraft.errors import CheckpointError, UnsupportedModel
from quickdraft.export.checkpoints.base import TokenizerFiles
from quickdraft.export.checkpoints.gguf_header import parse_header
from quickdraft.export.checkpoints.gguf_tokenizer import read_tokenizer

TEXTS = (
    "hello world",
    "  hello   world  ",
    "naïve café 日本語 🙂 👩‍👩‍👧‍👦",
    "tab\tnew\nline\r\nnul\0bell\a",
    "<|im_start|>user\nhello<|im_end|>",
    "12345 1.5e-3",
    "",
)
WORDS = [*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), *SPECIALS]


def _read(
    pairs: list[bytes], architecture: str = "qwen2", rows: int = 1_000, more: tuple[bytes, ...] = ()
) -> TokenizerFiles:
    head = pair("general.architecture", STRING, architecture)
    data = GgufFile([head, *pairs, *more]).to_bytes()
    return read_tokenizer(parse_header(data, "t.gguf").metadata, "t.gguf", rows)


def _load(files: TokenizerFiles) -> Tokenizer:
    return Tokenizer.from_buffer(files.tokenizer_json)


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "dbrx", "smaug-bpe", "qwen2", "tekken", "gpt-4o"]
)
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_round_trip(pre: str, text: str) -> None:
    tokenizer = _load(_read(byte_level(pre, bos_token_id=None, add_bos_token=None)))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_byte_level_ids() -> None:
    files = _read(byte_level())
    tokenizer = _load(files)
    assert tokenizer.encode("hello world").tokens == ["hello", "Ġwor", "ld"]
    assert tokenizer.encode("<|im_end|>").ids == [WORDS.index("<|im_end|>")]
    assert files.bos_token_id == WORDS.index("<|im_start|>")
    # The named end first, then the well-known one.
    assert files.eos_token_ids == (WORDS.index("<|im_end|>"), WORDS.index("<|endoftext|>"))
    assert not files.add_bos
    assert files.special_tokens["unk_token"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("gpt-2", "a  1", ["a", "Ġ", "Ġ", "1"]),
        # Digits are cut off first, so both spaces stay together.
        ("smollm", "a  1", ["a", "ĠĠ", "1"]),
        ("llama-bpe", "HELLO'LL", None),
        # NFC: a letter and its accent become one character.
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("smollm", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_pre_tokenizers_differ(pre: str, text: str, tokens: list[str] | None) -> None:
    encoded = _load(_read(byte_level(pre))).encode(text, add_special_tokens=False)
    assert tokens is None or encoded.tokens == tokens


def test_llama_bpe_starts_with_bos_and_takes_whole_tokens() -> None:
    words = [*WORDS, "xyz"]
    files = _read(
        byte_level(
            "llama-bpe",
            tokens=(STRING, words),
            token_type=(I32, [NORMAL] * 265 + [CONTROL] * 3 + [NORMAL]),
            add_bos_token=None,
        )
    )
    assert files.add_bos
    encoded = _load(files).encode("xyz")
    assert encoded.tokens == ["<|im_start|>", "xyz"]


def test_user_defined_tokens_are_matched_and_shown() -> None:
    types = [NORMAL] * 265 + [CONTROL, CONTROL, USER]
    tokenizer = _load(_read(byte_level(token_type=(I32, types))))
    ids = tokenizer.encode("a<|im_end|><|im_start|>").ids
    assert ids[1:] == [267, 266]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<|im_end|>"


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", [t for t in TEXTS if "<|" not in t])
def test_sentencepiece_round_trip(prefix: bool, text: str) -> None:
    files = _read(sentencepiece(prefix), "llama")
    tokenizer = _load(files)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert files.add_bos
    assert (files.bos_token_id, files.eos_token_ids) == (1, (2,))


def test_sentencepiece_ids() -> None:
    tokenizer = _load(_read(sentencepiece(), "llama"))
    assert tokenizer.encode("hello world").tokens == ["<s>", "▁hello", "▁world"]
    assert tokenizer.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a</s>b", add_special_tokens=False).ids.count(2) == 1


def test_gemma_runs_of_spaces_are_single_tokens() -> None:
    words = ["<unk>", "<s>", "</s>", "▁", "a", "  "]
    changes: dict[str, Any] = {
        "tokens": (STRING, words),
        "token_type": (I32, [2, 3, 3, 1, 1, 4]),
        "scores": (F32, [0.0] * 6),
    }
    tokenizer = _load(_read(sentencepiece(False, **changes), "gemma2"))
    encoded = tokenizer.encode("a  a a", add_special_tokens=False)
    assert encoded.ids == [4, 5, 4, 3, 4]
    assert tokenizer.decode(encoded.ids) == "a  a a"


def test_phi3_special_tokens_eat_spaces() -> None:
    tokenizer = _load(_read(sentencepiece(), "phi3"))
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("</s>  h").ids[1:]] == ["</s>", "▁h"]


def test_chat_template() -> None:
    template = pair("tokenizer.chat_template", STRING, "{{ messages }}")
    assert _read(byte_level(), more=(template,)).chat_template == "{{ messages }}"
    assert _read(byte_level()).chat_template is None


BYTES_TYPE = (I32, [NORMAL] * 264 + [6] + [CONTROL] * 3)
BAD: dict[str, tuple[list[bytes], str]] = {
    "unknown kind": (byte_level(model=(STRING, "bert")), "tokenizer.ggml.model is 'bert'"),
    "no kind": (byte_level(model=None), "tokenizer.ggml.model is None"),
    "unknown pre": (byte_level("martian"), "tokenizer.ggml.pre is 'martian'; supported are"),
    "pre not text": (byte_level(pre=(U32, 3)), "tokenizer.ggml.pre is not text"),
    "no tokens": (byte_level(tokens=None), "tokenizer.ggml.tokens is not a list"),
    "tokens not text": (byte_level(tokens=(I32, [1, 2])), "tokenizer.ggml.tokens is not a list"),
    "types too short": (byte_level(token_type=(I32, [1])), "token_type has 1 entries for 268"),
    "types too wide": (byte_level(token_type=(U8, [1] * 268)), "not a list of 32-bit integers"),
    "type out of range": (byte_level(token_type=(I32, [9] * 268)), "token_type holds 9"),
    "duplicate token": (byte_level(tokens=(STRING, [*WORDS[:-1], "a"])), "'a' has two ids"),
    "endless token": (byte_level(tokens=(STRING, [*WORDS[:-1], "a" * 513])), "513 characters"),
    "empty special": (byte_level(tokens=(STRING, [*WORDS[:-1], ""])), "267 has no text"),
    "byte <0xZZ>": (
        byte_level(tokens=(STRING, [*WORDS[:264], "<0xZZ>", *SPECIALS]), token_type=BYTES_TYPE),
        "reads '<0xZZ>'",
    ),
    "byte <0x-1>": (
        byte_level(tokens=(STRING, [*WORDS[:264], "<0x-1>", *SPECIALS]), token_type=BYTES_TYPE),
        "reads '<0x-1>'",
    ),
    "id out of range": (byte_level(eos_token_id=(U32, 268)), "eos_token_id is 268"),
    "id negative": (byte_level(bos_token_id=(I32, -1)), "bos_token_id is -1"),
    "id not a number": (byte_level(bos_token_id=(STRING, "1")), "bos_token_id is not an integer"),
    "merges missing": (byte_level(merges=None), "tokenizer.ggml.merges is not a list"),
    "merge of strangers": (byte_level(merges=(STRING, ["q q"])), "item 0 .* 'q q'"),
    "merge of one": (byte_level(merges=(STRING, ["h e", "h"])), "item 1 "),
    "bos without id": (
        byte_level(bos_token_id=None, add_bos_token=(BOOL, True)),
        "there is no bos_token_id",
    ),
    "flag not a flag": (byte_level(add_bos_token=(U32, 1)), "add_bos_token is not a boolean"),
    "no end": (
        byte_level(eos_token_id=None, token_type=(I32, [NORMAL] * 268)),
        "no token ends a text",
    ),
    "scores as u8": (sentencepiece(scores=(U8, [1] * 100)), "not a list of 32-bit floats"),
    "scores too short": (sentencepiece(scores=(F32, [1.0])), "scores has 1 entries"),
    "scores NaN": (
        sentencepiece(
            tokens=(STRING, ["<unk>", "<s>", "</s>"]),
            token_type=(I32, [2, 3, 3]),
            scores=(F32, [0.0, float("nan"), 0.0]),
        ),
        "scores holds NaN",
    ),
    "template not text": ([*byte_level(), pair("tokenizer.chat_template", U32, 1)], "not text"),
    "template too long": (
        [*byte_level(), pair("tokenizer.chat_template", STRING, "x" * (2**20 + 1))],
        "1048577 characters",
    ),
    "template list": ([*byte_level(), array("tokenizer.chat_template", U32, [1])], "not text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tokenizers_are_refused(kind: str) -> None:
    pairs, message = BAD[kind]
    with pytest.raises(CheckpointError, match=message) as caught:
        _read(pairs)
    assert str(caught.value).startswith("t.gguf: ")


def test_more_tokens_than_rows() -> None:
    with pytest.raises(CheckpointError, match="268 tokens for an embedding of 267 rows"):
        _read(byte_level(), rows=267)


def test_missing_pre_means_different_things() -> None:
    assert b"NFC" in _read(byte_level(None), "qwen2").tokenizer_json
    assert b"NFC" not in _read(byte_level(None), "gpt2").tokenizer_json
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre is missing"):
        _read(byte_level(None), "llama")


def test_unknown_pre_is_unsupported_not_damaged() -> None:
    with pytest.raises(UnsupportedModel):
        _read(byte_level("martian"))
