"""A verification finds nothing where all is well, and every fault that is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.toy_backend import ToyBackend, hashed
from tiny.toy_model import VOCAB, toy_model

from quickdraft.drafters.base import (
    Draft,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Drawn,
    Observation,
)
from quickdraft.drafters.distribution import Distribution
from quickdraft.drafters.tree import Tree
from quickdraft.errors import InputError, OptionError
from quickdraft.kvcache.growing import GrowingCache
from quickdraft.registry import DRAFTERS, TRAINED, TRAINED_WITH_ENCODER
from quickdraft.runtime import law_checks
from quickdraft.runtime.accept import Accepted
from quickdraft.runtime.backends.base import StepOutput
from quickdraft.runtime.drafting import Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.law_checks import (
    DRAWS_PER_REAL_DRAW,
    TINY_PROMPT,
    Case,
    cases_of,
    check_tiny,
)
from quickdraft.runtime.model import Model
from quickdraft.runtime.sampling import process
from quickdraft.runtime.verification import (
    Prompt,
    Verification,
    VerificationPlan,
    run_verification,
)

WORDS = 12
PARTS = ("small_model", "auxiliary", *TRAINED, *TRAINED_WITH_ENCODER)
FREE = [n for n in DRAFTERS if n not in PARTS]
PROMPTS = [
    Prompt("first", [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]),
    Prompt("second", [5, 6, 5, 6, 5]),
]


def few_words(tokens: tuple[int, ...]) -> NDArray[np.float32]:
    """Says a dozen tokens only, so that it repeats itself and can be drafted."""
    row = np.full(VOCAB, -30, np.float32)
    row[:WORDS] = _hashed(tokens)
    return row


_hashed = hashed(WORDS, markov=5.0)


class FaultyBackend(ToyBackend):
    """Rows that depend on how many there are."""

    disturb = staticmethod(lambda logits, rows: logits)

    def step(self, tree: Tree, *arguments: Any, **options: Any) -> StepOutput:
        output = super().step(tree, *arguments, **options)
        return replace(output, logits=self.disturb(output.logits, len(tree)))


def model_with(disturb: Any = None, guarantee: str = "bit_identical") -> Model:
    model = toy_model(few_words)
    backend = FaultyBackend(few_words, model.spec)
    backend.guarantee = guarantee
    if disturb is not None:
        backend.disturb = disturb
    model.backend = backend
    return model


def verify(model: Model, **plan: Any) -> Verification:
    plan = {"tokens": 16, "draws": 100, **plan}
    return run_verification(model, PROMPTS, VerificationPlan(**plan))


def test_nothing_is_found_where_all_is_well() -> None:
    stages: dict[str, list[tuple[int, int]]] = {}
    found = run_verification(
        model_with(),
        PROMPTS,
        VerificationPlan(tokens=24, draws=100),
        progress=lambda stage, done, total: stages.setdefault(stage, []).append((done, total)),
    )
    assert found.holds
    assert list(found.drafters) == [*FREE, "auto"]
    assert list(found.untested) == [name for name in DRAFTERS if name not in FREE]
    for report in found.drafters.values():
        assert report.identical
        assert report.bits_identical
        assert report.fallbacks == 0
        assert report.answers == len(PROMPTS) * (4 if report.name == "auto" else 2)
        assert [law.draws for law in report.laws] == [100]
    assert sum(report.accepted for report in found.drafters.values()) > 20
    for stage, counts in stages.items():
        total = counts[-1][1]
        assert counts == [(done, total) for done in range(1, total + 1)], stage
    assert set(stages) == {"answers", "draws"}


def only(found: Verification) -> list[tuple[bool, bool, bool]]:
    """Whether tokens, and logits, were the same, and allowed: of all differences."""
    return [
        (d.same_tokens, d.same_logits, d.allowed)
        for report in found.drafters.values()
        for d in report.differences
    ]


def test_bits_that_depend_on_the_number_of_rows() -> None:
    def scaled(logits: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
        return logits * np.float32(1 + 1e-6 * (rows > 1))

    found = verify(model_with(scaled))
    assert not found.holds
    told = found.to_dict()
    assert told["identical"]
    assert not told["bits_identical"]
    assert {(True, False, False)} == set(only(found))
    allowed = verify(model_with(scaled, "same_distribution"))
    assert allowed.holds
    assert {(True, False, True)} == set(only(allowed))


@pytest.mark.parametrize("guarantee", ["bit_identical", "same_distribution"])
def test_tokens_that_depend_on_the_number_of_rows(guarantee: str) -> None:
    def shifted(logits: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
        noise = np.linspace(-4, 4, WORDS, dtype=np.float32) * (rows > 2)
        return logits + np.pad(noise, (0, VOCAB - WORDS))

    found = verify(model_with(shifted, guarantee))
    assert not found.holds
    assert not found.to_dict()["identical"]
    first = found.to_dict()["differences"][0]
    assert first["plain"] != first["drafted"]
    assert not first["same_logits"]
    assert {d["drafter"] for d in found.to_dict()["differences"]} >= {"recycling", "auto"}


def careless(
    tree: Tree, laws: Mapping[int, Drawn], distribution: Any, rng: np.random.Generator
) -> Accepted:
    """Takes any first child that the target finds possible."""
    path = [0]
    while True:
        p = distribution(path)
        children = [c for c in tree.children(path[-1]) if p.probability(int(tree.tokens[c]))]
        if not children:
            return Accepted(path, p.draw(rng))
        path.append(children[0])


def test_a_rule_that_accepts_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraft.runtime.engine.rule_for", lambda config: careless)
    found = verify(model_with(), draws=300)
    assert not found.holds
    assert not any(law.holds for report in found.drafters.values() for law in report.laws)
    seeded = [d for report in found.drafters.values() for d in report.differences if d.sampled]
    assert seeded
    assert all(d.same_logits and not d.same_tokens for d in seeded)


def test_a_commit_that_keeps_the_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_the_first(cache: GrowingCache, path: Sequence[int]) -> None:
        cache._length += len(path)

    monkeypatch.setattr(GrowingCache, "commit", keep_the_first)
    case = Case("tiny model", ("recycling",))
    assert not check_tiny(case, 500, lambda: None).holds


def draft_with_the_numbers_that_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(decoder: Decoder) -> DraftSettings:
        seed = decoder._plan.config.seed
        decoder._rng = np.random.default_rng(seed)
        return DraftSettings(decoder._law(), seed or 0)

    monkeypatch.setattr(Decoder, "_settings", settings)


def leave_drafts_in_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraft.runtime.accept._residual", lambda p, q: p)


def forget_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties see the answer without the tokens of the path."""

    def blind(logits: Any, context: Any, generated: int, *rest: Any) -> Distribution:
        known = len(TINY_PROMPT) + 1
        return process(logits, context[:known], min(generated, 1), *rest)

    monkeypatch.setattr("quickdraft.runtime.engine.process", blind)


