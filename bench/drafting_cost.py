"""What does drafting cost a step: time and memory of the drafters that need no model.

    python bench/drafting_cost.py [--context 4096] [--steps 500] [--rounds 5] [--out NAME]

Each drafter follows a made-up text that repeats itself about as much as an answer about a document
does, and is asked for a full draft before every step. `step` is propose and observe, the median
over steps, in the least disturbed of several rounds in which all drafters take turns; `begin` is
taking up a context of that length; `memory` is what it holds afterwards.
--out writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from harness import write_result

from quickdraft.commands.output import table
from quickdraft.drafters.base import (
    Drafter,
    DrafterContext,
    DrafterSource,
    DraftSettings,
    Observation,
)
from quickdraft.drafters.tree import Tree
from quickdraft.registry import DRAFTERS, lookup

NAMES = ("prompt_lookup", "ngram_store", "recycling", "trigram")
BUDGET = 31
"""Nodes asked for: the most the controller ever verifies."""
ACCEPTED = 2
VERIFIED = 8
TOP = 8


@dataclass(frozen=True)
class Cost:
    """propose_us, observe_us, step_us: microseconds, medians of the steps. begin_ms: milliseconds.
    nodes: mean size of the drafts."""

    propose_us: float
    observe_us: float
    step_us: float
    begin_ms: float
    nodes: float


def make_text(length: int, vocab_size: int, rng: np.random.Generator) -> list[int]:
    """Tokens that are as rare as words are, with stretches said before."""
    text = (rng.zipf(1.3, 256) % vocab_size).tolist()
    while len(text) < length:
        if rng.random() < 0.4:
            start = int(rng.integers(0, len(text) - 32))
            text += text[start : start + int(rng.geometric(0.15))]
        else:
            text += (rng.zipf(1.3, int(rng.geometric(0.3))) % vocab_size).tolist()
    return text[:length]


def make_steps(
    text: list[int], start: int, steps: int, vocab_size: int, rng: np.random.Generator
) -> list[Observation]:
    """Steps that accept two drafted tokens of eight nodes, and decide three."""
    made = []
    for at in range(start, start + steps * (ACCEPTED + 1), ACCEPTED + 1):
        said = text[at : at + ACCEPTED + 1]
        beside = rng.integers(0, vocab_size, VERIFIED - 1 - ACCEPTED).tolist()
        tokens = [text[at - 1], *said[:-1], *beside]
        parents = [*range(-1, ACCEPTED), *([0] * len(beside))]
        top = rng.integers(0, vocab_size, (VERIFIED, TOP))
        top[: ACCEPTED + 1, 0] = said
        tree = Tree(np.array(tokens, np.int64), np.array(parents, np.int64))
        made.append(Observation(said, tree, range(ACCEPTED + 1), top))
    return made


def open_drafters(names: tuple[str, ...], vocab_size: int) -> list[DrafterSource]:
    """The drafters by name, with their default options and nothing kept on disk."""
    context = DrafterContext(vocab_size, 1 << 15)
    return [lookup("drafter", DRAFTERS, name)(context, {}) for name in names]


def measure(names: tuple[str, ...], prompt: list[int], steps: list[Observation], size: int) -> Cost:
    """The cost of some drafters together. What others said before is in their tables."""
    sources = open_drafters(names, size)
    for source in sources:
        source.new().begin(prompt[::-1], DraftSettings())
    drafters: list[Drafter] = [source.new() for source in sources]
    started = time.perf_counter()
    for drafter in drafters:
        drafter.begin(prompt, DraftSettings())
    begin = time.perf_counter() - started
    propose, observe, nodes = [], [], 0
    for step in steps:
        started = time.perf_counter()
        drafts = [drafter.propose(BUDGET) for drafter in drafters]
        middle = time.perf_counter()
        for drafter in drafters:
            drafter.observe(step)
        observe.append(time.perf_counter() - middle)
        propose.append(middle - started)
        nodes += sum(len(draft.tree) - 1 for draft in drafts if draft is not None)
    both = [a + b for a, b in zip(propose, observe, strict=True)]
    return Cost(
        1e6 * statistics.median(propose),
        1e6 * statistics.median(observe),
        1e6 * statistics.median(both),
        1e3 * begin,
        nodes / len(steps),
    )


def memory(names: tuple[str, ...], prompt: list[int], steps: list[Observation], size: int) -> int:
    """Bytes held after a conversation, its tables and its own state."""
    tracemalloc.start()
    sources = open_drafters(names, size)
    drafters = [source.new() for source in sources]
    for drafter in drafters:
        drafter.begin(prompt, DraftSettings())
        for step in steps:
            drafter.observe(step)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    length = chosen.context + chosen.steps * (ACCEPTED + 1)
    text = make_text(length, chosen.vocabulary, rng)
    steps = make_steps(text, chosen.context, chosen.steps, chosen.vocabulary, rng)
    prompt = text[: chosen.context]
    combinations = {name: (name,) for name in NAMES} | {"together": NAMES}
    rounds = [
        {
            title: measure(names, prompt, steps, chosen.vocabulary)
            for title, names in combinations.items()
        }
        for _ in range(chosen.rounds)
    ]
    costs = {
        title: min((costs[title] for costs in rounds), key=lambda cost: cost.step_us)
        for title in combinations
    }
    head = ["drafter", "propose us", "observe us", "step us", "begin ms", "nodes", "memory MB"]
    held = {
        title: memory(names, prompt, steps, chosen.vocabulary) / 1e6
        for title, names in combinations.items()
    }
    rows = [head, *([title, *figures(costs[title], held[title])] for title in combinations)]
    print(table(rows, frozenset(range(1, len(head)))))
    if chosen.out:
        result: dict[str, Any] = {
            "context": chosen.context,
            "vocabulary": chosen.vocabulary,
            "rounds": chosen.rounds,
            "drafters": {
                title: asdict(costs[title]) | {"memory_mb": held[title]} for title in combinations
            },
        }
        print(f"written: {write_result(chosen.out, result)}")


def figures(cost: Cost, held: float) -> list[str]:
    """One row of the table."""
    return [f"{value:.1f}" for value in (*asdict(cost).values(), held)]


if __name__ == "__main__":
    main()
