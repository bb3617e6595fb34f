"""Bundles with predictors, from their files to the answer, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny.predicted import write_predicted_model

import quickdraft
from quickdraft.runtime.model import Model, Result

BACKENDS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}
PROMPT = list(range(40, 110))
OPTIONS = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True, "prefill_chunk_size": 16}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.native] if name == "hotpath" else [])
        for name in BACKENDS
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("predicted") / "bundle"
    write_predicted_model(folder, formats=(BACKENDS[request.param],))
    with quickdraft.load(folder, drafter="none", backend=request.param, store=False) as loaded:
        yield loaded


def ask(model: Model, prefill: str, prompt: list[int] = PROMPT, **options: object) -> Result:
    return model.generate(prompt, prefill=prefill, **{**OPTIONS, **options})


def test_a_right_predictor_changes_nothing(model: Model) -> None:
    exact = ask(model, "exact")
    for prefill in ("predicted", "hybrid:20", "predicted+refresh", "hybrid:8@right+refresh"):
        said = ask(model, prefill)
        assert said.token_ids == exact.token_ids
        assert said.guarantee == "lossy"
        assert said.prediction is not None
        assert said.prediction.refresh_error is None


def test_a_wrong_predictor_changes_the_answer_until_it_is_refreshed(model: Model) -> None:
    exact = ask(model, "exact")
    assert ask(model, "predicted@wrong").token_ids != exact.token_ids
    said = ask(model, "predicted@wrong+refresh", max_new_tokens=100)
    assert said.prediction is not None
    at = said.prediction.exact_from
    if at is not None:  # else the answer was faster than its refresh
        text = [*PROMPT, *said.token_ids[:at]]
        rest = ask(model, "exact", text, max_new_tokens=100 - at)
        assert said.token_ids[at:] == rest.token_ids


def test_a_conversation_goes_on(model: Model) -> None:
    chat, plain = model.session(), model.session()
    prompt = list(PROMPT)
    for turn in range(3):
        kind = ("predicted", "predicted+refresh", "exact")[turn]
        said = ask(model, kind, prompt, session=chat)
        assert said.token_ids == ask(model, "exact", prompt, session=plain).token_ids
        assert (said.prefill == "exact") == (turn == 2)
        prompt += [*said.token_ids, *range(120, 130)]
