"""Where two answers part, and what a guarantee allows."""

from __future__ import annotations

import json
import math

import pytest

from quickdraft.runtime.metrics import Timings
from quickdraft.runtime.result import Result, TokenLogprob
from quickdraft.runtime.verification_report import (
    ROUNDING,
    Difference,
    DrafterReport,
    LawCheck,
    Verification,
    difference_of,
)
from quickdraft.types import Guarantee

Entry = tuple[int, dict[int, float]]


def answer(*entries: Entry, timings: Timings | None = None) -> Result:
    """An answer of tokens, each with the log-probabilities of the likeliest ones."""
    logprobs = tuple(
        TokenLogprob(token, top.get(token, -9.0), tuple(top.items())) for token, top in entries
    )
    return Result(
        text="", token_ids=tuple(token for token, _ in entries), finish_reason="length",
        prompt_token_ids=(1,), logprobs=logprobs, model="m", backend="toy", flavour="portable",
        guarantee="bit_identical", timings=timings or Timings(),
    )  # fmt: skip


TOP = {1: -0.1, 2: -2.0}
TIE = {1: -0.7, 2: -0.71}


def compare(
    plain: Result, drafted: Result, guarantee: Guarantee = "bit_identical", sampled: bool = False
) -> Difference | None:
    return difference_of("p", "d", sampled, plain, drafted, guarantee)


def test_equal_answers_have_no_difference() -> None:
    assert compare(answer((1, TOP), (2, TOP)), answer((1, TOP), (2, TOP))) is None


def test_a_token_counts_before_bits_that_differed_earlier() -> None:
    close = {1: -0.1 - 1e-9, 2: -2.0}
    found = compare(answer((1, TOP), (1, TOP), (1, TOP)), answer((1, close), (1, TOP), (2, TOP)))
    assert found is not None
    assert (found.position, found.plain, found.drafted) == (2, 1, 2)
    assert found.same_logits
    assert not found.same_tokens
    assert not found.allowed


def test_what_follows_a_token_that_differs_is_not_compared() -> None:
    found = compare(answer((1, TOP), (1, TOP)), answer((2, TOP), (1, {5: -30.0})))
    assert found is not None
    assert (found.position, found.deviation) == (0, 0.0)


@pytest.mark.parametrize("guarantee", ["bit_identical", "same_distribution", "lossy"])
def test_bits(guarantee: Guarantee) -> None:
    plain = answer((1, TOP), (1, TOP))
    near, far = (answer((1, TOP), (1, {1: -0.1 - by, 2: -2.0})) for by in (1e-6, 2 * ROUNDING))
    for drafted, allowed in ((near, {"same_distribution", "lossy"}), (far, {"lossy"})):
        found = compare(plain, drafted, guarantee)
        assert found is not None
        assert found.position == 1
        assert found.same_tokens
        assert not found.same_logits
        assert found.allowed == (guarantee in allowed)
    order = compare(answer((1, {1: -0.7, 2: -0.7})), answer((1, {2: -0.7, 1: -0.7})))
    assert order is not None


@pytest.mark.parametrize(
    ("top", "sampled", "allowed"),
    [(TIE, False, True), (TOP, False, False), (TOP, True, True), ({1: -0.7}, False, False)],
)
def test_rounding_turns_a_near_tie_and_any_draw(
    top: dict[int, float], sampled: bool, allowed: bool
) -> None:
    plain, drafted = answer((1, top)), answer((2, top))
    found = compare(plain, drafted, "same_distribution", sampled)
    assert found is not None
    assert found.allowed == allowed
    strict = compare(plain, drafted, "bit_identical", sampled)
    assert strict is not None
    assert not strict.allowed


@pytest.mark.parametrize("count", [0, 1])
def test_an_answer_that_ends_elsewhere(count: int) -> None:
    plain = answer(*[(1, TIE)] * 2)
    drafted = answer(*[(1, TIE)] * count)
    for guarantee in ("bit_identical", "same_distribution"):
        found = compare(plain, drafted, guarantee)
        assert found is not None
        assert (found.position, found.plain, found.drafted) == (count, 1, None)
        assert not found.allowed
        assert not found.same_tokens


def test_logits_without_a_common_token_are_infinitely_far() -> None:
    found = compare(answer((1, {1: -0.1})), answer((1, {7: -0.1})), "same_distribution")
    assert found is not None
    assert found.deviation == math.inf
    assert not found.allowed
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["deviation"] is None


def report_of(*differences: Difference, laws: tuple[LawCheck, ...] = ()) -> DrafterReport:
    return DrafterReport("d", list(differences), list(laws))


def verification(**reports: DrafterReport) -> Verification:
    return Verification(
        "m", "toy", "portable", "CPU", None, "bit_identical", 3, 64, reports, {"small_model": "why"}
    )


def test_figures_of_a_drafter() -> None:
    report = report_of()
    assert (report.tokens_per_step, report.acceptance) == (None, None)
    for tokens, steps, drafted, accepted in ((9, 4, 10, 4), (5, 4, 0, 0)):
        timings = Timings(steps=steps, draft_n=drafted, draft_n_accepted=accepted)
        report.count(answer(*[(1, TOP)] * tokens, timings=timings))
    assert (report.tokens_per_step, report.acceptance) == (12 / 8, 4 / 10)


def test_the_json_object() -> None:
    bits = compare(answer((1, TOP)), answer((1, TIE)))
    tokens = compare(answer((1, TOP)), answer((2, TOP)))
    assert bits is not None
    assert tokens is not None
    law = LawCheck("tiny model", 100, 50, 20, math.inf, 1.5)
    assert not law.holds
    found = verification(
        sound=report_of(laws=(LawCheck("tiny model", 100, 50, 20, 1.2, 1.5),)),
        bits=report_of(bits),
        tokens=report_of(tokens),
        law=report_of(laws=(law,)),
    )
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(told)[:5] == ["model", "identical", "bits_identical", "prompts", "drafters"]
    assert (told["model"], told["prompts"], told["holds"]) == ("m", 3, False)
    assert (told["identical"], told["bits_identical"]) == (False, False)
    for entry in told["drafters"].values():
        assert list(entry)[:3] == ["identical", "tokens_per_step", "acceptance"]
    seen = {
        name: (entry["identical"], entry["bits_identical"], entry["holds"])
        for name, entry in told["drafters"].items()
    }
    assert seen == {
        "sound": (True, True, True),
        "bits": (True, False, False),
        "tokens": (False, False, False),
        "law": (True, True, False),
    }
    assert told["drafters"]["law"]["laws"][0]["ratio"] is None
    assert [d["same_tokens"] for d in told["differences"]] == [True, False]
    assert told["untested"] == {"small_model": "why"}
    assert verification(sound=report_of()).holds
