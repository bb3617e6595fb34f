"""Which lines of the acceptance table of KV prediction hold?

    python bench/check_prediction.py prediction-qwen.json prediction-smollm2.json ...

Reads results of bench/kv_prediction.py; a result belongs to the model whose name is in its file or
its model. Of several predictors over an auxiliary model of one size, the one of the lowest
perplexity counts, for every line. Prints a line per figure, with its limit, least or most; what no
file holds is missing, and figures without a limit are reported. Exits with 1 if a line fails or is
missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prediction.report import AT, EXACT, first_token, of_auxiliary

from quickdraft.commands.output import table

MODELS = ("qwen", "smollm2")
KEPT = (0.25, 0.5, 0.75)
LENGTHS = {128, 512, 1024, 2048}
THREADS = 2
RETENTION = 0.75

Bound = tuple[Literal["at most", "at least", "report"], float]
FIT = "closed-form fit, minutes"
REPORT: Bound = ("report", 0.0)


@dataclass(frozen=True)
class Line:
    """A figure of a model against its bound; None where it is missing."""

    model: str
    figure: str
    value: float | None
    bound: Bound

    @property
    def verdict(self) -> str:
        """pass, FAIL, missing or report."""
        kind, limit = self.bound
        if kind == "report":
            return "report"
        if self.value is None:
            return "missing"
        holds = self.value <= limit if kind == "at most" else self.value >= limit
        return "pass" if holds else "FAIL"


def bounds(model: str) -> dict[str, Bound]:
    """Every figure with its bound."""
    quarter, half = (0.35, 0.60) if model == "qwen" else (0.40, 0.65)
    found: dict[str, Bound] = {
        f"0.25: first token at {AT} / exact": ("at most", quarter),
        f"0.5: first token at {AT} / exact": ("at most", half),
        f"0.25: first token at {AT} / best peer's": (
            ("at most", 0.20) if model == "qwen" else REPORT
        ),
        f"0.75: first token at {AT} / exact": REPORT,
    }
    for kept in KEPT:
        found[f"{kept}: multiplications at {AT} / exact"] = REPORT
        found[f"{kept}: perplexity / auxiliary's at equal time"] = ("at most", 1.0)
        found[f"{kept}: perplexity / naive skipping's"] = ("at most", 1.0)
        for task in ("triviaqa", "humaneval"):
            mark: Bound = ("at least", RETENTION) if kept == 0.5 else REPORT
            found[f"{kept}: {task} / exact"] = mark
        found[f"{kept}: agreement"] = REPORT
        found[f"{kept}: refreshed, first token / predicted"] = ("at most", 1.05)
        found[f"{kept}: refreshed, whole answer / exact"] = ("at most", 1.10)
        found[f"{kept}: refreshed answers that are not exact afterwards"] = ("at most", 0)
    found[FIT] = ("at most", 20) if model == "smollm2" else REPORT
    return found


def figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures of one result."""
    found: dict[str, float | None] = {}
    for kept in KEPT:
        name = chosen(result, kept)
        if name is not None:
            of_way = {**speed_figures(result, name), **quality_figures(result, name)}
            of_way |= refresh_figures(result, name)
            found |= {f"{kept}: {figure}": value for figure, value in of_way.items()}
    fits = [
        way["details"]["budget"] / 60
        for way in result["ways"].values()
        if way["details"].get("method") == "ridge" and way["details"].get("budget") is not None
    ]
    return found | ({FIT: max(fits)} if fits else {})


def chosen(result: Mapping[str, Any], kept: float) -> str | None:
    """The predictor of an auxiliary's size that counts: the lowest perplexity, where measured."""
    measured = result.get("quality", {}).get("ways", {})
    names = [
        name
        for name, way in result["ways"].items()
        if way["kind"] == "predicted" and size_of(way) == kept and is_trained(way)
    ]
    key = {name: measured.get(name, {}).get("perplexity", float("inf")) for name in names}
    return min(names, key=lambda name: key[name], default=None)


def size_of(way: Mapping[str, Any]) -> float:
    """The part of the target's layers that its auxiliary has, to the nearest quarter."""
    return round(4 * way["details"].get("keep", 0)) / 4


def is_trained(way: Mapping[str, Any]) -> bool:
    """Whether anything was fitted; otherwise it is naive skipping of layers."""
    return way["details"].get("method") != "none"


