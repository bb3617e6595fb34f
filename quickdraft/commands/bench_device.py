"""`quickdraft bench device`: one report on a device, and several reports side by side."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.circumstances import circumstances, name_only
from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import print_json
from quickdraft.commands.progress import Bars, open_model
from quickdraft.commands.result_files import write_document, write_file
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.device_bench import DevicePlan, Samples
    from quickdraft.runtime.devices import Placement
    from quickdraft.runtime.model import Model

SUFFIXES = (".json", ".md", ".html")


@click.command("bench device")
@click.argument("model", required=False)
@click.option("--tokens", default=64, show_default=True, type=int, help="Tokens of every answer.")
@click.option("--rounds", default=3, show_default=True, type=int)
@click.option(
    "--context", type=int,
    help="Tokens that the plan of memory holds; the model's own limit otherwise.",
)  # fmt: skip
@click.option(
    "--only", "classes", multiple=True, metavar="CLASS",
    help="Only prompts of this class, such as 'creative writing'. Repeatable.",
)  # fmt: skip
@click.option("--no-starts", is_flag=True, help="Leave out the starts in processes of their own.")
@click.option(
    "--merge", "merged", multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare reports (.json) instead of measuring; with MODEL, add its report. Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--out", "outs", multiple=True, type=click.Path(path_type=Path, dir_okay=False),
    help="Also write it here, as .json, .md or .html (with plots). Repeatable.",
)  # fmt: skip
@loading_options("device", "drafter", "backend", "weights", "threads", "kv_cache", "offline")
@common_options
def device(
    model: str | None,
    merged: tuple[Path, ...],
    outs: tuple[Path, ...],
    loading: dict[str, Any],
    as_json: bool,
    **tests: Any,
) -> None:
    """Report on a device, or compare reports.

    Prompts of the classes of MLPerf Client are answered plainly and with drafts: time to the first
    token, rate of the second and later tokens, and whether the answers are the same. What a device
    that is simulated computes is real; its times are not, and the report says so everywhere.
    """
    from quickdraft.commands.device_report import compare, markdown, page, read_report

    _check(model, merged, outs, loading, tests)
    reports = [read_report(path) for path in merged]
    if model is not None:
        reports.append(_measure(model, loading, tests, quiet=as_json))
    result = reports[0] if len(reports) == 1 else compare(reports)
    for out in outs:
        if out.suffix == ".json":
            write_document(out, result)
        else:
            write_file(out, (markdown if out.suffix == ".md" else page)(result).encode())
    if as_json:
        print_json(result)
    else:
        click.echo(markdown(result), nl=False)


def _check(
    model: str | None,
    merged: tuple[Path, ...],
    outs: tuple[Path, ...],
    loading: dict[str, Any],
    tests: dict[str, Any],
) -> None:
    """Refuse what cannot be done before anything is fetched."""
    from quickdraft.commands.device_report import check_plots

    if model is None and not merged:
        raise OptionError("give a MODEL to measure, or reports to compare with --merge")
    if model is None and (loading or tests["classes"]):
        raise OptionError("reports are compared as they are; give a MODEL, or leave options out")
    for out in outs:
        if out.suffix not in SUFFIXES:
            raise OptionError(f"--out: {out} does not end in {', '.join(SUFFIXES)}")
        if out.suffix == ".html":
            check_plots()
    _plan(tests, loading).check()


def _plan(tests: dict[str, Any], loading: dict[str, Any]) -> DevicePlan:
    from quickdraft.runtime.device_bench import DevicePlan
    from quickdraft.runtime.device_prompts import prompt_classes

    known = prompt_classes()
    for name in tests["classes"]:
        if name not in known:
            raise OptionError(f"--only: there is no class {name!r}; there are: {', '.join(known)}")
    chosen = {name: known[name] for name in tests["classes"] or known}
    drafter = loading.get("drafter", "auto")
    return DevicePlan(chosen, tests["tokens"], tests["rounds"], drafter)


def _measure(
    model: str, loading: dict[str, Any], tests: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """The report on one model and device."""
    from quickdraft.device_profiles.energy import open_meter
    from quickdraft.runtime.device_bench import measure_device
    from quickdraft.runtime.devices import place

    plan = _plan(tests, loading)
    placement = place(loading.get("device", "auto"), loading.get("backend", "auto"))
    starts = None if tests["no_starts"] else _starts(model, loading, placement)
    with ExitStack() as stack:
        loaded = stack.enter_context(open_model(model, store=False, **loading))
        bars = stack.enter_context(Bars(quiet=quiet, transient=True))
        if placement.simulated:
            meter, told = None, "no meter: the energy of a simulated device is not known"
        else:
            meter, told = open_meter()
        if meter is not None:
            stack.callback(meter.close)
        samples = measure_device(loaded, plan, meter, bars)
        report = _report(loaded, plan, samples, loading.get("threads"))
        report["starts"] = starts
        report["energy"] = _energy(samples, told, meter is not None)
        report["memory"] = _memory(loaded, tests["context"])
    return report


def _starts(model: str, loading: dict[str, Any], placement: Placement) -> dict[str, Any]:
    """A cold and a warm start, before this process maps the files itself."""
    from quickdraft.models.placed import bundle_on
    from quickdraft.runtime.device_bench import measure_start

    if placement.simulated:
        return {"note": "not measured: the profile of a simulated device says nothing of starts"}
    given = {n: loading[n] for n in ("weights", "kv_cache", "offline") if n in loading}
    with Bars(transient=True) as bars:
        placement, bundle = bundle_on(placement, model, progress=bars, **given)
    options: dict[str, Any] = {"backend": placement.backend}
    options |= {"threads": loading["threads"]} if "threads" in loading else {}
    kv_cache = placement.kv_to_open(bundle.manifest)
    options |= {} if kv_cache is None else {"kv_cache": kv_cache}
    files = bundle.manifest.files
    found = {
        name: measure_start(bundle.folder, files, options, cold=name == "cold")
        for name in ("cold", "warm")
    }
    return {
        name: {k: v if isinstance(v, bool) else round(v, 3) for k, v in vars(start).items()}
        for name, start in found.items()
    }


def _report(
    model: Model, plan: DevicePlan, samples: Samples, threads: int | None
) -> dict[str, Any]:
    """Everything but starts, energy and memory, as plain JSON types."""
    from quickdraft.commands.device_report import KIND, SCHEMA_VERSION
    from quickdraft.device_profiles.simulation import described
    from quickdraft.runtime.backends.opening import opened_variant
    from quickdraft.runtime.device_bench import DRAFTED, PLAIN, class_figures, overall, perplexity
    from quickdraft.runtime.device_prompts import LIBRARY, fingerprint

    placement = model.placement
    assert placement is not None  # every loaded model has one  # noqa: S101
    names = dict.fromkeys(name for name, _, _ in samples.answers)
    classes = {name: class_figures(samples, name) for name in names}
    same = [figures["identical"] for figures in classes.values() if "identical" in figures]
    weights = opened_variant(model.manifest, model.backend).weight_format
    timed_as = None
    if placement.simulated and placement.profile is not None:
        timed_as = described(placement.profile, weights)
    judged = perplexity(model.backend, model.tokenize(LIBRARY))
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        **circumstances(),
        "device": {
            "name": placement.device,
            "title": placement.profile.title if placement.profile else placement.device,
            "simulated": placement.simulated,
            "timed_as": timed_as,
            "why": placement.why,
            "form": None if placement.form is None else placement.form.to_dict(),
        },
        "model": name_only(model.name),
        "weights": weights,
        "backend": model.backend.name,
        "flavour": model.backend.flavour,
        "runs_on": model.backend.device,
        "isa": model.backend.isa,
        "kv_cache": model.backend.kv_type,
        "threads": threads or "auto",
        "drafter": plan.drafter,
        "prompts": fingerprint(),
        "tokens": plan.tokens,
        "rounds": plan.rounds,
        "skipped": samples.skipped,
        "classes": classes,
        "overall": {way: overall(classes, way) for way in (PLAIN, DRAFTED)},
        "quality": {
            "guarantee": model.backend.guarantee,
            "identical": all(same) if same else None,
            "perplexity": None if judged is None else round(judged, 4),
        },
        "curve": None if model.curve is None else model.curve.to_dict(),
    }


def _energy(samples: Samples, meter: str, counted: bool) -> dict[str, Any]:
    if not counted:
        return {"meter": None, "note": meter, "joules_per_token": None}
    return {
        "meter": meter,
        "note": "of the whole processor, whatever else ran on it",
        "joules_per_token": {
            way: round(joules / samples.tokens[way], 4) for way, joules in samples.joules.items()
        },
    }


def _memory(model: Model, context: int | None) -> dict[str, Any]:
    """The plan for a context, and the largest size of this process so far."""
    from quickdraft.device_profiles import machine
    from quickdraft.runtime.model_memory import plan_for

    plan = plan_for(model, context)
    return {"peak": machine.peak_memory(), **plan.to_dict()}
