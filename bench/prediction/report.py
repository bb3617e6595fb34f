"""What the figures of KV prediction say: tables, a plot, and comparisons at equal time."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from quickdraft.commands.output import table

EXACT = "exact"
AT = "1024"
"""The prompt length at which times stand beside quality."""

Result = Mapping[str, Any]


def render(result: Result) -> str:
    """Every part that was measured."""
    parts = {"speed": _speed, "quality": _quality, "refresh": _refresh}
    blocks = [f"{result['model']}, {result['weights']} weights, {result['threads']} threads"]
    for part, made in parts.items():
        if part in result:
            blocks.append("\n\n".join(made(result)))
    return "\n\n".join(blocks)


def _speed(result: Result) -> Iterator[str]:
    speed = result["speed"]
    times, products = speed["ttft_ms"], speed["multiplications"]
    for length in map(str, speed["lengths"]):
        rows = [[f"{length} tokens", "first token, ms", "of exact", "multiplications, of exact"]]
        exact = times[EXACT][length]
        for name, found in times.items():
            share = products[name][length] / products[EXACT][length]
            rows.append(
                [name, f"{found[length]:.1f}", _shown(found[length] / exact), _shown(share)]
            )
        for name, peer in speed["peers"].items():
            time = peer["ttft_ms"][length]
            rows.append([name, f"{time:.1f}", _shown(time / exact), ""])
        yield table(rows, frozenset({1, 2, 3}))


def _quality(result: Result) -> Iterator[str]:
    quality = result["quality"]
    setting = quality["setting"]
    head = ["", f"first token at {AT}, of exact", "perplexity", "agreement", "same tokens"]
    rows = [[*head, "TriviaQA", "HumanEval"]]
    for name, found in quality["ways"].items():
        cells = [_shown(first_token(result, name)), _shown(found.get("perplexity"))]
        cells += [_shown(found.get("agreement"), ".1%"), _shown(found.get("same_tokens"), ".1f")]
        for task in ("triviaqa", "humaneval"):
            cells.append(_task(found.get(task)))
        rows.append([name, *cells])
    if "empty_perplexity" in quality:
        rows.append(["no prefix", "", _shown(quality["empty_perplexity"]), "", "", "", ""])
    yield table(rows, frozenset(range(1, 7)))
    yield (
        f"perplexity of {setting['continuation']} tokens after {setting['prefix']}, "
        f"{setting['windows']} windows; agreement with {setting['agreed']} tokens of the exact "
        "answers; accuracy with one standard error"
    )


def _task(found: Result | None) -> str:
    return "" if found is None else f"{found['accuracy']:.1%} ± {found['error']:.1%}"


def _refresh(result: Result) -> Iterator[str]:
    refresh = result["refresh"]
    for length in map(str, refresh["lengths"]):
        total = f"{refresh['tokens']} tokens, ms"
        head = [f"{length} tokens", "first token, ms", total, "of exact", "longest wait, ms"]
        head.append("exact from token")
        rows = [[*head, "exact after"]]
        exact = refresh["ways"][EXACT][length]["total_ms"]
        for name, by_length in refresh["ways"].items():
            found = by_length[length]
            times = [f"{found['ttft_ms']:.1f}", f"{found['total_ms']:.1f}"]
            begin = found.get("exact_from")
            cells = [_shown(found["total_ms"] / exact), _shown(found.get("longest_ms"), ".1f")]
            cells.append("" if begin is None else str(begin))
            rows.append([name, *times, *cells, "yes" if found["exact_after"] else "no"])
        yield table(rows, frozenset({1, 2, 3, 4, 5}))


def _shown(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def first_token(result: Result, name: str, length: str = AT) -> float | None:
    """The time to the first token of a way over that of the exact one; None where not measured."""
    times = result.get("speed", {}).get("ttft_ms", {})
    if length not in times.get(name, {}):
        return None
    share: float = times[name][length] / times[EXACT][length]
    return share


def points(result: Result, kinds: Sequence[str]) -> list[tuple[float, float, str]]:
    """Time to the first token, of exact, perplexity and name of the ways of some kinds, the fastest
    first."""
    found = []
    for name, figures in result.get("quality", {}).get("ways", {}).items():
        time = first_token(result, name)
        if result["ways"][name]["kind"] in kinds and time is not None and "perplexity" in figures:
            found.append((time, figures["perplexity"], name))
    return sorted(found)


def of_auxiliary(result: Result, name: str) -> float | None:
    """The perplexity of a way over that of auxiliary models alone at the same time to the first
    token: between two of them, on the line through their logarithms; the exact model is the
    slowest of them. A way that is faster than all is compared with the fastest."""
    alone = points(result, ("auxiliary", "exact"))
    own = [point for point in points(result, ("predicted", "hybrid")) if point[2] == name]
    if len(alone) < 2 or not own:
        return None
    time, perplexity, _ = own[0]
    logs = [math.log(each) for _, each, _ in alone]
    same = math.exp(float(np.interp(time, [each for each, _, _ in alone], logs)))
    return perplexity / same


def draw(result: Result) -> bytes:
    """A PNG image: the time to the first token by prompt length, and perplexity by that time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    speed = result.get("speed", {"ttft_ms": {}, "peers": {}})
    lines = {name: peer["ttft_ms"] for name, peer in speed["peers"].items()}
    for name, times in {**speed["ttft_ms"], **lines}.items():
        lengths = sorted(map(int, times))
        style = "--" if name in lines else "-"
        left.plot(lengths, [times[str(n)] for n in lengths], style, marker=".", label=name)
    left.set(xlabel="tokens of the prompt", ylabel="ms to the first token", ylim=(0, None))
    left.set_title(result["model"])
    for kind in ("predicted", "hybrid", "auxiliary", "exact"):
        found = points(result, (kind,))
        joined = "-" if kind == "auxiliary" else ""
        times, values = [p[0] for p in found], [p[1] for p in found]
        right.plot(times, values, joined, marker="o", label=kind)
        for time, value, name in found:
            short = name.partition(" ")[2] or name
            right.annotate(short, (time, value), fontsize=7, rotation=30)
    right.set(
        xlabel=f"first token at {AT} tokens, of exact", ylabel="perplexity", yscale="log",
        xlim=(0, None),
    )  # fmt: skip
    for axes in (left, right):
        axes.legend(fontsize=7) if axes.has_data() else None
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
