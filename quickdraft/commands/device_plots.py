"""The plots of `quickdraft bench device`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

MOST_ROWS = 32


def draw(reports: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """Captions and PNG images: speed by class, time to the first token, and the curve of a step."""
    for caption, figure, unit in (
        ("Second and later tokens per second, by class of prompt", "rate", "tokens per second"),
        ("Time to the first token, by class of prompt", "ttft_ms", "ms to the first token"),
    ):
        yield caption, _bars(reports, figure, unit, caption)
    curves = [(_label(report), report["curve"]) for report in reports if report.get("curve")]
    if curves:
        caption = "Time of a step by its rows, over an empty context"
        yield caption, _curves(curves, caption)


def _label(report: dict[str, Any]) -> str:
    device = report["device"]
    name = str(device["name"])
    return f"{name.removeprefix('simulated:')} (SIMULATED)" if device["simulated"] else name


def _bars(reports: Sequence[dict[str, Any]], figure: str, unit: str, caption: str) -> bytes:
    """Bars by class and device, plain beside drafted."""
    figure_, axes = _axes(caption)
    names = list(dict.fromkeys(name for report in reports for name in report["classes"]))
    series = []
    for report in reports:
        for way in ("plain", "drafted"):
            values = [report["classes"].get(name, {}).get(way, {}).get(figure) for name in names]
            if any(value is not None for value in values):
                series.append((f"{_label(report)}, {way}", values))
    width = 0.8 / max(len(series), 1)
    for number, (label, values) in enumerate(series):
        places = [at + number * width for at in range(len(names))]
        axes.bar(places, [value or 0.0 for value in values], width, label=label)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(names))], names, rotation=15)
    axes.set_ylabel(unit)
    axes.legend(fontsize=8)
    return _png(figure_)


def _curves(curves: Sequence[tuple[str, dict[str, Any]]], caption: str) -> bytes:
    """Milliseconds of a step by its rows over an empty context."""
    figure, axes = _axes(caption)
    for label, curve in curves:
        points = [
            (rows, 1e3 * seconds)
            for rows, seconds in zip(curve["rows"], curve["seconds"], strict=True)
            if rows <= MOST_ROWS
        ]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set_xlabel("rows of a step")
    axes.set_ylabel("ms")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend(fontsize=8)
    return _png(figure)


def _axes(caption: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(caption)
    return figure, axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
