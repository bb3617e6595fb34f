"""The model that users hold: answers, streams, chats, sessions, limits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.toy_backend import hashed, scripted
from tiny.toy_model import EOS, IM_END, VOCAB, bytes_of, toy_model

from quickdraft.errors import (
    BackendError,
    ContextOverflow,
    InputError,
    OptionError,
    TemplateError,
    TokenizerError,
)
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model, Result


def saying(text: str, prompt: str = "Hi", *, end: bool = True, **options: object) -> Model:
    script = bytes_of(text) + [EOS] * end
    return toy_model(scripted(VOCAB, len(bytes_of(prompt)), script), **options)


def test_an_answer_has_text_tokens_and_timings() -> None:
    result = saying("Paris.").generate("Hi")
    assert result.text == "Paris."
    assert result.token_ids == (*bytes_of("Paris."), EOS)
    assert result.prompt_token_ids == tuple(bytes_of("Hi"))
    assert result.finish_reason == "stop"
    timings = result.timings
    assert (timings.prompt_n, timings.cached_n, timings.predicted_n) == (2, 0, 7)
    assert timings.steps == len(result.steps) - 1
    assert timings.draft_n_accepted <= timings.draft_n
    assert timings.ttft_ms >= timings.prompt_ms > 0
    assert timings.predicted_n == sum(step.emitted for step in result.steps)


def test_the_json_object_is_the_documented_one() -> None:
    printed = json.loads(json.dumps(saying("Hi").generate("Hi").to_dict()))
    assert list(printed) == [
        *("text", "token_ids", "finish_reason", "model", "backend", "flavour", "device"),
        *("guarantee", "kv_cache", "isa", "degraded", "simulated", "prefill", "prediction"),
        *("source", "timings"),
        "drafting",
    ]
    assert list(printed["timings"]) == [
        *("load_ms", "ttft_ms", "prompt_n", "prompt_ms", "cached_n", "predicted_n"),
        *("predicted_ms", "predicted_per_second", "steps", "draft_n", "draft_n_accepted"),
    ]


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
    repeats=st.integers(1, 3),
)
def test_a_stream_joins_to_the_text_and_its_usage_adds_up(text: str, repeats: int) -> None:
    said = text * repeats
    model = saying(said, context_length=1024)
    chunks = list(model.stream("Hi"))
    result = chunks[-1].result
    assert result is not None
    assert [c.result for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert "".join(c.text for c in chunks) == result.text == said
    assert tuple(t for c in chunks for t in c.token_ids) == result.token_ids
    if "\ufffd" not in said:
        assert not any("\ufffd" in c.text for c in chunks)


def test_text_is_streamed_as_soon_as_it_is_decided() -> None:
    model = saying("abc", drafter="none")
    assert [c.text for c in model.stream("Hi")] == ["a", "b", "c", ""]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), stop=st.text("abcd", min_size=1, max_size=3))
def test_stop_strings_cut_drafted_and_plain_answers_alike(seed: int, stop: str) -> None:
    rng = np.random.default_rng(seed)
    word = "".join(rng.choice(list("abcd"), 5))
    said = (word * 12)[: int(rng.integers(10, 60))]
    plain = saying(said, drafter="none").generate("Hi", stop_strings=[stop])
    drafted = saying(said).generate("Hi", stop_strings=[stop], num_draft_tokens=6)
    assert drafted.text == plain.text == said.split(stop)[0]
    assert drafted.token_ids == plain.token_ids
    assert drafted.finish_reason == plain.finish_reason == "stop"


def test_an_unfinished_stop_string_is_shown_at_the_end() -> None:
    assert saying("abc<").generate("Hi", stop_strings="</s>").text == "abc<"
    assert saying("abc", end=False).generate("Hi", max_new_tokens=2).text == "ab"


def test_end_of_text_can_be_replaced_and_ignored() -> None:
    model = saying("abc")
    assert model.generate("Hi", eos_token_id=ord("b")).text == "a"
    assert model.generate("Hi", eos_token_id=ord("b")).token_ids == tuple(bytes_of("ab"))
    ignoring = model.generate("Hi", ignore_eos=True, max_new_tokens=6)
    assert ignoring.token_ids[:4] == (*bytes_of("abc"), EOS)
    assert ignoring.finish_reason == "length"
    longer = model.generate("Hi", min_new_tokens=5, max_new_tokens=5)
    assert EOS not in longer.token_ids
    assert len(longer.token_ids) == 5


def test_a_seed_decides_a_sampled_answer() -> None:
    options = {"temperature": 1.0, "top_k": 0, "max_new_tokens": 30}
    plain = toy_model(drafter="none").generate("Hi", seed=3, **options)
    assert toy_model().generate("Hi", seed=3, **options).token_ids == plain.token_ids
    streamed = list(toy_model().stream("Hi", seed=3, **options))[-1].result
    assert streamed is not None
    assert streamed.token_ids == plain.token_ids
    assert toy_model().generate("Hi", seed=4, **options).token_ids != plain.token_ids
    unseeded = [toy_model().generate("Hi", **options).token_ids for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_defaults_of_the_bundle_are_used() -> None:
    model = toy_model(do_sample=True, temperature=0.5, top_k=7)
    assert model.generation_config == GenerationConfig(temperature=0.5, top_k=7)
    with pytest.raises(OptionError, match="top_p"):
        toy_model(top_p=3)


def test_log_probabilities_come_with_the_tokens() -> None:
    logits = hashed(VOCAB)
    result = toy_model(logits).generate(
        "Hi", min_new_tokens=5, max_new_tokens=5, logprobs=3, temperature=0.7, seed=0
    )
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == list(result.token_ids)
    said = list(result.prompt_token_ids)
    for entry in result.logprobs:
        row = logits(tuple(said)).astype(np.float64)
        law = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(law[entry.token_id], abs=1e-5)
        assert [t for t, _ in entry.top] == np.argsort(-law, kind="stable")[:3].tolist()
        said.append(entry.token_id)
    assert len(result.to_dict()["logprobs"]) == 5


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("", InputError, "empty"),
        ([], InputError, "empty"),
        ("x" * 256, ContextOverflow, r"257 tokens.*holds 256"),
        ("x" * 2_000_000, InputError, r"2000000 characters .* 256 tokens"),
        ("\ud800", TokenizerError, "lone surrogate"),
        ([VOCAB], InputError, "token 260"),
        ([-1], InputError, "token -1"),
        ([1.5], InputError, "1.5"),
        ([2**70], InputError, "token 118"),
    ],
    ids=repr,
)
def test_bad_prompts_are_refused(prompt: object, error: type[Exception], message: str) -> None:
    model = toy_model()
    for call in (model.generate, model.stream):
        with pytest.raises(error, match=message):
            call(prompt)  # type: ignore[operator]
    assert model.generate("Hi", max_new_tokens=1).finish_reason == "length"


def test_prompts_that_just_fit_are_answered() -> None:
    result = toy_model().generate("\0" * 255)
    assert len(result.token_ids) == 1
    assert result.finish_reason == "length"


def test_bad_options_are_refused_at_the_call() -> None:
    model = toy_model()
    with pytest.raises(OptionError, match="did you mean 'max_new_tokens'"):
        model.stream("Hi", max_tokens=3)
    with pytest.raises(OptionError, match="logit_bias names token 999"):
        model.stream("Hi", logit_bias={999: 1})
    with pytest.raises(OptionError, match="callback"):
        model.generate("Hi", callback=3)
    with pytest.raises(OptionError, match="did you mean 'prompt_lookup'"):
        toy_model(drafter="prompt_lokup")


def test_unsound_logits_fail_the_answer_and_not_the_session() -> None:
    sound, broken = hashed(VOCAB), [False]

    def logits(tokens: tuple[int, ...]) -> np.ndarray:
        return np.full(VOCAB, np.nan, np.float32) if broken[0] else sound(tokens)

    model = toy_model(logits)
    session = model.session()
    first = model.generate("Hi", session=session, max_new_tokens=5)
    broken[0] = True
    with pytest.raises(BackendError, match="logit of nan"):
        model.generate("Hi there", session=session)
    broken[0] = False
    again = model.generate("Hi", session=session, max_new_tokens=5)
    assert again.token_ids == first.token_ids


def test_callbacks_get_the_text() -> None:
    class Sink:
        def __init__(self) -> None:
            self.parts: list[str] = []
            self.ended = 0

        def put(self, text: str) -> None:
            self.parts.append(text)

        def end(self) -> None:
            self.ended += 1

    sink, parts = Sink(), []
    saying("abc").generate("Hi", callback=sink)
    saying("abc").generate("Hi", callback=parts.append)
    assert "".join(sink.parts) == "".join(parts) == "abc"
    assert sink.ended == 1


def test_an_answer_can_be_cancelled_from_another_thread() -> None:
    model, cancel, started = toy_model(context_length=4096), CancelToken(), threading.Event()
    model.backend.before_step = lambda step, token: started.set() if step == 3 else None
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model.generate, "Hi", cancel=cancel, max_new_tokens=4000)
        assert started.wait(10)
        cancel.cancel()
        result = running.result(10)
    assert result.finish_reason == "cancelled"
    plain = toy_model(context_length=4096).generate("Hi", max_new_tokens=4000)
    assert result.token_ids == plain.token_ids[: len(result.token_ids)]


def test_a_token_cancelled_before_stops_at_once() -> None:
    cancel = CancelToken()
    cancel.cancel()
    result = toy_model().generate("Hi", cancel=cancel)
    assert (result.text, result.token_ids, result.finish_reason) == ("", (), "cancelled")


def test_time_ends_an_answer() -> None:
    result = toy_model().generate("Hi", max_time=1e-9)
    assert (result.token_ids, result.finish_reason) == ((), "time")


def test_a_session_computes_only_what_is_new() -> None:
    model = toy_model()
    session = model.session()
    first = model.generate("Hello", session=session, max_new_tokens=4)
    longer = [*first.prompt_token_ids, *first.token_ids, *bytes_of(" and")]
    second = model.generate(longer, session=session, max_new_tokens=4)
    assert second.timings.cached_n == len(longer) - 4 - 1
    assert second.timings.prompt_n == 5
    assert second.token_ids == model.generate(longer, max_new_tokens=4).token_ids
    same = model.generate(longer, session=session, max_new_tokens=4)
    assert same.timings.prompt_n == 1
    session.clear()
    assert model.generate(longer, session=session).timings.cached_n == 0


def test_a_session_of_another_model_is_refused() -> None:
    session = saying("yes").session()
    with pytest.raises(InputError, match="the session is another model's"):
        saying("no").stream("Hi", session=session)


def test_one_session_answers_one_question_at_a_time() -> None:
    model = toy_model()
    session = model.session()
    stream = model.stream("Hi", session=session)
    next(stream)
    with pytest.raises(InputError, match="already answering"):
        model.generate("Hi", session=session)
    stream.close()
    assert model.generate("Hi", session=session, max_new_tokens=3).token_ids


def test_sessions_in_several_threads_do_not_mix() -> None:
    model = toy_model()
    alone = [toy_model().generate(f"Prompt {i}", max_new_tokens=30).token_ids for i in range(8)]

    def ask(i: int) -> Result:
        return model.generate(f"Prompt {i}", max_new_tokens=30)

    with ThreadPoolExecutor(4) as pool:
        assert [r.token_ids for r in pool.map(ask, range(8))] == alone


def test_a_conversation_remembers() -> None:
    model = toy_model(context_length=2048)
    chat = model.conversation("Be brief.")
    said = []
    for turn in ("One", "Two", "Three"):
        result = chat.send(turn, max_new_tokens=12)
        said += [{"role": "user", "content": turn}, {"role": "assistant", "content": result.text}]
        assert chat.messages == [{"role": "system", "content": "Be brief."}, *said]
        fresh = model.chat(chat.messages[:-1], max_new_tokens=12)
        assert result.token_ids == fresh.token_ids
        assert result.prompt_token_ids == fresh.prompt_token_ids
    assert result.timings.cached_n > 50
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.send("One", max_new_tokens=12).text == said[1]["content"]


@pytest.mark.parametrize("how", ["fail", "cancel", "drop"])
def test_a_conversation_goes_on_after_an_answer_that_did_not_end(how: str) -> None:
    model = toy_model(context_length=2048)
    chat, plain = model.conversation(), model.conversation()
    for each in (chat, plain):
        each.send("One", max_new_tokens=8)
    before = list(chat.messages)
    if how == "drop":
        stream = chat.stream("Two")
        next(stream)
        stream.close()
    elif how == "cancel":
        cancel = CancelToken()
        cancel.cancel()
        assert chat.send("Two", cancel=cancel).finish_reason == "cancelled"
    else:
        model.backend.before_step = _fail_once()
        with pytest.raises(BackendError):
            chat.send("Two", max_new_tokens=8)
    assert chat.messages == before
    assert (
        chat.send("Two", max_new_tokens=8).token_ids
        == plain.send("Two", max_new_tokens=8).token_ids
    )


def _fail_once() -> Callable[[int, object], None]:
    failed: list[bool] = []

    def before_step(step: int, token: object) -> None:
        if not failed:
            failed.append(True)
            raise BackendError("the device is gone")

    return before_step


def test_a_model_without_template_does_not_chat() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        toy_model(template=None).chat([{"role": "user", "content": "Hi"}])


def test_chat_ends_at_the_turn_token() -> None:
    prompt_ids = toy_model().tokenize_chat([{"role": "user", "content": "Hi"}])
    model = toy_model(scripted(VOCAB, len(prompt_ids), [*bytes_of("Yes"), IM_END]))
    result = model.chat([{"role": "user", "content": "Hi"}])
    assert (result.text, result.finish_reason) == ("Yes", "stop")


def test_a_closed_model_says_so() -> None:
    with toy_model() as model:
        assert model.detokenize(model.tokenize("Hi")) == "Hi"
    with pytest.raises(BackendError, match="closed"):
        model.generate("Hi")
