"""What a run showed of itself, as a document, as a drawing, and as a card for people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quickdraft.drafters.train.history import History, Point
from quickdraft.hashes import storage_error, write_atomically

_COLUMNS = 2


def write_report(
    file: Path, history: History, facts: Mapping[str, Any], plot: Path | None = None
) -> None:
    """Write the history with the facts of its run to `file` as JSON, and draw it in `plot`, a .png;
    None draws nothing.

    Raises:
        StorageError: one of them cannot be written.
    """
    document = {**facts, "history": history.to_dict()}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write(file, text.encode())
    if plot is not None:
        _write(plot, draw(history, str(facts.get("title", ""))))


def card_file(out: Path) -> Path:
    """Where the card of a trained file lies: beside it, as a page."""
    is_usual = out.suffix == ".safetensors"
    return out.with_suffix(".md") if is_usual else out.with_name(f"{out.name}.md")


def write_card(out: Path, title: str, facts: Mapping[str, str]) -> None:
    """Write the card of the trained file `out`: a page with a table.

    Raises:
        StorageError: it cannot be written.
    """
    rows = [
        f"| {name} | {' '.join(told.replace('|', '/').split())} |" for name, told in facts.items()
    ]
    page = [f"# {title}", "", "| | |", "|---|---|", *rows, ""]
    _write(card_file(out), "\n".join(page).encode())


def licence_of(model: str, licence: str | None) -> str:
    """What a card says of the licence of what was learnt from a model."""
    return f"that of {model}: {licence}" if licence else f"that of {model}, which names none here"


def draw(history: History, title: str) -> bytes:
    """A curve for every figure, over the steps, as PNG; needs matplotlib."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([*_names(history.training), *_names(history.held_out)]))
    columns = min(_COLUMNS, max(len(names), 1))
    rows = -(-max(len(names), 1) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(grid, names, strict=False):
        for label, points, style in (
            ("training", history.training, {"linewidth": 0.8, "alpha": 0.7}),
            ("held out", history.held_out, {"marker": "o", "markersize": 3}),
        ):
            shown = [point for point in points if name in point.figures]
            if shown:
                steps = [point.step for point in shown]
                axes.plot(steps, [p.figures[name] for p in shown], label=label, **style)
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in list(grid):
        axes.set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _names(points: Sequence[Point]) -> list[str]:
    return list(points[0].figures) if points else []


def _write(file: Path, data: bytes) -> None:
    try:
        write_atomically(file, data)
    except OSError as error:
        raise storage_error(error, str(file)) from error
