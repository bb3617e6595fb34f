"""Tokenizer, decoding piece by piece, stop strings."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.toy_model import BOS, EOS, IM_END, VOCAB, byte_tokenizer, byte_tokenizer_json, bytes_of

from quickdraft.errors import InputError, TokenizerError
from quickdraft.runtime.text import (
    MAX_PENDING,
    Detokenizer,
    Library,
    StopStrings,
    Tokenizer,
    _parse,
    _twin,
)

TOKENIZER = byte_tokenizer()
unicode = st.text(st.characters(exclude_categories=("Cs",)))


def pieces(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(unicode)
def test_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == bytes_of(text)
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=200)
@given(unicode)
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    found = pieces(bytes_of(text))
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 255) | st.just(EOS), max_size=MAX_PENDING))
def test_streamed_bytes_join_to_the_decoded_whole(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids)


def test_an_incomplete_character_is_held_back_and_replaced_at_the_end() -> None:
    assert pieces([65, *"€".encode()[:2]]) == ["A", "", "", "\ufffd"]
    assert pieces([65, *"€".encode(), 66]) == ["A", "", "", "€", "B", ""]


@pytest.mark.parametrize("token", [0x80, EOS])
def test_decoding_stays_linear_when_nothing_becomes_text(token: int) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    for _ in range(20 * MAX_PENDING):
        detokenizer.push(token)
        assert len(detokenizer._window) <= 2 * MAX_PENDING + 2


def test_special_tokens_are_read_only_when_asked_for() -> None:
    text = "a<|im_end|>b"
    assert TOKENIZER.encode(text, special=True) == [97, IM_END, 98]
    assert TOKENIZER.encode(text) == bytes_of(text)
    assert TOKENIZER.decode([97, IM_END, 98]) == "ab"
    assert TOKENIZER.decode([97, IM_END, 98], skip_special=False) == text
    with_bos = byte_tokenizer(bos_token_id=BOS, add_bos=True)
    assert with_bos.encode("a", bos=with_bos.add_bos) == [BOS, 97]


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
        TOKENIZER.encode("ab\ud800")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"model": 3}'])
def test_unreadable_tokenizers_are_refused(content: bytes) -> None:
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer(content, 10)


@pytest.mark.parametrize("pattern", [r"(x+x+)+y", r"(x+)+$", r"(x|xx)+y"])
def test_a_pattern_that_backtracks_without_end_is_an_error(pattern: str) -> None:
    rules = json.loads(byte_tokenizer_json())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    rules["pre_tokenizer"] = {**split, "invert": False}
    tokenizer = Tokenizer(json.dumps(rules).encode(), VOCAB)
    started = time.process_time()
    with pytest.raises(TokenizerError, match="a pattern in it"):
        tokenizer.encode("x" * 1_000 + "!")
    assert time.process_time() - started < 2
    assert tokenizer.encode("a") == [97]


@pytest.mark.parametrize("number", [2**31, VOCAB + 9, -1])
def test_added_tokens_beyond_the_model_are_refused(number: int) -> None:
    rules = json.loads(byte_tokenizer_json())
    rules["added_tokens"].append({**rules["added_tokens"][-1], "id": number, "content": "<far>"})
    with pytest.raises(TokenizerError, match=r"do not belong|cannot be read"):
        Tokenizer(json.dumps(rules).encode(), VOCAB)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    assert Tokenizer(byte_tokenizer_json().encode(), VOCAB)
    with pytest.raises(TokenizerError, match="do not belong together"):
        Tokenizer(byte_tokenizer_json().encode(), VOCAB - 1)
    with pytest.raises(TokenizerError, match="begin or end of text"):
        byte_tokenizer(eos_token_ids=(VOCAB,))


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    for bad in (-1, VOCAB, 2**40):
        with pytest.raises(TokenizerError, match="cannot decode"):
            TOKENIZER.decode([65, bad])


def test_texts_beyond_any_context_are_refused_before_tokenising() -> None:
    TOKENIZER.check_length("x" * 160, 10)
    with pytest.raises(InputError, match=r"161 characters .* 10 tokens"):
        TOKENIZER.check_length("x" * 161, 10)


texts = st.text("abc", max_size=30)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=300)
@given(st.lists(texts, max_size=10), stop_lists)
def test_stop_strings_end_the_text_wherever_it_is_split(parts: list[str], stops: list[str]) -> None:
    found, shown, stopped = StopStrings(stops), "", False
    whole = "".join(parts)
    for part in parts:
        said, stopped = found.push(part)
        shown += said
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    shown += found.flush()
    starts = [whole.find(stop) for stop in stops if stop in whole]
    assert stopped == bool(starts)
    if not starts:
        assert shown == whole
    else:
        # What ends first decides, as it does token by token; the text before it is shown.
        assert whole.startswith(shown)
        assert any(whole.startswith(stop, len(shown)) for stop in stops)


def test_text_is_shown_as_soon_as_it_cannot_begin_a_stop_string() -> None:
    stops = StopStrings(["</end>"])
    assert stops.push("a<") == ("a", False)
    assert stops.push("/e") == ("", False)
    assert stops.push("xy") == ("</exy", False)
    assert stops.push("</end> more") == ("", True)


@settings(max_examples=200)
@given(st.lists(unicode | st.sampled_from(["<|im_end|>", "<|im_start|>", "</s>"]), max_size=6))
def test_the_reading_of_plain_text_shares_the_vocabulary_and_nothing_else(parts: list[str]) -> None:
    content = byte_tokenizer_json().encode()
    special, plain = _parse(content), _parse(content)
    plain.encode_special_tokens = True
    twin = _twin(special)
    assert twin is not None
    twin.encode_special_tokens = True
    text = "".join(parts)
    assert twin.encode(text).ids == plain.encode(text).ids
    assert special.encode(text).ids == _parse(content).encode(text).ids


def test_a_twin_with_other_added_tokens_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _parse(byte_tokenizer_json().encode())
    monkeypatch.setattr(Library, "add_special_tokens", lambda self, tokens: 0)
    assert _twin(library) is None
