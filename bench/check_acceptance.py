"""Which lines of the acceptance table of the hot path hold?

    python bench/check_acceptance.py curve-qwen.json curve-smollm2.json startup-*.json
        perplexity-*.json

Reads results of `quickdraft bench curve` (both contexts), bench/startup.py and bench/perplexity.py;
a result belongs to the model whose name is in its file or its model. Prints a line per figure, with
its limit; what no file holds is missing. Exits with 1 unless every line holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraft.commands.output import table

MODELS = ("qwen", "smollm2")
OURS = "quickdraft"
CONTEXT, LONG_CONTEXT = 256, 4096
# Limits by figure, for the models in order; None: to be reported only.
LIMITS: dict[str, tuple[float | None, float | None]] = {
    "T(1) / best peer's": (0.80, 0.50),
    "T(1) / (bytes / bandwidth)": (1.25, None),
    "T(8) / T(1)": (1.6, 1.8),
    "T(16) / T(1)": (2.4, 2.8),
    "T(8) / best peer's": (0.45, 0.45),
    "T(16) / best peer's": (0.45, 0.45),
    "prefill 1024 / best peer's": (0.60, 0.60),
    f"T(1) at {LONG_CONTEXT} / at {CONTEXT}": (1.35, None),
    f"peak MB beyond weights and KV, context {CONTEXT}": (250, 200),
    f"peak MB beyond weights and KV, context {LONG_CONTEXT}": (250, 200),
    "load(), s": (0.6, 0.3),
    "first token, s": (1.6, 1.1),
    "perplexity / of float32": (1.005, 1.005),
    "perplexity, int8 KV / float32 KV": (1.005, 1.005),
}


@dataclass(frozen=True)
class Line:
    """A figure of a model against its limit; None where it is missing, or only reported."""

    model: str
    figure: str
    value: float | None
    limit: float | None

    @property
    def verdict(self) -> str:
        """pass, FAIL, missing or report."""
        if self.value is None:
            return "missing"
        if self.limit is None:
            return "report"
        return "pass" if self.value <= self.limit else "FAIL"


def curve_figures(result: dict[str, Any]) -> dict[str, float]:
    """Figures of one document of `quickdraft bench curve`."""
    found: dict[str, float] = {}
    curves = {curve["context"]: curve for curve in result["curves"]}
    for context, curve in curves.items():
        ours = curve["engines"][OURS]
        if ours["rss_mb"] is not None and ours["kv_bytes"] is not None:
            held = (result["weights_bytes"] + ours["kv_bytes"]) / 1e6
            found[f"peak MB beyond weights and KV, context {context}"] = ours["rss_mb"] - held
    if CONTEXT not in curves:
        return found
    engines = curves[CONTEXT]["engines"]
    ours = engines[OURS]
    peers = [engine for name, engine in engines.items() if name != OURS]
    for label, kind, count in (
        ("T(1)", "T", "1"), ("T(8)", "T", "8"), ("T(16)", "T", "16"),
        ("prefill 1024", "prefill", "1024"),
    ):  # fmt: skip
        if count in ours[kind] and peers:
            best = min(peer[kind][count] for peer in peers)
            found[f"{label} / best peer's"] = ours[kind][count] / best
    single = ours["T"]["1"]
    least = result["step_bytes"] / curves[CONTEXT]["bandwidth_gbs"] / 1e6
    found["T(1) / (bytes / bandwidth)"] = single / least
    for count in ("8", "16"):
        if count in ours["T"]:
            found[f"T({count}) / T(1)"] = ours["T"][count] / single
    if LONG_CONTEXT in curves:
        longer = curves[LONG_CONTEXT]["engines"][OURS]["T"]["1"]
        found[f"T(1) at {LONG_CONTEXT} / at {CONTEXT}"] = longer / single
    return found


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Figures of any result file."""
    if "curves" in result:
        return curve_figures(result)
    if "first_token_s" in result:
        return {"load(), s": result["load_s"], "first token, s": result["first_token_s"]}
    scores = result.get("perplexity", {})
    found = {}
    for label, ours, other in (
        ("perplexity / of float32", OURS, f"{OURS}+fp32"),
        ("perplexity, int8 KV / float32 KV", f"{OURS}+kv-int8", f"{OURS}+kv-f32"),
    ):
        if ours in scores and other in scores:
            found[label] = scores[ours] / scores[other]
    return found


def model_of(path: Path, result: dict[str, Any]) -> str | None:
    """Which of MODELS a result is about."""
    named = [path.name, str(result.get("model", ""))]
    named += [curve["model"] for curve in result.get("curves", [])]
    return next((m for m in MODELS if any(m in name.lower() for name in named)), None)


def check(paths: list[Path]) -> Iterator[Line]:
    """Every line of the table."""
    known: dict[str, dict[str, float]] = {model: {} for model in MODELS}
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        model = model_of(path, result)
        if model is None:
            raise SystemExit(f"{path}: neither its name nor its model says {' or '.join(MODELS)}")
        known[model] |= figures(result)
    for number, model in enumerate(MODELS):
        for figure, limits in LIMITS.items():
            yield Line(model, figure, known[model].get(figure), limits[number])


def main() -> None:
    """Print the table; exit with 1 unless all lines hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    lines = list(check(parser.parse_args().results))
    rows = [["model", "figure", "value", "limit", ""]]
    for line in lines:
        value = "" if line.value is None else f"{line.value:.3f}"
        limit = "" if line.limit is None else f"{line.limit:g}"
        rows.append([line.model, line.figure, value, limit, line.verdict])
    print(table(rows, frozenset({2, 3})))
    sys.exit(any(line.verdict in ("FAIL", "missing") for line in lines))


if __name__ == "__main__":
    main()
