"""How a prefill is asked for, and how predictors are opened and released."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny.toy_backend import ToyBackend, hashed
from tiny.toy_predictor import ToyPredictor, toy_prediction

from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.prediction import EXACT, Prediction, PredictorEntry, Prefill

names = st.none() | st.from_regex(r"[a-z0-9.-]+", fullmatch=True)
prefills = (
    st.just(EXACT)
    | st.builds(Prefill, st.just("predicted"), st.just(1), names, st.booleans())
    | st.builds(Prefill, st.just("hybrid"), st.integers(1, 1 << 20), names, st.booleans())
)


@given(prefills)
def test_what_is_printed_is_read(prefill: Prefill) -> None:
    assert Prefill.parse(str(prefill)) == prefill
    assert Prefill.parse(prefill.kind).predictor is None
    assert GenerationConfig(prefill=str(prefill)).prefill == str(prefill)


@pytest.mark.parametrize(
    ("text", "prefill"),
    [
        ("exact", EXACT),
        ("predicted", Prefill("predicted")),
        ("predicted+refresh", Prefill("predicted", refresh=True)),
        ("hybrid:64", Prefill("hybrid", 64)),
        ("hybrid:1@a.b-c+refresh", Prefill("hybrid", 1, "a.b-c", True)),
    ],
)
def test_forms(text: str, prefill: Prefill) -> None:
    assert Prefill.parse(text) == prefill


@pytest.mark.parametrize(
    "bad",
    [
        *("", "Exact", " exact", "predict", "exact+refresh", "exact@a", "exact:3", "hybrid"),
        *("hybrid:", "hybrid:0", "hybrid:-1", "hybrid:1.5", "hybrid:1048577", "hybrid:9999999999"),
        *("predicted:4", "predicted@", "predicted@a+", "predicted+refresh@a", "predicted\n"),
        *("predicted+refresh+refresh", 1, None, True, ["exact"]),
    ],
)
def test_other_forms_are_refused(bad: object) -> None:
    with pytest.raises(OptionError, match=r"prefill is .*hybrid:N"):
        Prefill.parse(bad)
    if bad is not None:
        with pytest.raises(OptionError, match="prefill is"):
            GenerationConfig.from_dict({"prefill": bad})


def test_no_bundle_asks_for_prediction() -> None:
    assert GenerationConfig.from_defaults({"prefill": "predicted", "top_k": 3}).prefill == "exact"


@pytest.mark.parametrize(
    ("text", "prompt", "held", "rows"),
    [
        ("exact", 100, 0, 0),
        ("predicted", 100, 0, 99),
        ("predicted", 100, 25, 99),
        ("predicted", 100, 26, 0),
        ("predicted", 3, 0, 2),
        ("predicted", 2, 0, 0),
        ("predicted", 1, 0, 0),
        ("hybrid:64", 100, 0, 36),
        ("hybrid:64", 100, 25, 36),
        ("hybrid:76", 100, 23, 0),
        ("hybrid:64", 65, 0, 0),
        ("hybrid:64", 10, 0, 0),
    ],
)
def test_when_rows_are_predicted(text: str, prompt: int, held: int, rows: int) -> None:
    assert Prefill.parse(text).rows(prompt, held) == rows


def test_a_predictor_is_found_by_name_and_the_first_without() -> None:
    prediction = toy_prediction(ToyBackend(hashed(16)))
    assert prediction.entry(Prefill.parse("predicted")).name == "right"
    assert prediction.entry(Prefill.parse("hybrid:3@wrong+refresh")).name == "wrong"
    with pytest.raises(OptionError, match=r"no predictor 'wrog'; it has: right, wrong"):
        prediction.entry(Prefill.parse("predicted@wrog"))


def test_a_bundle_without_predictor_says_how_to_get_one() -> None:
    with pytest.raises(OptionError, match=r"train predictor.*--trained FILE"):
        Prediction(ToyBackend(hashed(16))).entry(Prefill.parse("predicted"))


def test_everything_is_opened_once_and_released() -> None:
    backend, opened = ToyBackend(hashed(16)), []

    def predictor() -> ToyPredictor:
        opened.append(ToyPredictor(backend))
        return opened[-1]

    def second() -> ToyBackend:
        opened.append(ToyBackend(hashed(16)))
        return opened[-1]

    prediction = Prediction(backend, [PredictorEntry("a", predictor)], second)
    prediction.prepare(EXACT)
    assert not opened
    prediction.prepare(Prefill.parse("predicted"))
    assert len(opened) == 1
    prediction.prepare(Prefill.parse("predicted+refresh"))
    assert len(opened) == 2
    assert prediction.predictor("a") is opened[0]
    assert prediction.second() is opened[1]
    prediction.close()
    assert all(each.closed for each in opened)
    assert not backend.closed
    for use in (prediction.second, lambda: prediction.predictor("a")):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_a_backend_that_cannot_be_loaded_twice_does_both() -> None:
    backend = ToyBackend(hashed(16))
    prediction = toy_prediction(backend)
    assert prediction.second() is backend
    prediction.close()
    assert not backend.closed
