"""Searches on a tiny model: options, constraints, interruptions, and what a session keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.models import write_tiny_model
from tiny.process import call

import quickdraft
from quickdraft.errors import OptionError
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.beams import rows
from quickdraft.runtime.beams.constraints import TokenTrie
from quickdraft.runtime.beams.search import Limits, Search
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beams") / "model"
    write_tiny_model(folder, formats=("reference",), chat=False)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with quickdraft.load(bundle, backend="reference", drafter="none", offline=True) as model:
        yield model


def search(model: Model, **options: Any) -> Any:
    return model.search([7, 8, 9], **{"max_new_tokens": 6, "num_beams": 4, **options})


def test_an_exhaustive_search_finds_the_best_of_all_answers() -> None:
    """Over a toy law of 3 tokens, of which 0 ends an answer, with a beam for each."""
    random = np.random.default_rng(0)
    law = {
        path: np.log(random.dirichlet([1, 1, 1])).astype(np.float32)
        for length in range(4)
        for path in itertools.product((1, 2), repeat=length)
    }
    found = Search(Limits(32, 1, 0.0, "never", (0,), 0, 4))
    while not found.done:
        found.advance(
            lambda beam, _, n: [(law[beam.tokens][t], t) for t in np.argsort(-law[beam.tokens])]
        )
        found.moves()
    answers = {
        (*path, last): sum(law[path[:i]][token] for i, token in enumerate((*path, last)))
        for path in law
        for last in ((0,) if len(path) < 3 else (0, 1, 2))
    }
    best = sorted(answers, key=lambda answer: -answers[answer])
    assert [answer.tokens for answer in found.answers()] == best


def test_the_three_ways_to_hold_rows_agree(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = search(model, num_return_sequences=4, max_new_tokens=12)
    assert grown.beams.rows == "tree"
    assert grown.beams.computed <= 4 * 11
    monkeypatch.setattr(rows, "GrowingBackend", type("Nothing", (), {}))
    anew = search(model, num_return_sequences=4, max_new_tokens=12)
    assert anew.beams.rows == "tree"
    monkeypatch.setattr(rows, "MOST_ROWS", 6)
    moved = search(model, num_return_sequences=4, max_new_tokens=12)
    assert moved.beams.rows == "caches"
    monkeypatch.setattr(model.backend, "trees", "none")
    forked = search(model, num_return_sequences=4, max_new_tokens=12)
    assert forked.beams.rows == "caches"
    for other in (anew, moved, forked):
        assert [s.token_ids for s in other.sequences] == [s.token_ids for s in grown.sequences]


def test_groups_differ(model: Model) -> None:
    plain = search(model, num_return_sequences=4)
    diverse = search(
        model, num_return_sequences=4, num_beam_groups=4, diversity_penalty=100.0, ignore_eos=True
    )
    assert len({s.token_ids[0] for s in diverse.sequences}) == 4
    assert plain.sequences[0].score >= max(s.score for s in diverse.sequences) - 1e-5


def test_a_session_keeps_what_the_best_answer_stands_on(model: Model) -> None:
    session = model.session()
    first = search(model, session=session)
    again = search(model, session=session)
    assert again.timings.cached_n == 2
    assert again.token_ids == first.token_ids
    longer = [7, 8, 9, *first.token_ids, 5]
    expected = model.generate(longer, max_new_tokens=4)
    search(model, session=session)
    assert model.generate(longer, max_new_tokens=4, session=session).token_ids == expected.token_ids


def test_a_search_ends_when_it_is_told_to(model: Model) -> None:
    cancel = CancelToken()
    cancel.cancel()
    stopped = search(model, cancel=cancel)
    assert (stopped.finish_reason, stopped.token_ids, stopped.sequences) == ("cancelled", (), ())
    asked = 0

    def allowed(tokens: Any) -> None:
        nonlocal asked
        asked += 1
        if asked == 9:
            late.cancel()

    late = CancelToken()
    half = search(model, allowed_tokens=allowed, cancel=late, ignore_eos=True)
    assert half.finish_reason == "cancelled"
    assert 0 < len(half.token_ids) < 6


def test_answers_are_those_allowed(model: Model) -> None:
    answers = [[20, 21], [20, 22, 23], [30]]
    trie = TokenTrie(answers, model.tokenizer.eos_token_ids[:1])
    found = search(model, allowed_tokens=trie, num_return_sequences=4)
    assert sorted([*s.token_ids[:-1]] for s in found.sequences) == sorted(answers)
    assert search(model, allowed_tokens=trie, num_beams=1).finish_reason == "stop"
    begun = search(model, answer_prefix=[40, 41])
    assert begun.token_ids[:2] == (40, 41)
    with pytest.raises(OptionError, match="leave no answer"):
        search(model, allowed_tokens=lambda tokens: [])
    with pytest.raises(OptionError, match="allows token 99999, and the vocabulary has"):
        search(model, allowed_tokens=lambda tokens: [99999])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_beams": 4, "temperature": 1.0}, "num_beams is 4, which does not go with temp"),
        ({"num_beams": 4, "num_draft_tokens": 2}, "with num_draft_tokens"),
        ({"num_beams": 4, "logprobs": 2}, "with logprobs"),
        ({"num_beams": 4, "stop_strings": ["x"]}, "with stop_strings"),
        ({"num_beams": 4, "prefill": "predicted"}, "with prefill predicted"),
        ({"num_beams": 4, "acceptance": "typical"}, "with acceptance typical"),
        ({"num_beams": 4, "seed": 3}, "with seed"),
        ({"num_beams": 4, "max_matching_ngram_size": 3}, "with max_matching_ngram_size"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "a multiple of it"),
        ({"num_beams": 4, "num_beam_groups": 2}, "groups differ only by a penalty"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "needs two groups or more"),
        ({"num_return_sequences": 2}, "more than num_beams"),
        ({"num_beams": 65}, "between 1 and 64"),
        ({"early_stopping": "maybe"}, "must be true, false or 'never'"),
        ({"early_stopping": 1}, "must be true, false or 'never'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        GenerationConfig.from_dict(options)


def test_a_model_cannot_ask_for_beams() -> None:
    read = GenerationConfig.from_defaults({"num_beams": 4, "length_penalty": 2.0})
    assert (read.num_beams, read.length_penalty) == (1, 2.0)


def test_nothing_is_streamed(model: Model) -> None:
    with pytest.raises(OptionError, match="nothing to stream"):
        model.stream([1, 2], num_beams=2)
    with pytest.raises(OptionError, match="nothing to stream"):
        model.generate([1, 2], num_beams=2, callback=print)


def test_on_the_command_line(bundle: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "answers"
    allowed.write_text("yes\nno\n\n", encoding="utf-8")
    command = ("run", bundle, "hello", "-n", 9, "--allowed", allowed, "--num-beams", 2)
    done = call(*command, "--num-return-sequences", 2)
    assert done.returncode == 0, done.stderr
    assert {line for line in done.stdout.splitlines() if "  " not in line} <= {"no", "yes"}
    for wrong in (("--num-beam-groups", 3), ("--early-stopping", "maybe"), ("--temp", 1)):
        assert call(*command, *wrong).returncode == 2
    allowed.write_text("\n", encoding="utf-8")
    assert call(*command).returncode == 2
