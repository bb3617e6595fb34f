"""How answers with times are cut, what may follow what, and how captions are written."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.runtime.audio.captions import FORMATS
from quickdraft.runtime.audio.transcribe import Segment, cut_at_times
from quickdraft.runtime.timestamps import LATEST_FIRST, follow_timestamps

BEGIN, END, VOCAB = 100, 90, 200


def allowed(answer: list[int], seed: int = 0, times: float = 0.0) -> set[int]:
    """Tokens that may follow; times: added to the logits of times."""
    logits = np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32)
    logits[BEGIN:] += times
    follow_timestamps(logits, np.array(answer, np.int64), BEGIN, END)
    return set(np.flatnonzero(np.isfinite(logits)).tolist())


def test_an_answer_begins_with_an_early_time() -> None:
    assert allowed([]) == set(range(BEGIN, BEGIN + LATEST_FIRST + 1))


def test_words_follow_the_first_time_and_never_go_back() -> None:
    assert not any(token >= BEGIN for token in allowed([BEGIN + 3]))
    assert min(t for t in allowed([BEGIN + 3, 5], times=9)) == BEGIN + 4
    after = allowed([BEGIN + 3, 5, BEGIN + 7], times=9)
    assert min(t for t in after if t >= BEGIN) == BEGIN + 7
    assert not any(t < END for t in after)


def test_times_win_when_they_are_likelier_together() -> None:
    assert min(allowed([BEGIN, 5], times=9)) > BEGIN
    assert any(t < END for t in allowed([BEGIN, 5], times=-9))


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(30))
def test_the_rules_are_those_of_transformers(seed: int) -> None:
    import torch
    from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

    rng = np.random.default_rng(seed)
    answer: list[int] = []
    config = GenerationConfig(no_timestamps_token_id=BEGIN - 1, eos_token_id=END, bos_token_id=END)
    config.max_initial_timestamp_index = LATEST_FIRST
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    for _ in range(12):
        logits = rng.normal(size=VOCAB).astype(np.float32)
        logits[BEGIN:] -= np.float32(rng.uniform(0, 6))
        expected = theirs(torch.tensor([[7, *answer]]), torch.tensor(logits[None]))[0].numpy()
        found = follow_timestamps(logits.copy(), np.array(answer, np.int64), BEGIN, END)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        answer.append(int(found.argmax()))


def test_pairs_of_times_cut_and_move_the_window() -> None:
    t = [BEGIN + i for i in range(60)]
    cut = cut_at_times([t[0], 1, 2, t[10], t[12], 3, t[20], t[20], 4, 5], BEGIN)
    assert cut.parts == ((0, 10, (1, 2)), (12, 20, (3,)))
    assert cut.advance == 20


def test_a_single_time_at_the_end_ends_the_window() -> None:
    t = [BEGIN + i for i in range(60)]
    cut = cut_at_times([t[0], 1, t[10], t[12], 3, t[20]], BEGIN)
    assert cut.parts == ((0, 10, (1,)), (12, 20, (3,)))
    assert cut.advance is None
    assert cut_at_times([t[5], 1, 2, t[9]], BEGIN).parts == ((5, 9, (1, 2)),)
    assert cut_at_times([1, 2], BEGIN).parts == ((0, None, (1, 2)),)


@given(st.lists(st.integers(0, VOCAB - 1), max_size=30))
def test_no_word_before_the_cut_is_lost(tokens: list[int]) -> None:
    cut = cut_at_times(tokens, BEGIN)
    words = [token for token in tokens if token < BEGIN]
    found = [token for _, _, said in cut.parts for token in said]
    assert found == words[: len(found)]
    if cut.advance is None:
        assert found == words


SEGMENTS = [Segment(0.0, 2.5, "He & I <b>", (1,)), Segment(3661.0004, 3662.25, "a --> b", (2,))]


def written(form: str, segments: list[Segment]) -> str:
    return "".join(FORMATS[form](segments))


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_captions_are_written_while_segments_are_found(form: str) -> None:
    asked: list[int] = []

    def segments() -> Iterator[Segment]:
        for number, segment in enumerate(SEGMENTS):
            asked.append(number)
            yield segment

    for piece in FORMATS[form](segments()):
        assert asked == ([] if piece == "WEBVTT\n" else [0] if "He" in piece else [0, 1])


def test_captions() -> None:
    assert written("text", SEGMENTS) == "He & I <b>\na --> b\n"
    assert written("srt", SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,500\nHe & I <b>\n\n2\n01:01:01,000 --> 01:01:02,250\na -> b\n"
    )
    assert written("vtt", SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nHe &amp; I &lt;b&gt;\n"
        "\n01:01:01.000 --> 01:01:02.250\na -&gt; b\n"
    )
    found = json.loads(written("json", SEGMENTS))
    assert found["segments"][1]["start"] == 3661.0004
    assert written("vtt", []) == "WEBVTT\n"
