"""Rules on lengths, words and the source hold for plain, drafted and searched answers alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny.checkpoint import EOS
from tiny.models import write_tiny_model
from tiny.process import call
from tiny.seq2seq_checkpoint import tiny_t5, write_t5

import quickdraft
from quickdraft.errors import OptionError
from quickdraft.export.parts import generation_of
from quickdraft.export.pipeline import export_checkpoint, export_model
from quickdraft.runtime.model import Model

NEW = 14
TEXT = "the rain in it and an old one"
Answer = tuple[int, ...]


@pytest.fixture(
    scope="module", params=["reference", pytest.param("hotpath", marks=pytest.mark.native), "onnx"]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    export_checkpoint(tiny_t5(), folder, formats=(request.param,), weights="fp32")
    with quickdraft.load(folder, drafter="recycling,prompt_lookup") as loaded:
        yield loaded


def answers(model: Model, **options: Any) -> Iterator[Answer]:
    """Plain; drafted twice in a session, whose drafts then hit; beams."""
    options = {"max_new_tokens": NEW, "eos_token_id": [319], **options}
    plain = model.generate(TEXT, num_draft_tokens=0, **options)
    yield plain.token_ids
    session = model.session()
    for _ in range(2):
        drafted = model.generate(TEXT, num_draft_tokens=5, session=session, **options)
        assert drafted.token_ids == plain.token_ids
    assert sum(step.accepted for step in drafted.steps) > 0
    yield from (each.token_ids for each in model.search(TEXT, num_beams=4, **options).sequences)


def ngrams(tokens: Answer, size: int) -> set[Answer]:
    return {tokens[i : i + size] for i in range(len(tokens) - size + 1)}


def test_words_that_are_bad_do_not_come(model: Model) -> None:
    free = model.generate(TEXT, max_new_tokens=NEW, eos_token_id=[319]).token_ids
    bad = [[free[0]], list(free[2:4])]
    for answer in answers(model, bad_words_ids=bad):
        assert free[0] not in answer
        assert free[2:4] not in ngrams(answer, 2)


def test_the_source_is_not_repeated(model: Model) -> None:
    source, options = tuple(range(2, 250)), {"max_new_tokens": NEW, "eos_token_id": [319]}
    free = model.generate(source, **options).token_ids
    assert set(free) & set(source), "it would say some of it"
    for size in (1, 2):
        rule = {**options, "encoder_no_repeat_ngram_size": size}
        plain = model.generate(source, num_draft_tokens=0, **rule).token_ids
        session = model.session()
        for _ in range(2):
            drafted = model.generate(source, num_draft_tokens=5, session=session, **rule)
            assert drafted.token_ids == plain
        best = model.search(source, num_beams=3, num_return_sequences=3, **rule)
        for answer in (plain, *(each.token_ids for each in best.sequences)):
            assert not ngrams(answer, size) & ngrams(source, size)


def test_the_last_token_is_forced(model: Model) -> None:
    for answer in answers(model, forced_eos_token_id=318):
        assert len(answer) == NEW
        assert answer[-1] == 318
    result = model.generate(TEXT, max_new_tokens=NEW, eos_token_id=[318], forced_eos_token_id=318)
    assert (result.finish_reason, result.token_ids[-1]) == ("stop", 318)


def test_lengths_count_what_an_answer_begins_with(model: Model) -> None:
    free = model.generate(TEXT, max_new_tokens=NEW, eos_token_id=[319]).token_ids
    ends = [free[2]]
    first = free.index(free[2]) + 1
    short = model.generate(TEXT, max_new_tokens=NEW, eos_token_id=ends)
    assert len(short.token_ids) == first
    for opening in ([0], [0, 7, 8]):
        found = model.generate(
            TEXT, opening=opening, max_length=9, min_length=8, eos_token_id=ends, num_draft_tokens=4
        )
        assert 8 <= len(opening) + len(found.token_ids) <= 9
    with pytest.raises(OptionError, match="max_length is 3"):
        model.generate(TEXT, opening=[0, 7, 8], max_length=3)


def test_settings_of_a_checkpoint_hold_and_the_rest_is_said(tmp_path: Path) -> None:
    write_t5(tmp_path / "t5")
    told = {"bad_words_ids": [[5]], "forced_eos_token_id": 318, "max_length": 6, "num_beams": 4}
    config = tmp_path / "t5" / "generation_config.json"
    begins = {"decoder_start_token_id": 0, "eos_token_id": EOS}
    config.write_text(json.dumps({**begins, **told, "penalty_alpha": 0.6}))
    export_model(tmp_path / "t5", tmp_path / "bundle", formats=("reference",), weights="fp32")
    shown = call("show", tmp_path / "bundle").stdout
    assert "not supported      penalty_alpha=0.6" in shown or "penalty_alpha=0.6\n" in shown
    assert "only on request" in shown
    done = call("run", tmp_path / "bundle", "hello", "--drafter", "none", "--ignore-eos", "--json")
    assert '"predicted_n": 5' in done.stdout
    assert "318]" in done.stdout
    assert "not supported: penalty_alpha=0.6" in done.stderr


def test_only_a_model_with_a_text_as_source_repeats_it(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "bundle", formats=("reference",))
    loaded = quickdraft.load(tmp_path / "bundle")
    with loaded as other, pytest.raises(OptionError, match="no text as a source"):
        other.generate("hello", encoder_no_repeat_ngram_size=2)


def test_settings_stood_in_the_config_before_they_had_a_file() -> None:
    checkpoint = tiny_t5(max_length=30, min_length=4, bad_words_ids=[[5]])
    assert "max_length" not in generation_of(checkpoint)
    older = generation_of(replace(checkpoint, generation={}))
    assert (older["max_length"], older["min_length"], older["bad_words_ids"]) == (30, 4, [[5]])
    bart = replace(checkpoint, config={"model_type": "bart"}, generation={})
    assert generation_of(bart)["forced_eos_token_id"] == 2
