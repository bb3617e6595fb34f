"""What does looking answers up in their source gain, and what does it cost where nothing is copied?

    python bench/source_lookup.py DATA --copying BUNDLE [--inputs 25] [--tokens 64] [--rounds 3]
        [--threads 1] [--drafters source_lookup ...] [--out NAME]

DATA: the folder of data sets. BUNDLE: a model that copies (bench/copying_model.py makes one).
Suites: `lexsum`, the beginning of Multi-LexSum cases, summarised by copying; `copy`, passages,
their first sentences; both by BUNDLE; `translation`, English sentences to German, and `titles`,
titles of the same cases, by flan-t5-small-titles, which does not copy. Every source is encoded for
every answer. Answers are greedy; plain and drafted take turns, source by source, the order
changing from round to round; the best time of each source counts, in seconds of the processor,
which hardly depend on what else the machine does. --out writes bench/results/NAME.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copying_model import MODEL, TASK
from harness import write_result

import quickdraft
from quickdraft.kvcache.memory import Memories
from quickdraft.runtime.model import Model

CHARACTERS = 900
"""Of a source at most, cut at a sentence."""


@dataclass(frozen=True)
class Suite:
    """file: of DATA. field: where the text stands in a line. before: what a source begins with."""

    file: str
    field: str
    before: str
    copies: bool


SUITES = {
    "lexsum": Suite("summarization/multi_lexsum.jsonl.gz", "input", TASK, copies=True),
    "copy": Suite("extractive_qa/adversarial_qa.jsonl.gz", "context", TASK, copies=True),
    "translation": Suite(
        "translation/newstest2014_en_source.jsonl.gz",
        "input",
        "translate English to German: ",
        copies=False,
    ),
    "titles": Suite("summarization/multi_lexsum.jsonl.gz", "input", "", copies=False),
}


@dataclass
class Run:
    """Of one way to draft: ids and best seconds by source, and what its steps brought."""

    ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--copying", required=True)
    for name, default in (("inputs", 25), ("tokens", 64), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drafters", nargs="+", default=["source_lookup"])
    parser.add_argument("--out")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": "processor",
        "suites": {},
    }
    for name, suite in SUITES.items():
        sources = read_sources(options.data / suite.file, suite, options.inputs)
        model = options.copying if suite.copies else MODEL
        found = measure(model, sources, options)
        figures["suites"][name] = found
        print(name, json.dumps(found, indent=1), flush=True)
    if options.out:
        write_result(options.out, figures)


def read_sources(file: Path, suite: Suite, count: int) -> list[str]:
    """Different texts, in their order."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = dict.fromkeys(json.loads(line)[suite.field] for line in lines)
    return [suite.before + shortened(text) for text in list(texts)[:count]]


def shortened(text: str) -> str:
    """As many whole sentences as fit."""
    if len(text) <= CHARACTERS:
        return text
    end = text.rfind(". ", 0, CHARACTERS)
    return text[: end + 1 if end > 0 else CHARACTERS]


def measure(name: str, sources: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a suite."""
    models: dict[str, Model] = {}
    for drafter in ("none", *options.drafters):
        model = quickdraft.load(name, drafter=drafter, threads=options.threads, store=False)
        model.memories = Memories(0)
        models[drafter] = model
    runs = {drafter: Run() for drafter in models}
    for number in range(options.rounds + 1):  # the first warms up
        order = list(models)[:: 1 if number % 2 else -1]
        for at, source in enumerate(sources):
            for drafter in order:
                answer(models[drafter], source, at, options.tokens, runs[drafter], number > 0)
    for model in models.values():
        model.close()
    plain = runs.pop("none")
    seconds = sum(plain.seconds.values())
    return {
        "model": Path(name).name,
        "inputs": len(sources),
        "answer_tokens": sum(map(len, plain.ids.values())),
        "plain_seconds": round(seconds, 4),
        "drafters": {
            drafter: {
                "identical": sum(run.ids[at] == ids for at, ids in plain.ids.items()),
                "seconds": round(sum(run.seconds.values()), 4),
                "times_as_fast": round(seconds / sum(run.seconds.values()), 3),
                "tokens_per_step": round(run.tokens / run.steps, 3),
            }
            for drafter, run in runs.items()
        },
    }


def answer(model: Model, source: str, at: int, tokens: int, run: Run, counts: bool) -> None:
    """One answer; the time of the warm-up does not count."""
    started = time.process_time()
    result = model.generate(source, max_new_tokens=tokens, do_sample=False)
    took = time.process_time() - started
    if run.ids.setdefault(at, result.token_ids) != result.token_ids:
        raise SystemExit(
            f"source {at} was answered in two ways; a greedy answer is always the same"
        )
    if counts:
        run.seconds[at] = min(took, run.seconds.get(at, took))
        run.steps += len(result.steps)
        run.tokens += len(result.token_ids)


if __name__ == "__main__":
    main()
