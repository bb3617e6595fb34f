"""Draws answers with drafters, and compares how often each beginning came with its probability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from quickdraft.drafters.base import DrafterContext
from quickdraft.registry import DRAFTERS, TRAINED, TRAINED_WITH_ENCODER, lookup
from quickdraft.runtime.draft_model import BackendDraftModel
from quickdraft.runtime.drafting import AUTO, Drafting
from quickdraft.runtime.engine import Decoder
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.plan import Plan
from quickdraft.runtime.session import Session
from quickdraft.runtime.tiny_law import TinyModel, law_of, ratio_limit, variation_ratio
from quickdraft.runtime.verification_report import LawCheck

LENGTH = 4
"""Tokens of the beginnings that are counted. The first comes with the prompt, some others from the
first tree, and the last one often from the second tree, which stands on what the first one left."""

TINY_PROMPT = (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
TINY = GenerationConfig(
    max_new_tokens=16,
    temperature=1.1,
    top_k=0,
    top_p=0.97,
    frequency_penalty=0.5,
    num_draft_tokens=6,
)
"""The penalty sees the answer, so that a path judged by another path's tokens shows."""
REAL = GenerationConfig(max_new_tokens=16, temperature=0.8, top_k=3, num_draft_tokens=6)
"""Three tokens at every position: 81 beginnings."""

AUTO_NAME = "auto"
MODEL_DRAFTER = "small_model"
AUXILIARY_DRAFTER = "auxiliary"
"""The one drafter that draws."""

DRAWS_PER_REAL_DRAW = 5
"""A step of a real model takes longer."""


@dataclass(frozen=True)
class Case:
    """Drafters that draft together for the tiny model, with options by drafter."""

    what: str
    drafters: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def cases_of(contestant: str) -> list[Case]:
    """What is drawn from the tiny model for a drafter, or for `auto`."""
    if contestant == AUTO_NAME:
        return [Case("tiny model", AUTO)]
    # For one model, which the tiny one is not.
    if contestant in (*TRAINED, *TRAINED_WITH_ENCODER, AUXILIARY_DRAFTER):
        return []
    if contestant != MODEL_DRAFTER:
        return [Case("tiny model", (contestant,))]
    # In every way it has; then beside others, which choose.
    methods = ("chain", "tree", "rsd_c", "rsd_s")
    options = {m: {MODEL_DRAFTER: {"model": "tiny", "method": m}} for m in methods}
    alone = [Case(f"tiny model, {m}", (MODEL_DRAFTER,), options[m]) for m in methods]
    return [*alone, Case("tiny model, with auto", (MODEL_DRAFTER, *AUTO), options["rsd_c"])]


def check_tiny(case: Case, draws: int, tick: Callable[[], None]) -> LawCheck:
    """Draw from the tiny model with the drafters of a case. tick: called after every draw."""
    target = TinyModel()
    size = target.spec.vocab_size
    draft_model = BackendDraftModel(TinyModel(seed=1), size)
    context = DrafterContext(size, target.spec.context_length, open_model=lambda *name: draft_model)
    with ExitStack() as stack:
        sources = []
        for name in case.drafters:
            opener = lookup("drafter", DRAFTERS, name)
            sources.append(opener(context, case.options.get(name, {})))
            stack.callback(sources[-1].close)
        session = Session(target, Drafting(sources, target))
        return check_draws(case.what, session, TINY_PROMPT, TINY, draws, tick)


def check_draws(
    what: str,
    session: Session,
    prompt: Sequence[int],
    config: GenerationConfig,
    draws: int,
    tick: Callable[[], None],
) -> LawCheck:
    """Draw the beginnings of `draws` answers in one session, and compare them with their law."""
    law = law_of(session.backend, prompt, LENGTH, config)
    counts: Counter[tuple[int, ...]] = Counter()
    drafted = accepted = 0
    for seed in range(draws):
        tokens: list[int] = []
        for emission in Decoder(session.backend, session, Plan(config.replace(seed=seed))).run(
            prompt
        ):
            tokens += emission.tokens
            if emission.record is not None:
                drafted += emission.record.drafted
                accepted += emission.record.accepted
            if len(tokens) >= LENGTH:
                break
        counts[tuple(tokens[:LENGTH])] += 1
        tick()
    ratio, limit = variation_ratio(counts, law), ratio_limit(draws, law)
    return LawCheck(what, draws, drafted, accepted, ratio, limit)