@pytest.mark.parametrize(
    "plant",
    [draft_with_the_numbers_that_judge, leave_drafts_in_the_distribution, forget_the_path],
)
def test_faults_that_change_the_law(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in cases_of("small_model") if case.what.endswith("rsd_s"))
    plant(monkeypatch)
    assert not check_tiny(case, 2000, lambda: None).holds


class Liar:
    """Draws from one law and names another."""

    def __init__(self, honest: bool) -> None:
        self._honest = honest
        self._rng = np.random.default_rng(0)

    def begin(self, tokens: Sequence[int], settings: DraftSettings) -> None:
        self._last = tokens[-1]
        self._rng = np.random.default_rng(settings.seed)

    def observe(self, observation: Observation) -> None:
        self._last = observation.tokens[-1]

    def propose(self, budget: int) -> Draft | None:
        law = Distribution(np.arange(4), np.array([0.7, 0.1, 0.1, 0.1]))
        drawn = law.draw(self._rng)
        told = law if self._honest else Distribution(np.arange(4), np.full(4, 0.25))
        return Draft(Tree.chain([self._last, drawn]), [0, 0], {0: Drawn(told, 1)})


@pytest.mark.parametrize("honest", [True, False])
def test_a_drafter_that_lies_about_its_law(honest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_liar(context: DrafterContext, options: Mapping[str, Any]) -> DrafterSource:
        return DrafterSource("liar", (0.5,), lambda: Liar(honest))

    monkeypatch.setattr(law_checks, "lookup", lambda *_: open_liar)
    found = check_tiny(Case("tiny model", ("liar",)), 1000, lambda: None)
    assert found.accepted > 100
    assert found.holds == honest


@pytest.mark.parametrize("case", cases_of("small_model"), ids=lambda case: case.what)
def test_a_drafter_that_draws_follows_the_law(case: Case) -> None:
    found = check_tiny(case, 1000, lambda: None)
    assert found.accepted > 100
    assert found.holds


@pytest.mark.parametrize("honest", [True, False])
def test_drawn_drafts_on_the_model_itself(honest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds cannot be compared there, so beginnings are counted."""
    model = model_with()
    source = DrafterSource("liar", (0.5,), lambda: Liar(honest))
    monkeypatch.setattr("quickdraft.runtime.verification.DRAFTERS", {})
    monkeypatch.setattr("quickdraft.runtime.verification.cases_of", lambda name: [])
    model.drafting = Drafting([source], model.backend)
    found = verify(model, draws=500 * DRAWS_PER_REAL_DRAW)
    report = found.drafters["auto"]
    assert (report.answers, report.identical) == (2 * len(PROMPTS), True)
    (law,) = report.laws
    assert (law.what, law.draws) == ("the model", 500)
    assert law.holds == found.holds == honest


def test_numbers_out_of_range() -> None:
    for plan in ({"tokens": 1}, {"draws": 99}, {"tokens": 1 << 20}):
        with pytest.raises(OptionError, match="must be between"):
            VerificationPlan(**plan)


def test_a_prompt_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="holds 256"):
        run_verification(model_with(), [Prompt("long", [1] * 300)], VerificationPlan())
