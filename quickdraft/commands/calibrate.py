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
    from quickdraft.runtime.model import Model

DRAFTED_TOKENS = 32
"""Of an answer over which drafters are timed."""


@click.command()
@click.argument("model")
@loading_options("device", "backend", "weights", "threads", "kv_cache", "offline")
@common_options
def calibrate(model: str, loading: dict[str, Any], as_json: bool) -> None:
    """Measure what a step costs, to plan drafting.

    Drafting is planned with this curve: how many tokens are worth verifying at once. The first use
    of a model measures it in about a second; this takes longer and is more precise. Run it on an
    idle machine, with the options the model is used with: each processor, number of threads and
    type of cache has its own curve. The bandwidth of memory and the time that drafters take are
    measured as well, for comparison: neither is stored.
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
        drafts = _draft_ms(loaded, done)
    bandwidth = _bandwidth(loading.get("threads"))
    if as_json:
        print_json(
            {
                "model": loaded.name,
                "device": dataclasses.asdict(done.device),
                "bundle": done.bundle,
                "curve": done.curve.to_dict(),
                "bandwidth_gb_s": round(bandwidth, 3),
                "draft_ms": drafts,
                "stored": done.path is not None,
            }
        )
    else:
        click.echo(_render(done, bandwidth, drafts))


def _bandwidth(threads: int | None) -> float:
    """GB/s of reading memory with the threads of the backend."""
    from quickdraft.device_profiles import machine
    from quickdraft.device_profiles.bandwidth import read_bandwidth

    return read_bandwidth(threads or machine.physical_cores() or 1)


def _draft_ms(model: Model, done: Calibrated) -> dict[str, float]:
    """Milliseconds per step of every drafter that was asked, over the answer to a text."""
    from quickdraft.commands.bench import TEXT
    from quickdraft.runtime.drafting import DraftingSetup
    from quickdraft.runtime.generation import GenerationConfig
    from quickdraft.runtime.metrics import drafting_summary

    model.curve = done.curve
    ids = model.tokenize(TEXT)
    if len(ids) + DRAFTED_TOKENS > model.spec.context_length:
        return {}
    with model.open_drafting(DraftingSetup("auto", store=False)) as drafting:
        session = model.session(drafting)
        options = {"max_new_tokens": DRAFTED_TOKENS, "temperature": 0.0, "ignore_eos": True}
        steps = model.generate(ids, GenerationConfig.from_dict(options), session=session).steps[1:]
    found = drafting_summary(steps)["drafters"].items()
    return {name: round(spent["draft_ms"] / len(steps), 4) for name, spent in found}


def _render(done: Calibrated, bandwidth: float, drafts: dict[str, float]) -> str:
    """The curve as a table, bandwidth and drafts, and where the curve went."""
    curve = done.curve
    rows = [["rows", "ms", "to one row", "ms per 1000 tokens of context"]]
    for n, seconds, growth in zip(curve.rows, curve.seconds, curve.growth, strict=True):
        ratio = seconds / curve.seconds[0]
        rows.append([str(n), f"{1e3 * seconds:.2f}", f"{ratio:.2f}", f"{1e6 * growth:.2f}"])
    kept = f"stored in {done.path}" if done.path is not None else "not stored"
    spent = ", ".join(f"{name} {ms:.3f} ms a step" for name, ms in drafts.items())
    beside = f"memory {bandwidth:.1f} GB/s; drafting: {spent or 'nothing was drafted'}"
    return "\n".join([table(rows, frozenset(range(4))), "", beside, kept])
