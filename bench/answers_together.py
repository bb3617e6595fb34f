"""How fast does a model answer training prompts, one by one with drafts and several at once?

    python bench/answers_together.py NAME MODEL PROMPTS.jsonl.gz [--batches 1,4,8,16]

Greedy answers to the same prompts, as `quickdraft train generate` writes them. All ways take turns;
the fastest round of each counts. `same` says how many answers are those of one prompt at a time,
token for token. Figures go to bench/results/together-NAME.json.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, circumstances

from quickdraft import load
from quickdraft.answers import AnswersWriter, read_answers
from quickdraft.commands.output import table
from quickdraft.commands.result_files import write_document
from quickdraft.runtime.answering import AnswerOptions, answer_prompts, read_prompts, shuffled


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--batches", default="1,4,8,16", help="between commas")
    parser.add_argument("--limit", type=int, default=32, help="prompts")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = AnswerOptions(options.tokens, (0.0,))
    prompts = shuffled(read_prompts([options.prompts]), 0)[: options.limit]
    batches = [int(part) for part in options.batches.split(",")]
    found: dict[str, dict[str, Any]] = {}
    first: dict[str, list[int]] = {}
    facts: dict[str, Any] = {"threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        for turn, batch in itertools.product(range(options.rounds), batches):
            # Opened anew: drafters remember the answers of the round before.
            drafter = "auto" if batch == 1 else "none"
            out = Path(folder) / f"{turn}-{batch}.jsonl"
            with load(
                options.model, threads=options.threads, drafter=drafter, store=False
            ) as model:
                facts["model"] = model.manifest.source.name
                with AnswersWriter(out, chosen.header(model)) as writer:
                    told = answer_prompts(model, prompts, chosen, writer, batch=batch)
            answers = {each.id: list(each.answer) for each in read_answers(out)[1]}
            first = first or answers
            figures = {
                "tokens": told.tokens,
                "steps": told.steps,
                "tokens_per_s": round(told.tokens / told.seconds, 1),
                "answers": len(answers),
                "same": sum(answers[name] == said for name, said in first.items()),
            }
            best = found.setdefault(str(batch), figures)
            if figures["tokens_per_s"] > best["tokens_per_s"]:
                found[str(batch)] = figures
    setting = {"prompts": options.limit, "tokens": options.tokens, "rounds": options.rounds}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"together-{options.name}.json"
    write_document(file, circumstances() | facts | {"setting": setting, "batches": found})
    rows = [["at once", "tokens/s", "tokens a step", "the same answers"]]
    for batch, each in found.items():
        share = f"{each['tokens'] / each['steps']:.2f}"
        rows.append([batch, str(each["tokens_per_s"]), share, f"{each['same']}/{each['answers']}"])
    print(table(rows, frozenset({0, 1, 2, 3})))


if __name__ == "__main__":
    main()
