"""One report on a device: starts, time to the first token, speed, memory, energy and quality.

Times are those of MLPerf Client: the time to the first token, and the rate of the second and later
tokens, 1000 over the mean milliseconds of a token after the first; a class is the arithmetic mean
of its prompts, all classes together their geometric mean. Every prompt is answered plainly and with
drafts, in turns, in a session of its own; a round begins with drafters that learnt nothing.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quickdraft.device_profiles.energy import Meter
from quickdraft.drafters.tree import Tree
from quickdraft.errors import BackendError, OptionError
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.drafting import Drafting, DraftingSetup
from quickdraft.runtime.generation import GenerationConfig
from quickdraft.runtime.model import Model
from quickdraft.runtime.result import Result
from quickdraft.runtime.sources import trial_cache

PLAIN, DRAFTED = "plain", "drafted"
QUALITY_ROWS = 64
"""Rows of a step when a text is judged: their logits are all held at once."""
START_SECONDS = 600

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DevicePlan:
    """What is measured. classes: prompts by class. tokens: of an answer, no fewer and no more, so
    that devices do the same work."""

    classes: Mapping[str, tuple[str, ...]]
    tokens: int = 64
    rounds: int = 3
    drafter: str = "auto"

    def check(self) -> None:
        """Refuse what cannot be measured before anything runs.

        Raises:
            OptionError: too few tokens, rounds or prompts.
        """
        if self.tokens < 2:
            raise OptionError(f"tokens is {self.tokens}; it must be at least 2")
        if self.rounds < 1:
            raise OptionError(f"rounds is {self.rounds}; it must be at least 1")
        if not any(self.classes.values()):
            raise OptionError("there is no prompt to measure")


@dataclass(frozen=True)
class Answered:
    """One answer, timed. Of drafts: proposed and accepted tokens, and steps after the first."""

    ttft_ms: float
    rate: float
    prompt_tokens: int
    ids: tuple[int, ...]
    steps: int
    drafted: int
    accepted: int

    @classmethod
    def of(cls, result: Result) -> Answered:
        """What an answer tells."""
        t = result.timings
        return cls(
            t.ttft_ms,
            t.predicted_per_second,
            len(result.prompt_token_ids),
            result.token_ids,
            t.steps,
            t.draft_n,
            t.draft_n_accepted,
        )


@dataclass
class Samples:
    """Answers by class, prompt and way, one per round. skipped: prompts by class that do not fit.
    joules, tokens: by way, over all rounds."""

    answers: dict[tuple[str, int, str], list[Answered]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, place: tuple[str, int, str], answered: Answered, joules: float) -> None:
        """Keep an answer."""
        self.answers.setdefault(place, []).append(answered)
        self.joules[place[2]] = self.joules.get(place[2], 0.0) + joules
        self.tokens[place[2]] = self.tokens.get(place[2], 0) + len(answered.ids)


def measure_device(
    model: Model,
    plan: DevicePlan,
    meter: Meter | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Samples:
    """Answer all prompts in all ways. Plainly only, where the model has no drafters.

    Raises as `Model.generate`.
    """
    plan.check()
    samples = Samples()
    config = GenerationConfig(max_new_tokens=plan.tokens, temperature=0.0, ignore_eos=True)
    work = list(_fitting(model, plan, samples))
    if not work:
        raise OptionError(
            f"no prompt with an answer of {plan.tokens} tokens fits the context of "
            f"{model.spec.context_length}; ask for fewer tokens"
        )
    plain = Drafting((), model.backend)
    _answer(model, work[0][2], config, plain)  # a warm-up
    for number in range(plan.rounds):
        with ExitStack() as stack:
            ways = {PLAIN: plain}
            if plan.drafter != "none":
                setup = DraftingSetup(plan.drafter, store=False)
                ways[DRAFTED] = stack.enter_context(model.open_drafting(setup))
            for done, (name, index, ids) in enumerate(work):
                order = list(ways)[:: 1 if (number + done) % 2 else -1]
                for way in order:
                    before = meter.joules() if meter is not None else 0.0
                    answered = _answer(model, ids, config, ways[way])
                    spent = meter.joules() - before if meter is not None else 0.0
                    samples.add((name, index, way), answered, spent)
                progress(f"round {number + 1}", done + 1, len(work))
    return samples


def _fitting(
    model: Model, plan: DevicePlan, samples: Samples
) -> Iterable[tuple[str, int, list[int]]]:
    """Class, number and token ids of the prompts that fit."""
    for name, prompts in plan.classes.items():
        for index, text in enumerate(prompts):
            ids = _tokenized(model, text)
            if len(ids) + plan.tokens > model.spec.context_length:
                samples.skipped[name] = samples.skipped.get(name, 0) + 1
            else:
                yield name, index, ids


def _tokenized(model: Model, text: str) -> list[int]:
    if model.chat_template is None:
        return model.tokenize(text)
    return model.tokenize_chat([{"role": "user", "content": text}])


def _answer(model: Model, ids: list[int], config: GenerationConfig, drafting: Drafting) -> Answered:
    if not drafting.names:
        config = config.replace(num_draft_tokens=0)
    return Answered.of(model.generate(ids, config, session=model.session(drafting)))


def class_figures(samples: Samples, name: str) -> dict[str, Any]:
    """One class as plain JSON types."""
    places = {place: rounds for place, rounds in samples.answers.items() if place[0] == name}
    figures: dict[str, Any] = {"prompts": len({index for _, index, _ in places})}
    prompts = [rounds[0].prompt_tokens for place, rounds in places.items() if place[2] == PLAIN]
    figures["prompt_tokens"] = round(_mean(prompts), 1)
    for way in (PLAIN, DRAFTED):
        kept = [rounds for place, rounds in places.items() if place[2] == way]
        if kept:
            figures[way] = _way_figures(kept)
    if DRAFTED in figures:
        figures["identical"] = all(
            answered.ids == places[name, index, PLAIN][0].ids
            for (_, index, _), rounds in places.items()
            for answered in rounds
        )
        figures["ratio"] = _ratio(figures[DRAFTED]["rate"], figures[PLAIN]["rate"])
    return figures


def _way_figures(prompts: list[list[Answered]]) -> dict[str, Any]:
    """Means over the prompts of a class, each the mean of its rounds."""
    every = [answered for rounds in prompts for answered in rounds]
    tokens = sum(len(a.ids) - 1 for a in every)
    return {
        "ttft_ms": round(_mean(_mean(a.ttft_ms for a in rounds) for rounds in prompts), 3),
        "rate": round(_mean(_mean(a.rate for a in rounds) for rounds in prompts), 3),
        "tokens_per_step": _ratio(tokens, sum(a.steps for a in every)),
        "acceptance": _ratio(sum(a.accepted for a in every), sum(a.drafted for a in every)),
    }


def overall(classes: Mapping[str, Mapping[str, Any]], way: str) -> dict[str, float] | None:
    """Geometric means over the classes, as MLPerf Client has them."""
    known = [figures[way] for figures in classes.values() if way in figures]
    if not known:
        return None
    return {
        name: round(math.exp(_mean(math.log(max(k[name], 1e-9)) for k in known)), 3)
        for name in ("ttft_ms", "rate")
    }


def _ratio(value: float, base: float) -> float | None:
    return round(value / base, 4) if base else None


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def perplexity(backend: Backend, ids: list[int]) -> float | None:
    """exp of the mean negative log-probability of each token after the first; None of fewer than
    two tokens, or where they do not fit."""
    if len(ids) < 2 or len(ids) > backend.spec.context_length:
        return None
    cache, lost = trial_cache(backend), 0.0
    for begin in range(0, len(ids) - 1, QUALITY_ROWS):
        part = ids[begin : min(begin + QUALITY_ROWS, len(ids) - 1)]
        logits = backend.step(Tree.chain(part), cache).logits.astype(np.float64)
        largest = logits.max(axis=1)
        total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        wanted = np.asarray(ids[begin + 1 : begin + 1 + len(part)])
        lost += float((total - logits[np.arange(len(part)), wanted]).sum())
        cache.commit(range(len(part)))
    return math.exp(lost / (len(ids) - 1))


@dataclass(frozen=True)
class Started:
    """A start of a process of its own, in ms. total: from its beginning to the first token.
    dropped: whether the files were taken out of the system's cache before."""

    total_ms: float
    load_ms: float
    first_token_ms: float
    dropped: bool


def measure_start(
    folder: Path, files: Iterable[str], options: Mapping[str, Any], cold: bool
) -> Started:
    """Start a process that answers one token. cold: ask the system to forget the files first.

    Raises:
        BackendError: it failed, and the message is its last line; or it took too long.
    """
    dropped = cold and _drop(folder / name for name in files)
    command = [sys.executable, "-m", "quickdraft.runtime.start_worker", str(folder)]
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, json.dumps(dict(options))],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"a start in a process of its own said nothing for {START_SECONDS} s and was stopped; "
            "leave starts out with --no-starts"
        ) from None
    spent = 1e3 * (time.perf_counter() - begun)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"a start in a process of its own failed: {last}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Started(spent, told["load_ms"], told["first_token_ms"], dropped)


def _drop(files: Iterable[Path]) -> bool:
    """Ask the system to forget what it holds of files; whether it could be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        for file in files:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    return True
