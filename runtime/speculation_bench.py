"""Speculative decoding beside plain decoding, on the same prompts, over one loaded model.

A setting is a way to decode: plain, planned by the controller, or with a fixed number of drafted
tokens. For every prompt the settings take turns, and who is first changes, so that a noisy minute
hits all of them. A round is one pass over all prompts. What drafting learns belongs to a setting
and begins empty in every round: an answer is never drafted from having been given before, and
rounds can be compared. The figure of a prompt is its best complete round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from quickdraft.errors import OptionError
from quickdraft.runtime.chat import Message
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.metrics import StepRecord
from quickdraft.runtime.result import Result
from quickdraft.runtime.session import Session
from quickdraft.runtime.suites import Item
from quickdraft.types import ModelSpec

PLAIN = "plain"
AUTO = "auto"
SEED = 20_261_123
WARM_UP_TOKENS = 8

Progress = Callable[[str, int, int], None]


class Speaker(Protocol):
    """The part of `runtime.model.Model` that is measured."""

    @property
    def spec(self) -> ModelSpec:
        """Its shape."""

    def tokenize_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of messages."""

    def generate(
        self, prompt: Sequence[int], config: GenerationConfig, *, session: Session
    ) -> Result:
        """The answer to a prompt."""


Ask = Callable[[Sequence[int], int], Mapping[str, Any]]
"""Has a peer decode so many tokens after a prompt; see `generate` of bench/peers/serve.py."""

Opener = Callable[[], AbstractContextManager[Mapping[str, Callable[[], Session]]]]
"""Opens the drafters of every setting with nothing learnt yet; what makes its sessions, by name."""

Peers = Callable[[], AbstractContextManager[Mapping[str, Ask]]]
"""Opens the peers by name, each in one of its modes, anew."""


@dataclass(frozen=True)
class SpeculationPlan:
    """What is measured. suites: prompts by category. settings: options of an answer by name; the
    first is plain decoding, the second the one in question, others are compared with it. config:
    what all settings share. cold: forget after every prompt what was learnt from it.
    """

    suites: Mapping[str, tuple[Item, ...]]
    settings: Mapping[str, Mapping[str, Any]]
    config: GenerationConfig
    rounds: int = 2
    cold: bool = False

    def check(self, context_length: int) -> None:
        """Refuse what cannot be measured before anything runs.

        Raises:
            OptionError: no round or no prompt, or answers too short or too long to be timed.
        """
        if self.rounds < 1:
            raise OptionError(f"rounds is {self.rounds}; it must be at least 1")
        if not any(self.suites.values()):
            raise OptionError("there is nothing to measure; give at least one category")
        most = context_length // 2
        if not 2 <= self.config.max_new_tokens <= most:
            raise OptionError(
                f"tokens is {self.config.max_new_tokens}; it must be between 2 and {most}, half "
                "of the context of this model"
            )

    def items(self) -> Iterator[tuple[str, Item]]:
        """Every prompt with its category, in order."""
        return ((category, item) for category, items in self.suites.items() for item in items)


@dataclass(frozen=True)
class Decoded:
    """One answer, timed. decoded: tokens after those of the first step, which decode_s covers;
    steps: without the one that ended the prefill, for answers of ours."""

    ids: tuple[int, ...]
    decoded: int
    prefill_s: float
    decode_s: float
    steps: tuple[StepRecord, ...] = ()
    guarantee: str | None = None


Turns = tuple[Decoded, ...]
"""The answers of one conversation."""


def seconds(turns: Turns) -> float:
    """Time of decoding."""
    return sum(turn.decode_s for turn in turns)


def tokens(turns: Turns) -> int:
    """Tokens decoded in that time."""
    return sum(turn.decoded for turn in turns)


@dataclass
class Samples:
    """Conversations by category, prompt and engine (a setting or a peer), one per round."""

    turns: dict[tuple[str, str], dict[str, list[Turns]]] = field(default_factory=dict)
    prompts: dict[tuple[str, str], int] = field(default_factory=dict)
    rounds: int = 0

    def add(self, category: str, item: Item, answers: Mapping[str, Turns], longest: int) -> None:
        """Keep a round of one prompt. longest: tokens of its longest prompt."""
        held = self.turns.setdefault((category, item.name), {})
        for engine, turns in answers.items():
            held.setdefault(engine, []).append(turns)
        self.prompts[category, item.name] = longest

    def measured(self, category: str) -> list[str]:
        """Names of the prompts of a category that were measured at least once, in order."""
        return [name for known, name in self.turns if known == category]

    def best(self, category: str, name: str, engine: str) -> Turns:
        """The fastest round of a prompt."""
        return min(self.turns[category, name][engine], key=seconds)

    def identical(self, category: str, name: str, engine: str) -> bool:
        """Whether all rounds gave the ids of the first plain answer."""
        rounds = self.turns[category, name]
        expected = [turn.ids for turn in rounds[PLAIN][0]]
        return all([turn.ids for turn in turns] == expected for turns in rounds[engine])


