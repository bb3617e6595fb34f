"""Which lines of the acceptance table of speculation hold?

    python bench/check_speculation.py speculation-qwen.json speculation-smollm2.json ...

Reads results of `quickdraft bench speculation`. A result belongs to the model whose name is in its
file or its model, and answers what it has figures for: speed over plain decoding and identical ids
from greedy results, speed over peers from those with --peers, the controller from those with
--sweep, sampling from those with --temperature. Several results of one kind are taken together;
where two have the same figure, the later one counts. Prints a line per figure, with its limit; what
no file holds is missing. Exits with 1 unless every line holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.commands.output import table
from quickdraft.runtime.suites import CODE, MADE_UP, SPEC_BENCH, SUITES

MODELS = ("qwen", "smollm2")
LEAST_PROMPTS, LEAST_TOKENS, THREADS = 10, 128, 2
OVER_PLAIN = {
    **dict.fromkeys(CODE, 1.7),
    **dict.fromkeys(("edit", "summarisation", "multi-lexsum"), 2.0),
    **dict.fromkeys(MADE_UP, 0.97),
}
WORST_PROMPT = 0.97
OF_BEST_SETTING = 0.95


@dataclass(frozen=True)
class Line:
    """A figure of a model against its least value; None where it is missing."""

    model: str
    figure: str
    value: float | None
    limit: float

    @property
    def verdict(self) -> str:
        """pass, FAIL or missing."""
        if self.value is None:
            return "missing"
        return "pass" if self.value >= self.limit else "FAIL"


def limits(model: str) -> dict[str, float]:
    """The least value of every figure. Identity counts prompts that are not, as a negative."""
    least: dict[str, float] = {f"differing prompts: {name}": 0 for name in SUITES}
    if model == "qwen":
        least |= {f"over plain: {name}": ratio for name, ratio in OVER_PLAIN.items()}
        least |= {"over plain: spec-bench, mean": 1.35}
        least |= {f"worst prompt: {name}": WORST_PROMPT for name in SUITES}
        least |= {f"of best fixed setting: {name}": OF_BEST_SETTING for name in SUITES}
        least |= {"sampled, over plain: spec-bench, mean": 1.2}
    code, answers = (2.2, 1.8) if model == "qwen" else (2.5, 2.5)
    least |= {f"over best peer: {name}": code for name in CODE}
    least |= {"over best peer: spec-bench, mean": answers}
    return least


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one result."""
    categories = result["categories"]
    ratios = {name: found["ratio"] for name, found in categories.items()}
    if result["config"]["temperature"] > 0:
        return _mean("sampled, over plain: spec-bench, mean", ratios, SPEC_BENCH)
    found: dict[str, float] = _mean("over plain: spec-bench, mean", ratios, SPEC_BENCH)
    for name, category in categories.items():
        differing = sum(not answer["identical"] for answer in category["answers"])
        others = sum(not setting["identical"] for setting in category["settings"].values())
        found[f"differing prompts: {name}"] = 0.0 - differing - others
        found[f"over plain: {name}"] = category["ratio"]
        if category["worst_prompt_ratio"] is not None:
            found[f"worst prompt: {name}"] = category["worst_prompt_ratio"]
        if len(result["settings"]) > 2:
            found[f"of best fixed setting: {name}"] = category["of_best_setting"]
    return found | peer_figures(result)


def peer_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Our speed over that of the best peer in its best mode, by category."""
    over = {}
    for name, category in result["categories"].items():
        speeds = [peer[name] for peer in result["peers"].values() if name in peer]
        if speeds:
            over[name] = category["spec_tps"] / max(speeds)
    found = {f"over best peer: {name}": ratio for name, ratio in over.items()}
    return found | _mean("over best peer: spec-bench, mean", over, SPEC_BENCH)


def _mean(
    label: str, ratios: Mapping[str, float | None], members: Sequence[str]
) -> dict[str, float]:
    """The mean over members, where all of them are known."""
    known = [ratio for name in members if (ratio := ratios.get(name)) is not None]
    return {label: sum(known) / len(known)} if len(known) == len(members) else {}


def model_of(path: Path, result: Mapping[str, Any]) -> str:
    """Which of MODELS a result is about."""
    named = f"{path.name} {result['model']}".lower()
    model = next((model for model in MODELS if model in named), None)
    if model is None:
        raise SystemExit(f"{path}: neither its name nor its model says {' or '.join(MODELS)}")
    return model


def shortcomings(result: Mapping[str, Any]) -> Iterator[str]:
    """Why a result is not what the table asks for."""
    if result["interrupted"]:
        yield "was interrupted"
    if result["threads"] != THREADS:
        yield f"was measured with {result['threads']} threads"
    if result["config"]["max_new_tokens"] < LEAST_TOKENS:
        yield f"has answers of at most {result['config']['max_new_tokens']} tokens"
    few = [name for name, found in result["categories"].items() if found["prompts"] < LEAST_PROMPTS]
    if few:
        yield f"has fewer than {LEAST_PROMPTS} prompts of {', '.join(few)}"


def check(paths: Sequence[Path]) -> Iterator[Line]:
    """Every line of the table; complains about results that are not what it asks for."""
    known: dict[str, dict[str, float]] = {model: {} for model in MODELS}
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        for shortcoming in shortcomings(result):
            print(f"{path}: {shortcoming}", file=sys.stderr)
        known[model_of(path, result)] |= figures(result)
    for model in MODELS:
        for figure, limit in limits(model).items():
            yield Line(model, figure, known[model].get(figure), limit)


def main() -> None:
    """Print the table; exit with 1 unless all lines hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    lines = list(check(parser.parse_args().results))
    rows = [["model", "figure", "value", "at least", ""]]
    for line in lines:
        value = "" if line.value is None else f"{line.value:.3f}"
        rows.append([line.model, line.figure, value, f"{line.limit:g}", line.verdict])
    print(table(rows, frozenset({2, 3})))
    sys.exit(any(line.verdict != "pass" for line in lines))


if __name__ == "__main__":
    main()
