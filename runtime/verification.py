"""Does drafting keep its promise here? Plain answers against drafted ones, on this machine.

* Greedy: the same tokens, and the same bits of the most likely ones at every position.
* Sampled with a seed: the same again where drafts are chosen. Where they are drawn, random numbers
  are spent differently, and what is compared is how often each beginning of an answer comes.
* On a tiny model whose law is known: how often each beginning comes, for every drafter.

A backend whose rows depend on the rows beside them promises the same up to rounding, and that is
what is held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from quickdraft.errors import OptionError
from quickdraft.kvcache.memory import Source
from quickdraft.manifest import Variant
from quickdraft.registry import DRAFTERS, TRAINED, TRAINED_WITH_ENCODER
from quickdraft.runtime.backends.opening import parts
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.law_checks import (
    AUTO_NAME,
    AUXILIARY_DRAFTER,
    DRAWS_PER_REAL_DRAW,
    MODEL_DRAFTER,
    REAL,
    cases_of,
    check_draws,
    check_tiny,
)
from quickdraft.runtime.model import Model
from quickdraft.runtime.result import Result
from quickdraft.runtime.session import Session
from quickdraft.runtime.verification_report import (
    DrafterReport,
    Verification,
    difference_of,
)
from quickdraft.types import Progress

NODES = (8, 3, 16, 31)
"""Drafted nodes per step, by prompt in turn: a controller might draft nothing, and test nothing."""

SAMPLED: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0.8, "top_p": 0.95, "top_k": 0},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.1},
)
"""Options of sampled answers, by prompt in turn."""

MOST_LIKELY = 20
"""Tokens whose log-probabilities are compared at every position."""


@dataclass(frozen=True)
class Prompt:
    """What answers follow, with a name for reports. opening: what answers about a source begin
    with; None leaves it to the model."""

    name: str
    tokens: Sequence[int] | Source
    opening: Sequence[int] | None = None


@dataclass(frozen=True)
class VerificationPlan:
    """What to do.

    tokens: most of an answer. draws: answers drawn from the tiny model per drafter. draft_model:
    the bundle of small_model, which takes part only with one.

    Raises:
        OptionError: a number is out of range.
    """

    tokens: int = 64
    draws: int = 2000
    draft_model: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("tokens", 2, 1 << 16), ("draws", 100, 10_000_000)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise OptionError(f"{name} is {value}; it must be between {low} and {high}")


def run_verification(
    model: Model,
    prompts: Sequence[Prompt],
    plan: VerificationPlan,
    progress: Progress | None = None,
) -> Verification:
    """Compare the drafted answers of a model with its plain ones.

    model: opened with the drafters `auto` and without a store, so that nobody's is filled.
    progress: told of answers and of draws.

    Raises:
        InputError: the draft model cannot be used for this one.
        ContextOverflow: a prompt does not fit the model.
    """
    untested = _untested(model, plan)
    names = [*(name for name in DRAFTERS if name not in untested), AUTO_NAME]
    with ExitStack() as stack:
        # All of them before the first answer: a draft model that cannot be used is found at once.
        sessions = {name: stack.enter_context(_session(model, name, plan)) for name in names}
        comparison = _Comparison(model, prompts, plan, names, progress or (lambda *_: None))
        reports = {name: comparison.of(name, session) for name, session in sessions.items()}
    backend = model.backend
    return Verification(
        model.name, backend.name, backend.flavour, backend.device, backend.isa,
        backend.guarantee, len(prompts), plan.tokens, reports, untested,
    )  # fmt: skip


def _untested(model: Model, plan: VerificationPlan) -> dict[str, str]:
    """Drafters that cannot take part, and why."""
    found = parts(model.manifest, model.backend.name, "drafter")
    held = {variant.name.removesuffix("-1") for variant in found}  # a draft may be several parts
    untested = {}
    for name in DRAFTERS:
        if name == MODEL_DRAFTER and plan.draft_model is None:
            untested[name] = "it needs a draft model"
        elif name in {**TRAINED, **TRAINED_WITH_ENCODER} and name not in held:
            untested[name] = "the bundle has no such draft"
        elif name == AUXILIARY_DRAFTER and not _auxiliaries(model):
            untested[name] = "the bundle has no auxiliary model"
    return untested


def _auxiliaries(model: Model) -> tuple[Variant, ...]:
    return parts(model.manifest, model.backend.name, "auxiliary")


@contextmanager
def _session(model: Model, name: str, plan: VerificationPlan) -> Iterator[Session]:
    """A conversation with one drafter, or with those the model was opened with."""
    if name == AUTO_NAME:
        yield model.session()
        return
    options = {}
    if name == MODEL_DRAFTER:
        options = {name: {"model": plan.draft_model}}
    elif name == AUXILIARY_DRAFTER:
        options = {name: {"part": _auxiliaries(model)[0].name}}
    setup = DraftingSetup(name, options, store=False)
    with closing(model.open_drafting(setup)) as drafting:
        yield model.session(drafting)


class _Comparison:
    """Plain answers, and drafted ones held against them."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        plan: VerificationPlan,
        names: Sequence[str],
        progress: Progress,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._plan = plan
        ways = 1 + sum(len(_nodes(name, 0)) for name in names)
        self._answers = _Counter("answers", 2 * ways * len(prompts), progress)
        draws = plan.draws * sum(len(cases_of(name)) for name in names)
        self._draws = _Counter("draws", draws, progress)
        self._model_draws = _Counter("draws of the model", self._few, progress)
        # Every plain answer has a session of its own: nothing can be left over in it.
        self._plain = {
            (index, sampled): self._answer(index, sampled, 0, model.session())
            for index in range(len(prompts))
            for sampled in (False, True)
        }

    @property
    def _few(self) -> int:
        """Draws from the model itself."""
        return self._plan.draws // DRAWS_PER_REAL_DRAW

    def _answer(self, index: int, sampled: bool, nodes: int | None, session: Session) -> Result:
        options: Mapping[str, Any] = SAMPLED[index % len(SAMPLED)] if sampled else {}
        config = GenerationConfig(
            max_new_tokens=self._plan.tokens,
            seed=index,
            logprobs=min(MOST_LIKELY, self._model.backend.top or MOST_LIKELY),
            num_draft_tokens=nodes,
            **options,
        )
        asked = self._prompts[index]
        result = self._model.generate(asked.tokens, config, session=session, opening=asked.opening)
        self._answers.tick()
        return result

    def of(self, name: str, session: Session) -> DrafterReport:
        """Answer all prompts in one session, and draw; what is left over from one prompt must not
        show in the next."""
        report = DrafterReport(name)
        draws = False
        for index in range(len(self._prompts)):
            for nodes in _nodes(name, index):
                for sampled in (False, True):
                    result = self._answer(index, sampled, nodes, session)
                    drawn = any(step.drawn for step in result.steps)
                    draws = draws or (sampled and drawn)
                    if not (sampled and drawn):
                        self._compare(report, index, sampled, result)
                    if not sampled and nodes == _nodes(name, index)[0]:
                        report.count(result)
        for case in cases_of(name):
            report.laws.append(check_tiny(case, self._plan.draws, self._draws.tick))
        prompt = self._prompts[0].tokens
        if draws and not isinstance(prompt, Source):
            report.laws.append(
                check_draws("the model", session, prompt, REAL, self._few, self._model_draws.tick)
            )
        return report

    def _compare(self, report: DrafterReport, index: int, sampled: bool, drafted: Result) -> None:
        plain = self._plain[index, sampled]
        difference = difference_of(
            self._prompts[index].name, report.name, sampled, plain, drafted,
            self._model.backend.guarantee,
        )  # fmt: skip
        report.answers += 1
        report.verified += drafted.timings.draft_n
        report.fallbacks += sum(step.fallbacks for step in drafted.steps)
        if difference is not None:
            report.differences.append(difference)


def _nodes(name: str, index: int) -> tuple[int | None, ...]:
    """Nodes per step that a prompt is answered with: what the controller plans, if it is to be
    tested, and fixed numbers, because it may plan to draft nothing."""
    fixed = NODES[index % len(NODES)]
    return (None, fixed) if name == AUTO_NAME else (fixed,)


class _Counter:
    """Reports progress in one stage."""

    def __init__(self, stage: str, total: int, progress: Progress) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._done = 0

    def tick(self) -> None:
        """One more is done."""
        self._done += 1
        self._progress(self._stage, self._done, self._total)
