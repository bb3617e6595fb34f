"""`quickdraft bench curve`: the cost of a step by its rows, beside other engines."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options, whole_numbers
from quickdraft.commands.output import print_json
from quickdraft.commands.peers import STEPPING, PeerChoice, peer_commands, peer_options
from quickdraft.commands.progress import Bars
from quickdraft.commands.result_files import check_plot, write_document, write_file
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.bundle import Bundle
    from quickdraft.runtime.curve import CurvePlan, Samples

OURS = "quickdraft"
DEFAULT_THREADS = 2

Commands = dict[str, list[str]]


@click.command("bench curve")
@click.argument("model")
@click.option(
    "--context", "contexts", multiple=True, type=int, default=(256, 4096), show_default=True,
    help="Tokens in the cache when a step begins. Repeatable.",
)  # fmt: skip
@click.option(
    "--rows", default="1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,32", show_default=True,
    callback=whole_numbers, metavar="M,...", help="Rows of the steps.",
)  # fmt: skip
@click.option(
    "--prefill", default="128,512,1024,4096", show_default=True, callback=whole_numbers,
    metavar="N,...", help="Lengths of the prompts; empty for none.",
)  # fmt: skip
@click.option("--rounds", default=5, show_default=True, type=int)
@peer_options(STEPPING)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the result here, as JSON.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Also draw it in this .png."
)
@loading_options("device", "backend", "weights", "threads", "kv_cache", "offline")
@common_options
def curve(
    model: str,
    out: Path | None,
    plot: Path | None,
    peers: PeerChoice,
    loading: dict[str, Any],
    as_json: bool,
    **tests: Any,
) -> None:
    """Measure what a step costs by its rows.

    T(M) is the time of a step over M rows: what verifying M tokens costs. Engines take turns at
    every point of every round; the figure of a point is its minimum over the rounds. Memory
    bandwidth is measured in the same run. Ctrl-C ends it with the rounds that are complete.
    """
    from quickdraft.commands.curve_report import document, draw, render
    from quickdraft.device_names import hardware, split_device
    from quickdraft.kvcache.blocked import check_kv_type
    from quickdraft.models.formats import default_formats
    from quickdraft.models.resolve import resolve
    from quickdraft.runtime.curve import CurvePlan
    from quickdraft.runtime.devices import place

    check_plot(plot)
    if "kv_cache" in loading:
        check_kv_type(loading["kv_cache"])
    placement = place(loading.get("device", "auto"), loading.get("backend", "auto"))
    if placement.simulated:
        raise OptionError("a simulated device has the curve of its profile, and nothing to measure")
    given = {name: loading[name] for name in ("threads", "kv_cache") if name in loading}
    threads = loading.setdefault("threads", DEFAULT_THREADS)
    if hardware(*split_device(placement.backend)) == ("cpu",):
        given["threads"] = threads  # of a GPU or NPU nobody sets them
    shape = {name: tests[name] for name in ("contexts", "rows", "prefill", "rounds")}
    plan = CurvePlan(**shape, threads=threads)
    with Bars(transient=True) as bars:
        opened = {name: loading[name] for name in ("weights", "offline") if name in loading}
        formats = default_formats(placement.backend)
        bundle = resolve(model, formats=formats, progress=bars, **opened)
        plan.check(bundle.manifest.model.context_length)
        ours = _ours(bundle, given | {"backend": placement.backend})
        commands = {OURS: ours} | peer_commands(model, bundle.manifest, peers, loading, bars)
    samples, facts, interrupted = _measure(commands, plan, bundle, as_json)
    result = document(model, bundle, plan, samples, facts, interrupted)
    if out is not None:
        write_document(out, result)
    if as_json:
        print_json(result)
    else:
        click.echo(render(result))
    if plot is not None:
        write_file(plot, draw(result))
    if interrupted:
        raise click.Abort


def _ours(bundle: Bundle, given: dict[str, Any]) -> list[str]:
    """The command line of our own engine. given: options of `Model.open`."""
    worker = [sys.executable, "-m", "quickdraft.runtime.curve_worker"]
    return [*worker, str(bundle.folder), json.dumps(given)]


def _measure(
    commands: Commands, plan: CurvePlan, bundle: Bundle, quiet: bool
) -> tuple[Samples, dict[str, dict[str, Any]], bool]:
    """Samples, the facts of every engine, and whether it was interrupted."""
    from quickdraft.device_profiles.bandwidth import read_bandwidth
    from quickdraft.runtime.curve import Samples, measure_curve, measure_memory
    from quickdraft.runtime.engine_process import EngineProcess

    samples, vocab_size = Samples(), bundle.manifest.model.vocab_size
    with Bars(quiet=quiet, transient=True) as bars:
        fresh = [(name, context) for name in commands for context in plan.contexts]
        for number, (name, context) in enumerate(fresh):
            with EngineProcess(name, commands[name]) as engine:
                samples.peak_bytes[name, context] = measure_memory(engine, context, vocab_size)
            bars("memory", number + 1, len(fresh))
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(EngineProcess(name, command))
                for name, command in commands.items()
            }
            facts = {name: engine.facts for name, engine in engines.items()}
            try:
                measure_curve(engines, plan, vocab_size, samples, read_bandwidth, bars)
            except KeyboardInterrupt:
                if not samples.rounds:
                    raise
                return samples, facts, True
    return samples, facts, False
