"""`quickdraft device list` and `device show`: the devices that quickdraft knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from quickdraft import strict_json
from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, print_json, table
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.device_profiles.memory_plan import MemoryPlan
    from quickdraft.device_profiles.profile import Profile
    from quickdraft.manifest import Manifest
    from quickdraft.runtime.beside import Beside
    from quickdraft.runtime.devices import Placement


@click.command("device list")
@common_options
def list_devices(as_json: bool) -> None:
    """List the devices that are known.

    Those marked `here` fit this machine's processor; whether one can be used, `device show` says.
    Those marked `simulated` have the figures that `--device simulated:NAME` needs.
    """
    from quickdraft.device_profiles.profile import profiles
    from quickdraft.device_profiles.simulation import can_simulate
    from quickdraft.runtime.devices import KINDS, Here

    here = Here.look()
    fitting = {profile.name for kind in KINDS for profile in here.matching(kind)}
    found = [
        {
            "name": profile.name,
            "kind": profile.kind,
            "here": profile.name in fitting,
            "can_simulate": can_simulate(profile),
            "backends": list(profile.run.backends),
            "title": profile.title,
        }
        for profile in profiles().values()
    ]
    if as_json:
        print_json(found)
        return
    rows = [("NAME", "KIND", "HERE", "SIMULATED", "TITLE")]
    rows += [
        (
            str(entry["name"]),
            str(entry["kind"]),
            "here" if entry["here"] else "",
            "simulated" if entry["can_simulate"] else "",
            str(entry["title"]),
        )
        for entry in found
    ]
    click.echo(table(rows))


@click.command("device show")
@click.argument("name", default="auto")
@click.option("--model", help="Also plan its memory there; it is fetched if need be.")
@click.option("--context", type=int, help="Tokens that the plan holds; the model's own limit else.")
@click.option("--prefill", metavar="KIND", help="Plan for that prefill too, on this processor.")
@common_options
def show_device(
    name: str, model: str | None, context: int | None, prefill: str | None, as_json: bool
) -> None:
    """Print what is known of a device.

    NAME is what --device takes: auto (the default), cpu, gpu, npu, a name of `device list`, or a
    file of your own. A device that is not here is shown as well. Exits with 2 if the model does not
    fit.
    """
    for option, given in (("--context", context), ("--prefill", prefill)):
        if given is not None and model is None:
            raise OptionError(f"{option} is of a plan; give --model with it")
    profile, why, here = _profile(name)
    plan = None if model is None else _plan(profile, here, model, context, prefill)
    if as_json:
        print_json(
            {
                "profile": None if profile is None else strict_json.encode(profile),
                "why": why,
                "backends": _states(profile),
                "plan": None if plan is None else plan.to_dict(),
            }
        )
    else:
        click.echo(table(list(_lines(profile, why, plan))))
    if plan is not None:
        plan.check(str(model), profile.name if profile is not None else "this machine")


def _profile(name: str) -> tuple[Profile | None, str, bool]:
    """The profile of a name, why it is taken or where the device is, and whether it is here."""
    from quickdraft.device_profiles.profile import profile_named
    from quickdraft.runtime.backends.simulated import PREFIX
    from quickdraft.runtime.devices import KINDS, Here, place

    if name in ("auto", *KINDS):
        placement: Placement = place(name)
        return placement.profile, placement.why, True
    simulated = name.startswith(f"{PREFIX}:")
    profile = profile_named(name.removeprefix(f"{PREFIX}:"))
    here = Here.look()
    if profile in here.matching(profile.kind):
        return profile, f"it fits this machine, {here}", not simulated
    return profile, f"not this machine, which is {here}", False


def _plan(
    profile: Profile | None, here: bool, model: str, context: int | None, prefill: str | None
) -> MemoryPlan:
    from quickdraft.commands.progress import Bars
    from quickdraft.models.resolve import resolve
    from quickdraft.runtime.beside import NOTHING, Beside
    from quickdraft.runtime.device_plan import longest_context, planned
    from quickdraft.runtime.devices import Placement
    from quickdraft.runtime.prediction import Prefill

    beside = NOTHING if prefill is None else Beside(Prefill.parse(prefill))
    with Bars(transient=True) as bars:
        manifest = resolve(model, progress=bars).manifest
    wanted = None if profile is None or (here and profile.kind == "cpu") else profile
    tokens = longest_context(wanted, manifest.model) if context is None else context
    if wanted is None:
        _check_predictor(manifest, beside)
        return Placement("auto", "", profile).plan(manifest, None, tokens, beside)
    if prefill is not None:
        raise OptionError(
            f"--prefill is {prefill}, and {wanted.name} is not this processor, for which alone "
            "parts are planned; leave it out"
        )
    return planned(wanted, manifest, tokens, here=here)


def _check_predictor(manifest: Manifest, beside: Beside) -> None:
    """Refuse to plan a prefill that the bundle has no predictor for.

    Raises:
        OptionError: it has none, or none of that name.
    """
    from quickdraft.runtime.backends.opening import backend_for

    if beside.prefill.predicts and not beside.parts(manifest, backend_for(manifest, "auto")):
        raise OptionError(
            f"--prefill is {beside.prefill}, and the bundle has no such predictor; "
            "`quickdraft show` lists what it has"
        )


def _states(profile: Profile | None) -> dict[str, str | None]:
    """What keeps each backend of a profile from running here; None where nothing does."""
    from quickdraft.runtime.devices import backend_problem

    return {name: backend_problem(name) for name in (profile.run.backends if profile else ())}


def _lines(profile: Profile | None, why: str, plan: MemoryPlan | None) -> Iterator[tuple[str, str]]:
    if profile is None:
        yield "device", "unknown"
    else:
        yield "device", f"{profile.name}: {profile.title}, {profile.kind}"
    yield "here", why
    if profile is not None:
        yield from _facts(profile)
    if plan is not None:
        facts: dict[str, Any] = dataclasses.asdict(plan)
        copies = f" in {plan.graphs} graphs" if plan.graphs > 1 else ""
        yield "weights", human_size(facts["weights"]) + copies
        yield "keys, values", f"{human_size(plan.kv)} for {plan.context} tokens, {plan.kv_type}"
        yield "workspace", human_size(plan.workspace)
        if plan.parts or plan.kv_parts:
            beside = f"{human_size(plan.parts)}, keys and values {human_size(plan.kv_parts)}"
            yield "beside it", beside
        budget = "unknown" if plan.budget is None else human_size(plan.budget)
        yield "needed", f"{human_size(plan.needed)} of {budget}"


def _facts(profile: Profile) -> Iterator[tuple[str, str]]:
    run, memory = profile.run, profile.memory
    for name, problem in _states(profile).items():
        yield f"backend {name}", problem or "runs here"
    yield "flavour", f"{run.flavour}, weights {run.weights}, keys and values {run.kv_cache}"
    yield "threads", str(run.threads or "as the backend chooses")
    if profile.static is not None:
        widths = ", ".join(map(str, profile.static.widths))
        length = profile.static.cache_length
        yield "widths", f"{widths}, prefill {profile.static.prefill_chunk}; {length:,} tokens"
    yield "memory", f"{memory.share:.0%} of the system's ({memory.share_source})"
    if memory.size_gib is not None:
        figure = memory.size_gib
        yield "least memory", f"{figure.value:g} GiB ({figure.source})"
    if memory.bandwidth_gb_s is not None:
        figure = memory.bandwidth_gb_s
        yield "bandwidth", f"{figure.value:g} GB/s ({figure.source})"
    if profile.simulation is not None:
        figure = profile.simulation.tops
        yield "arithmetic", f"{figure.value:g} TOPS ({figure.source})"
    for quirk in profile.quirks:
        yield "note", f"{quirk.text} ({quirk.source})"
