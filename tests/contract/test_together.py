"""Answers that are decoded together are, token for token, those that each prompt gets alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny.bundle_backends import GROWING, write_for_growing

import quickdraft
from quickdraft.errors import BackendError, Cancelled, OptionError
from quickdraft.runtime import together
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model
from quickdraft.runtime.together import Together, Told


@dataclass(frozen=True)
class Question:
    ids: list[int]
    config: GenerationConfig


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_for_growing(tmp_path_factory.mktemp("together") / "model")


@pytest.fixture(params=GROWING)
def model(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with quickdraft.load(bundle, backend=request.param, drafter="none", offline=True) as model:
        yield model


def questions(count: int, seed: int = 0) -> list[Question]:
    """Prompts and answers of many lengths, greedy and drawn."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        ids = random.integers(0, 320, random.integers(1, 40)).tolist()
        temperature = (0.0, 0.7, 1.0)[number % 3]
        length = int(random.integers(1, 20))
        config = GenerationConfig(max_new_tokens=length, temperature=temperature, seed=number)
        found.append(Question(ids, config))
    return found


def answered(model: Model, asked: list[Question], limit: int) -> list[Told[Question]]:
    work = Together[Question](model.backend, model.tokenizer.eos_token_ids, limit)
    return list(work.run(iter(asked)))


@pytest.mark.parametrize("rows", [5, 128])
@pytest.mark.parametrize("limit", [1, 3, 8])
def test_together_is_as_alone(
    model: Model, limit: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "PROMPT_ROWS", rows)
    asked = questions(14, seed=limit)
    found = answered(model, asked, limit)
    assert {id(told.asked) for told in found} == set(map(id, asked))
    for told in found:
        alone = model.generate(told.asked.ids, told.asked.config)
        assert list(told.tokens) == list(alone.token_ids)
        assert told.finish == alone.finish_reason


def test_all_tokens_of_a_top_that_is_tied_are_looked_at(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "top_is_tied", lambda top, config: True)
    asked = questions(5)
    for told in answered(model, asked, 3):
        alone = model.generate(told.asked.ids, told.asked.config)
        assert list(told.tokens) == list(alone.token_ids)


def test_an_end_of_text_ends_one_answer_only(model: Model) -> None:
    asked = [Question(q.ids, q.config.replace(max_new_tokens=12)) for q in questions(6)]
    plain = answered(model, asked, 6)
    ends = plain[0].tokens[3]
    work = Together[Question](model.backend, (ends,), 6)
    for told in work.run(iter(asked)):
        alone = model.generate(told.asked.ids, told.asked.config, eos_token_id=(ends,))
        assert list(told.tokens) == list(alone.token_ids)
        assert told.finish == alone.finish_reason


def test_steps_are_shared(model: Model) -> None:
    config = GenerationConfig(max_new_tokens=10, ignore_eos=True, temperature=0.0)
    asked = [Question([number + 1, 5, 9], config) for number in range(8)]
    work = Together[Question](model.backend, (), 8)
    assert len(list(work.run(iter(asked)))) == 8
    assert work.steps == 10


def test_cancelling_drops_what_runs(model: Model) -> None:
    cancel = CancelToken()
    work = Together[Question](model.backend, (), 2, cancel)
    run = work.run(iter(questions(6)))
    next(run)
    cancel.cancel()
    with pytest.raises(Cancelled):
        list(run)


@pytest.mark.parametrize("limit", [0, -1, 65])
def test_a_limit_out_of_range_is_refused(model: Model, limit: int) -> None:
    with pytest.raises(OptionError, match="must be 1 to 64"):
        Together[Question](model.backend, (), limit)


def test_a_closed_model_says_so(bundle: Path) -> None:
    with quickdraft.load(bundle, backend="onnxruntime", drafter="none", offline=True) as model:
        work = Together[Question](model.backend, (), 2)
    with pytest.raises(BackendError, match="closed"):
        list(work.run(iter(questions(2))))