def speed_figures(result: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """How early the first token comes."""
    speed = result.get("speed")
    if speed is None or name not in speed["ttft_ms"]:
        return {}
    times, products = speed["ttft_ms"], speed["multiplications"]
    peers = [peer["ttft_ms"][AT] for peer in speed["peers"].values()]
    return {
        f"first token at {AT} / exact": first_token(result, name),
        f"first token at {AT} / best peer's": times[name][AT] / min(peers) if peers else None,
        f"multiplications at {AT} / exact": products[name][AT] / products[EXACT][AT],
    }


def quality_figures(result: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """What it costs."""
    ways = result.get("quality", {}).get("ways", {})
    own, exact = ways.get(name, {}), ways.get(EXACT, {})
    found: dict[str, float | None] = {
        "perplexity / auxiliary's at equal time": of_auxiliary(result, name),
        "agreement": own.get("agreement"),
    }
    kept = size_of(result["ways"][name])
    for other, way in result["ways"].items():
        same = way["kind"] == "predicted" and size_of(way) == kept
        if same and not is_trained(way) and "perplexity" in ways.get(other, {}):
            ratio = own["perplexity"] / ways[other]["perplexity"]
            found["perplexity / naive skipping's"] = ratio
    for task in ("triviaqa", "humaneval"):
        if task in own and exact.get(task, {}).get("accuracy"):
            found[f"{task} / exact"] = own[task]["accuracy"] / exact[task]["accuracy"]
    return found


def refresh_figures(result: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """Whether a refreshed answer is as early as a predicted one, and as exact as an exact one. The
    worst prompt length counts."""
    ways = result.get("refresh", {}).get("ways", {})
    refreshed = ways.get(f"{name}+refresh")
    if refreshed is None:
        return {}
    early, whole = [], []
    for length, found in refreshed.items():
        early.append(found["ttft_ms"] / ways[name][length]["ttft_ms"])
        whole.append(found["total_ms"] / ways[EXACT][length]["total_ms"])
    return {
        "refreshed, first token / predicted": max(early),
        "refreshed, whole answer / exact": max(whole),
        "refreshed answers that are not exact afterwards": sum(
            not found["exact_after"] for found in refreshed.values()
        ),
    }


def shortcomings(result: Mapping[str, Any]) -> Iterator[str]:
    """Why a result is not what the table asks for."""
    if result["threads"] != THREADS:
        yield f"was measured with {result['threads']} threads"
    if result["backend"] != "hotpath":
        yield f"was measured with the backend {result['backend']}"
    missing = LENGTHS - set(result.get("speed", {}).get("lengths", ()))
    if missing:
        yield f"lacks prompts of {', '.join(map(str, sorted(missing)))} tokens"
    if result.get("refresh", {}).get("tokens", 0) < 128:
        yield "lacks answers of 128 tokens that are refreshed"


def model_of(path: Path, result: Mapping[str, Any]) -> str:
    """Which of MODELS a result is about."""
    named = f"{path.name} {result['model']}".lower()
    model = next((model for model in MODELS if model in named), None)
    if model is None:
        raise SystemExit(f"{path}: neither its name nor its model says {' or '.join(MODELS)}")
    return model


def check(paths: Sequence[Path]) -> Iterator[Line]:
    """Every line of the table; complains about results that are not what it asks for."""
    known: dict[str, dict[str, float | None]] = {model: {} for model in MODELS}
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        for shortcoming in shortcomings(result):
            print(f"{path}: {shortcoming}", file=sys.stderr)
        known[model_of(path, result)] |= figures(result)
    for model in MODELS:
        for figure, bound in bounds(model).items():
            yield Line(model, figure, known[model].get(figure), bound)


def main() -> None:
    """Print the table; exit with 1 unless all lines hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    lines = list(check(parser.parse_args().results))
    rows = [["model", "figure", "value", "bound", ""]]
    for line in lines:
        value = "" if line.value is None else f"{line.value:.3f}"
        kind, limit = line.bound
        bound = "" if kind == "report" else f"{kind} {limit:g}"
        rows.append([line.model, line.figure, value, bound, line.verdict])
    print(table(rows, frozenset({2})))
    sys.exit(any(line.verdict in ("FAIL", "missing") for line in lines))


if __name__ == "__main__":
    main()
