"""Rules on lengths, words and what the source holds, against their definitions written slowly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.errors import OptionError
from quickdraft.runtime import processors
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model_defaults import not_followed, to_be_asked_for
from quickdraft.runtime.sampling import process, top_decides

EOS = 1
FEW = st.lists(st.integers(0, 4), max_size=12)


def ruled_out(logits: np.ndarray[Any, Any]) -> set[int]:
    return set(np.flatnonzero(np.isneginf(logits)).tolist())


@given(FEW, FEW, st.integers(1, 4))
def test_ngrams_of_the_source(source: list[int], context: list[int], size: int) -> None:
    known = {tuple(source[i : i + size]) for i in range(len(source) - size + 1)}
    last = context[len(context) - size + 1 :] if size > 1 else []
    expected = {t for t in range(5) if len(last) == size - 1 and (*last, t) in known}
    arrays = np.array(context, np.int64), np.array(source, np.int64)
    assert ruled_out(processors.forbid_source(np.zeros(5, np.float32), *arrays, size)) == expected


@given(FEW, st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=4))
def test_words(context: list[int], words: list[list[int]]) -> None:
    expected = set()
    for word in words:
        if len(word) == 1:
            expected |= set(word) - {EOS}
        elif len(word) <= len(context) and context[-len(word) + 1 :] == word[:-1]:
            expected.add(word[-1])
    logits = processors.forbid_words(np.zeros(5, np.float32), np.array(context), words, (EOS,))
    assert ruled_out(logits) == expected


def test_the_last_token_is_forced_and_no_other() -> None:
    config = GenerationConfig(max_new_tokens=3, forced_eos_token_id=EOS)
    logits, context = np.array([3, 0, 2], np.float32), np.zeros(4, np.int64)
    modes = [process(logits, context, n, config, (EOS,)).mode() for n in range(3)]
    assert modes == [0, 0, EOS]
    # A tree that reaches the last place needs all logits before it is there.
    enough = [top_decides(config, 0, 8, ahead) for ahead in range(4)]
    assert enough == [True, True, False, False]


def test_lengths_in_all_become_lengths_of_the_answer() -> None:
    config = GenerationConfig(max_length=10, min_length=6)
    found = config.after(4)
    assert (found.max_new_tokens, found.min_new_tokens) == (6, 2)
    assert config.after(7).min_new_tokens == 0
    assert GenerationConfig(max_length=10, min_length=99).after(4).min_new_tokens == 6
    with pytest.raises(OptionError, match="max_length is 10, and there are 10 tokens"):
        config.after(10)
    plain = GenerationConfig()
    assert plain.after(99) is plain


def test_lengths_replace_each_other_as_in_transformers() -> None:
    model = GenerationConfig.from_defaults({"max_length": 800, "min_length": 5})
    assert model.after(1).max_new_tokens == 799
    assert model.replace(max_new_tokens=900).after(1).max_new_tokens == 900
    assert model.replace(max_length=20).after(1).max_new_tokens == 19
    assert model.replace(min_new_tokens=2).after(1).min_new_tokens == 2
    both = GenerationConfig.from_defaults({"max_length": 20, "max_new_tokens": 90})
    assert both.after(1).max_new_tokens == 90


RULES: dict[str, Any] = {
    "bad_words_ids": [[5], [6, 7]],
    "min_length": 3,
    "max_length": 9,
    "forced_eos_token_id": 2,
    "encoder_no_repeat_ngram_size": 3,
}


def test_defaults_of_a_model_hold() -> None:
    found = GenerationConfig.from_defaults(RULES)
    assert (found.bad_words_ids, found.min_length, found.max_length) == (((5,), (6, 7)), 3, 9)
    assert (found.forced_eos_token_id, found.encoder_no_repeat_ngram_size) == ((2,), 3)
    assert GenerationConfig.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(OptionError, match="bad_words_ids names token 7"):
        found.check_vocabulary(7)
    with pytest.raises(OptionError, match="forced_eos_token_id names token 2"):
        GenerationConfig(forced_eos_token_id=2).check_vocabulary(2)


@pytest.mark.parametrize("value", ["x", [[]], [5], [["x"]], [[-1]], [[[1]]]])
def test_words_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="bad_words_ids"):
        GenerationConfig(bad_words_ids=value)


def test_what_a_model_wants_and_does_not_get_is_known() -> None:
    wanted = {"penalty_alpha": 0.6, "guidance_scale": 1.0, "num_beams": 4, "top_k": 5}
    assert not_followed({**wanted, "sequence_bias": None}) == {"penalty_alpha": 0.6}
    assert to_be_asked_for({**wanted, "num_beam_groups": 1}) == {"num_beams": 4}
