"""`quickdraft calibrate`: measure what a step costs, so that drafting can be planned."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import print_json, table
from quickdraft.commands.progress import Bars, open_model

if TYPE_CHECKING:
    from quickdraft.runtime.calibration import Calibrated


@click.command()
@click.argument("model")
@loading_options("backend", "weights", "threads", "kv_cache", "offline")
@common_options
def calibrate(model: str, loading: dict[str, Any], as_json: bool) -> None:
    """Measure what a step costs, to plan drafting.

    Drafting is planned with this curve: how many tokens are worth verifying at once. The first use
    of a model measures it in about a second; this takes longer and is more precise. Run it on an
    idle machine, with the options the model is used with: each processor, number of threads and
    type of cache has its own curve.
    """
    from quickdraft.runtime import calibration

    with (
        open_model(model, drafter="none", **loading) as loaded,
        Bars(quiet=as_json, transient=True) as bars,
    ):
        done = calibration.calibrate(
            loaded.backend,
            loaded.manifest,
            loading.get("threads"),
            calibration.THOROUGH,
            progress=bars,
        )
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "device": dataclasses.asdict(done.device),
                "bundle": done.bundle,
                "curve": done.curve.to_dict(),
                "stored": done.path is not None,
            }
        )
    else:
        click.echo(_render(done))


def _render(done: Calibrated) -> str:
    """The curve as a table, and where it went."""
    curve = done.curve
    rows = [["rows", "ms", "to one row", "ms per 1000 tokens of context"]]
    for n, seconds, growth in zip(curve.rows, curve.seconds, curve.growth, strict=True):
        ratio = seconds / curve.seconds[0]
        rows.append([str(n), f"{1e3 * seconds:.2f}", f"{ratio:.2f}", f"{1e6 * growth:.2f}"])
    kept = f"stored in {done.path}" if done.path is not None else "not stored"
    return "\n".join([table(rows, frozenset(range(4))), "", kept])