def measure_speculation(
    model: Speaker,
    plan: SpeculationPlan,
    open_settings: Opener,
    open_peers: Peers,
    samples: Samples,
    progress: Progress = lambda stage, done, total: None,
    checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Fill `samples` prompt by prompt; what is there counts when this is interrupted.

    progress: stage `round N`. checkpoint: called after every category.

    Raises as `Model.generate`, and BackendError: a peer ended.
    """
    work = list(plan.items())
    for number in range(plan.rounds):
        with ExitStack() as stack:
            peers = stack.enter_context(open_peers())
            kept = stack.enter_context(open_settings())
            _warm_up(model, plan, kept[PLAIN](), work[0][1])
            for done, (category, item) in enumerate(work):
                with ExitStack() as forgotten:
                    opened = forgotten.enter_context(open_settings()) if plan.cold else kept
                    sessions = {name: opened[name]() for name in plan.settings}
                    answers, longest = _converse(model, plan, item, sessions, peers, number + done)
                samples.add(category, item, answers, longest)
                progress(f"round {number + 1}", done + 1, len(work))
                if done + 1 == len(work) or work[done + 1][0] != category:
                    checkpoint()
        samples.rounds += 1


def _warm_up(model: Speaker, plan: SpeculationPlan, session: Session, item: Item) -> None:
    """A short answer that is not timed, decoded plainly: nothing is learnt from it."""
    short = plan.config.replace(max_new_tokens=WARM_UP_TOKENS, **plan.settings[PLAIN])
    model.generate(_prompt(model, item, 1, []), short, session=session)


def _prompt(model: Speaker, item: Item, count: int, answers: Sequence[str]) -> list[int]:
    """Token ids of the first `count` turns, the answers to all but the last between them."""
    if item.random_tokens:
        return random_prompt(item, model.spec.vocab_size)
    messages = [{"role": "user", "content": item.turns[0]}]
    for answer, text in zip(answers, item.turns[1:count], strict=True):
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": text})
    return model.tokenize_chat(messages)


def random_prompt(item: Item, vocab_size: int) -> list[int]:
    """Token ids without sense, the same for an item in every run."""
    seed = [SEED, *item.name.encode()]
    ids: list[int] = (
        np.random.default_rng(seed).integers(0, vocab_size, item.random_tokens).tolist()
    )
    return ids


def _converse(
    model: Speaker,
    plan: SpeculationPlan,
    item: Item,
    sessions: Mapping[str, Session],
    peers: Mapping[str, Ask],
    turn_order: int,
) -> tuple[dict[str, Turns], int]:
    """Every engine's answers to one prompt, turn by turn, and the longest prompt in tokens.

    All get the same prompts: earlier answers in them are those of plain decoding.
    """
    answers: dict[str, list[Decoded]] = {name: [] for name in [*sessions, *peers]}
    texts: list[str] = []
    longest = 0
    for number in range(max(len(item.turns), 1)):
        ids = _prompt(model, item, number + 1, texts)
        longest = max(longest, len(ids))
        config = plan.config.replace(seed=SEED + number, **item.options)
        for name in _rotated([*sessions], turn_order):
            options = config.replace(**plan.settings[name])
            result = model.generate(ids, options, session=sessions[name])
            answers[name].append(_decoded(result))
            if name == PLAIN:
                texts.append(result.text)
        count = len(answers[PLAIN][-1].ids)
        for name in _rotated([*peers], turn_order):
            ask = None if item.options else peers[name]
            answers[name].append(_asked(ask, ids, count))
    return {name: tuple(turns) for name, turns in answers.items()}, longest


def _rotated(names: list[str], by: int) -> list[str]:
    """Nobody is always the one who finds the caches as another left them."""
    first = by % len(names) if names else 0
    return names[first:] + names[:first]


def _decoded(result: Result) -> Decoded:
    """The first record of an answer is the step that ended the prefill."""
    timings = result.timings
    return Decoded(
        ids=result.token_ids,
        decoded=max(timings.predicted_n - 1, 0),
        prefill_s=timings.prompt_ms / 1e3,
        decode_s=timings.predicted_ms / 1e3,
        steps=result.steps[1:],
        guarantee=result.guarantee,
    )


def _asked(ask: Ask | None, ids: Sequence[int], count: int) -> Decoded:
    """A peer decodes as many tokens as we did, wherever it would have ended; nothing where it is
    not to be asked, or there is nothing to be timed."""
    if ask is None or count < 2:
        return Decoded((), 0, 0.0, 0.0)
    told = ask(ids, count)
    return Decoded(
        tuple(told["ids"]), int(told["decoded"]), float(told["prefill_s"]), float(told["decode_s"])
    )
