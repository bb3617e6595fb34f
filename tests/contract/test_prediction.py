"""What predicted prefill promises: right rows change nothing, wrong ones are never silent, and an
exact answer never stands on them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.answers import CONTEXT, FACTORIES, VOCAB, decode, prompts
from tiny.toy_backend import ToyBackend, adversary, hashed, toy_source, toy_spec
from tiny.toy_model import bytes_of, toy_model
from tiny.toy_predictor import ToyPredictor, swapped, toy_prediction

from quickdraft.drafters.base import DrafterSource
from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session

LOGITS = hashed(VOCAB)
CONFIG = GenerationConfig(max_new_tokens=20, prefill_chunk_size=7)


def new_session(sources: Sequence[DrafterSource] = (), **prediction: object) -> Session:
    backend = ToyBackend(LOGITS, toy_spec(VOCAB, CONTEXT))
    return Session(backend, Drafting(sources, backend), toy_prediction(backend, **prediction))


def answer(
    session: Session, prompt: Sequence[int], prefill: str, **plan: object
) -> tuple[list[int], Decoder]:
    config = CONFIG.replace(prefill=prefill)
    decoder = Decoder(session.backend, session, Plan(config, **plan))
    return [token for emission in decoder.run(prompt) for token in emission.tokens], decoder


def over_wrong_rows(prompt: list[int], rows: int, count: int = 20) -> list[int]:
    """The greedy answer where the first `rows` tokens are read as others."""
    read = [*(token ^ 1 for token in prompt[:rows]), *prompt[rows:]]
    config = CONFIG.replace(max_new_tokens=count)
    return decode(LOGITS, read, config)[0]


@pytest.mark.parametrize("prefill", ["predicted", "hybrid:5", "hybrid:12@right", "hybrid:29"])
@settings(max_examples=25, deadline=None)
@given(
    prompt=prompts,
    first=st.sampled_from([0, 1, 3]),
    drafter=st.sampled_from(["oracle", "several"]),
)
def test_a_right_predictor_changes_nothing(
    prefill: str, prompt: list[int], first: int, drafter: str
) -> None:
    for sources in ((), FACTORIES[drafter](LOGITS, 1)):
        tokens, decoder = answer(new_session(sources, exact_first=first), prompt, prefill)
        assert tokens == decode(LOGITS, prompt, CONFIG)[0]
        tail = int(prefill.partition("@")[0].partition(":")[2] or 1)
        rows = len(prompt) - tail if len(prompt) - tail - first >= 2 else 0
        assert decoder.done == (prefill.partition("@")[0] if rows else "exact")
        assert (decoder.prediction is not None) == (rows > 0)
        if decoder.prediction is not None:
            assert decoder.prediction.rows == rows
            assert decoder.prediction.predictor == "right"
            assert decoder.prediction.predict_ms > 0


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=30),
    tail=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_drafts_change_nothing_over_wrong_rows(prompt: list[int], tail: int, seed: int) -> None:
    rows = len(prompt) - tail
    expected = over_wrong_rows(prompt, rows if rows >= 2 else 0)
    for name in ("several", "all"):
        session = new_session(FACTORIES[name](LOGITS, seed))
        assert answer(session, prompt, f"hybrid:{tail}@wrong")[0] == expected


def test_the_target_runs_the_first_rows_where_the_predictor_wants_it() -> None:
    prompt = list(range(1, 12))
    backend = ToyBackend(LOGITS, toy_spec(VOCAB, CONTEXT))
    wrong = ToyPredictor(backend, swapped)
    session = Session(backend, None, toy_prediction(backend, wrong=wrong, exact_first=3))
    tokens, _ = answer(session, prompt, "hybrid:4@wrong")
    read = [*prompt[:3], *(token ^ 1 for token in prompt[3:7]), *prompt[7:]]
    assert tokens == decode(LOGITS, read, CONFIG)[0]
    assert wrong.calls == [(7, 3)]
    assert session.cache.predicted == 7


def test_an_exact_answer_never_stands_on_predicted_rows() -> None:
    prompt = [1, 2, 3, 4, 5, 6]
    session = new_session()
    said, decoder = answer(session, prompt, "predicted@wrong")
    assert said == over_wrong_rows(prompt, 5)
    assert decoder.done == "predicted"
    longer = [*prompt, *said, 7, 8]
    tokens, decoder = answer(session, longer, "exact")
    assert tokens == decode(LOGITS, longer, CONFIG)[0]
    assert (decoder.cached, decoder.prediction, decoder.done) == (0, None, "exact")
    # What is exact now stays so, whatever is asked for.
    again = [*longer, *tokens, 9]
    tokens, decoder = answer(session, again, "predicted@wrong")
    assert tokens == decode(LOGITS, again, CONFIG)[0]
    assert (decoder.cached, decoder.done) == (len(again) - 2, "exact")


def test_later_turns_go_through_the_target_and_say_what_they_stand_on() -> None:
    prompt = [1, 2, 3, 4, 5, 6]
    session = new_session()
    said, _ = answer(session, prompt, "hybrid:2@wrong")
    longer = [*prompt, *said, 7, 8]
    tokens, decoder = answer(session, longer, "predicted@wrong")
    assert tokens == over_wrong_rows(longer, 4)
    assert decoder.cached == len(longer) - 3
    assert decoder.done == "hybrid:2"
    assert decoder.prediction is not None
    assert (decoder.prediction.rows, decoder.prediction.predict_ms) == (4, 0)


def test_predicted_rows_stay_all_or_none() -> None:
    session = new_session()
    answer(session, [1, 2, 3, 4, 5, 6], "predicted@wrong")
    prompt = [1, 2, 3, 9, 9, 9, 9]
    tokens, decoder = answer(session, prompt, "predicted@wrong")
    assert tokens == over_wrong_rows(prompt, 6)
    assert (decoder.cached, session.cache.predicted) == (0, 6)


def test_few_exact_rows_are_kept_and_the_rest_is_predicted() -> None:
    session = new_session()
    answer(session, [1, 2, 3, 4], "exact")
    prompt = [1, 2, 3, *[5, 6, 7] * 4]
    tokens, decoder = answer(session, prompt, "predicted@wrong")
    read = [*prompt[:3], *(token ^ 1 for token in prompt[3:-1]), prompt[-1]]
    assert tokens == decode(LOGITS, read, CONFIG)[0]
    assert decoder.cached == 3
    assert decoder.prediction is not None
    assert decoder.prediction.rows == len(prompt) - 1


@settings(max_examples=30, deadline=None)
@given(
    turns=st.lists(
        st.tuples(prompts, st.integers(0, 60), st.sampled_from(["exact", "predicted", "hybrid:3"])),
        min_size=2,
        max_size=5,
    )
)
def test_turns_of_all_kinds_over_right_rows(turns: list[tuple[list[int], int, str]]) -> None:
    session = new_session([toy_source(adversary(LOGITS))])
    for new, keep, prefill in turns:
        prompt = [*session.tokens[:keep], *new][: CONTEXT - 30]
        tokens, decoder = answer(session, prompt, prefill)
        assert tokens == decode(LOGITS, prompt, CONFIG)[0]
        assert (decoder.prediction is None) == (not session.cache.predicted)
        assert prefill != "exact" or not session.cache.predicted


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["cancel", "fail", "time"])
def test_a_prediction_that_does_not_end_leaves_a_session_that_goes_on(at: int, how: str) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
    session = new_session(exact_first=2)
    backend = session.backend
    assert isinstance(backend, ToyBackend)
    cancel = CancelToken()

    def before_step(step: int, token: CancelToken | None) -> None:
        if step == at and how == "fail":
            raise BackendError("the device is gone")
        if step == at and how == "cancel":
            cancel.cancel()

    backend.before_step = before_step
    if how == "fail":
        with pytest.raises(BackendError, match="gone"):
            answer(session, prompt, "hybrid:3@wrong")
    elif how == "time":
        assert answer(session, prompt, "hybrid:3@wrong", deadline=0.0)[0] == []
    else:
        tokens, _ = answer(session, prompt, "hybrid:3@wrong", cancel=cancel)
        assert len(tokens) <= 1
    backend.before_step = lambda step, token: None
    tokens, decoder = answer(session, prompt, "exact")
    assert tokens == decode(LOGITS, prompt, CONFIG)[0]
    assert decoder.done == "exact"


def model_with_predictors(**options: object) -> Model:
    model = toy_model(**options)
    model.prediction = toy_prediction(model.backend)
    return model


def test_a_result_says_what_it_stands_on() -> None:
    model = model_with_predictors()
    exact = model.generate("Hello there", max_new_tokens=8)
    assert (exact.prefill, exact.prediction, exact.guarantee) == ("exact", None, "bit_identical")
    assert not any(step.predicted_rows for step in exact.steps)
    session = model.session()
    result = model.generate("Hello there", prefill="predicted", max_new_tokens=8, session=session)
    assert result.token_ids == exact.token_ids
    assert (result.prefill, result.guarantee) == ("predicted", "lossy")
    assert {step.predicted_rows for step in result.steps} == {10}
    assert (result.timings.prompt_n, result.timings.cached_n) == (11, 0)
    printed = result.to_dict()
    assert printed["prefill"] == "predicted"
    assert list(printed["prediction"]) == [
        *("predictor", "rows", "predict_ms", "exact_from", "refresh_ms", "refresh_error")
    ]
    assert printed["prediction"]["rows"] == 10
    assert result.steps[-1].to_dict()["predicted_rows"] == 10
    longer = [*result.prompt_token_ids, *result.token_ids, *bytes_of(" and")]
    later = model.generate(longer, prefill="predicted", session=session, max_new_tokens=4)
    assert (later.prefill, later.guarantee) == ("predicted", "lossy")
    assert later.timings.cached_n > 11
    last = model.generate(longer, session=session, max_new_tokens=4)
    assert (last.prefill, last.guarantee, last.timings.cached_n) == ("exact", "bit_identical", 0)


def test_short_prompts_are_not_predicted() -> None:
    result = model_with_predictors().generate("Hi", prefill="predicted", max_new_tokens=3)
    assert (result.prefill, result.prediction, result.guarantee) == ("exact", None, "bit_identical")


def test_a_default_of_the_model_can_be_overruled() -> None:
    model = model_with_predictors()
    model.use_prefill("hybrid:4")
    assert model.generate("Hello there", max_new_tokens=3).prefill == "hybrid:4"
    assert model.generate("Hello there", prefill="exact", max_new_tokens=3).prefill == "exact"
    config = GenerationConfig(max_new_tokens=3)
    assert model.generate("Hello there", config).prefill == "exact"


def test_what_a_bundle_lacks_is_refused_at_the_call() -> None:
    for ask in ("predicted@none", "hybrid:4@none+refresh"):
        with pytest.raises(OptionError, match="it has: right, wrong"):
            model_with_predictors().stream("Hello there", prefill=ask)
    with pytest.raises(OptionError, match="train predictor"):
        toy_model().stream("Hello there", prefill="predicted")
    with pytest.raises(OptionError, match="train predictor"):
        toy_model().use_prefill("predicted")


def test_a_conversation_over_predicted_rows() -> None:
    model = model_with_predictors(context_length=2048)
    chat, plain = model.conversation("Be brief."), model.conversation("Be brief.")
    for turn in ("One", "Two", "Three"):
        result = chat.send(turn, max_new_tokens=12, prefill="predicted")
        assert result.token_ids == plain.send(turn, max_new_tokens=12).token_ids
        assert (result.prefill, result.guarantee) == ("predicted", "lossy")
    assert result.timings.cached_n > 50
    model.close()
    assert model.prediction.entry  # closed with the model
    with pytest.raises(BackendError, match="closed"):
        model.prediction.predictor("right")
