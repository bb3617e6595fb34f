"""Progress on standard error: bars on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

import click

from quickdraft.commands.output import dim, is_terminal, wants_colour

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from quickdraft.runtime.model import Model

BYTE_STAGES = frozenset({"download", "verify"})
"""Stages that count bytes; the others count pieces of work."""


class Bars:
    """Takes (stage, done, total) reports and draws one bar per stage, as a context manager.

    Nothing is drawn, and rich is not imported, before the first report.
    """

    def __init__(self, quiet: bool = False, transient: bool = False) -> None:
        """quiet: draw nothing. transient: leave no bars behind at the end."""
        self._transient = transient
        self._drawn = is_terminal(sys.stderr) and not quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Draw that `done` of `total` (0: unknown) is behind us in a stage."""
        if not self._drawn:
            return
        if self._progress is None:
            self._progress = _progress(self._transient)
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)


def _progress(transient: bool) -> Progress:
    """Rich's bars, with sizes and rates for stages that count bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from quickdraft.commands.output import human_size

    class Amount(TextColumn):
        """Sizes and a rate for bytes, a percentage for anything else."""

        def render(self, task: Task) -> Text:
            if task.description not in BYTE_STAGES:
                return Text(f"{task.percentage:.0f} %" if task.total else "")
            total = f" of {human_size(task.total)}" if task.total else ""
            rate = f", {human_size(task.speed)}/s" if task.speed else ""
            return Text(f"{human_size(task.completed)}{total}{rate}")

    console = Console(stderr=True, no_color=not wants_colour(sys.stderr))
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        Amount(""),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
    )


def open_model(name: str, **loading: Any) -> Model:
    """Load a model as `quickdraft.load` does, with bars while it is fetched and exported."""
    from quickdraft.api import load

    with Bars(transient=True) as bars:
        model = load(name, progress=bars, **loading)
    if model.placement is not None and model.placement.simulated:
        click.echo(dim(f"{model.placement.why}; times are not real"), err=True)
    if model.not_followed:
        names = ", ".join(f"{name}={value}" for name, value in model.not_followed.items())
        click.echo(dim(f"settings of the model that are not supported: {names}"), err=True)
    return model
