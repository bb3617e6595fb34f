"""`quickdraft export`: a checkpoint becomes a bundle in a folder of the user's choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from quickdraft.commands.options import common_options, static_options, whole_numbers
from quickdraft.commands.output import human_count, human_size, print_json
from quickdraft.commands.progress import Bars
from quickdraft.device_profiles import machine
from quickdraft.errors import OptionError
from quickdraft.manifest import WeightFormat
from quickdraft.registry import EMITTERS
from quickdraft.static_shapes import StaticShapes

if TYPE_CHECKING:
    from quickdraft.manifest import Manifest
    from quickdraft.models.admission import Provenance
    from quickdraft.runtime.forms import Form


@click.command()
@click.argument("source")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle."
)
@click.option(
    "--weights",
    type=click.Choice(("auto", *get_args(WeightFormat))),
    help="Weight format; auto, unless --device says otherwise, keeps the blocks of a GGUF file.",
)
@click.option(
    "--hidden-states",
    callback=whole_numbers,
    metavar="LAYERS",
    help="Also put out hidden states after these numbers of layers, such as 5,14.",
)
@click.option(
    "--format",
    "--to",
    "formats",
    default="auto",
    show_default=True,
    metavar="FORMATS",
    help=(
        f"Target formats, best first, separated by commas: {', '.join(EMITTERS)}. "
        "auto is hotpath where our kernels are installed, else onnx, which runs everywhere."
    ),
)
@click.option(
    "--device",
    metavar="NAME",
    help="Take formats, weights and shapes that are not given from a device of `device list`.",
)
@static_options
@click.option(
    "--trained",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add a part that `quickdraft train` made for this checkpoint. Repeatable.",
)
@click.option(
    "--drafts/--no-drafts",
    default=True,
    show_default=True,
    help="Add the drafts that come with quickdraft for this checkpoint, if there are any.",
)
@click.option(
    "--via",
    type=click.Choice(("optimum",)),
    help="Let optimum export a family that quickdraft does not define: slower, a fallback.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@common_options
def export(
    source: str,
    out: Path,
    weights: str | None,
    hidden_states: tuple[int, ...] | None,
    formats: str,
    device: str | None,
    shapes: StaticShapes,
    trained: tuple[Path, ...],
    drafts: bool,
    via: str | None,
    overwrite: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a bundle.

    SOURCE is a .gguf file, a Hugging Face checkpoint folder, or the name of a model.
    """
    from quickdraft.export.pipeline import export_model
    from quickdraft.models.adapters.via_optimum import export_via_optimum
    from quickdraft.models.admission import admit
    from quickdraft.models.formats import WITH_PARTS
    from quickdraft.models.shipped import left_out, with_shipped

    _check_plain(via, weights, hidden_states or (), formats, trained, shapes.key, device)
    form = _form(device, weights, formats, shapes)
    fits = via is None and set(form.formats) <= set(WITH_PARTS)
    started = time.perf_counter()
    with Bars(quiet=as_json) as bars:
        checkpoint, provenance = _checkpoint(source, bars, offline)
        if via is not None:
            manifest = export_via_optimum(
                checkpoint, out, provenance=provenance, overwrite=overwrite, progress=bars
            )
        else:
            manifest = export_model(
                checkpoint,
                out,
                weights=form.weights.value or "auto",
                hidden_states=hidden_states or (),
                formats=form.formats,
                shapes=form.shapes,
                progress=bars,
                overwrite=overwrite,
                trained=with_shipped(checkpoint, trained) if drafts and fits else trained,
                admit=partial(admit, provenance=provenance),
            )
    lacking = left_out(checkpoint, trained) if drafts and not fits else ()
    facts = _facts(out, manifest, lacking, round(time.perf_counter() - started, 3))
    facts["device"] = _wanted(device, form)
    if as_json:
        print_json({**facts, "peak_memory": machine.peak_memory()})
        return
    _show(facts, manifest)
    _advise(via, device, formats, form)


def _advise(via: str | None, device: str | None, formats: str, form: Form) -> None:
    """Say what a better bundle would take."""
    if via is not None:
        click.echo("This is a fallback: no trees of drafts, no kernels of ours, float32 weights.")
    elif (formats, device) == ("auto", None) and "hotpath" not in form.formats:
        click.echo(
            "Our kernels are not installed here; --format hotpath exports for where they are."
        )


def _form(device: str | None, weights: str | None, formats: str, shapes: StaticShapes) -> Form:
    """What is made: as it is asked for, else as the device wants it."""
    from quickdraft.device_profiles.profile import profile_named
    from quickdraft.models.formats import default_formats
    from quickdraft.runtime.forms import form_of

    profile = None if device is None else profile_named(device)
    backend, flavour = "auto", None
    if profile is not None:
        backend, flavour = profile.run.backends[0], profile.run.flavour
    chosen = tuple(name.strip() for name in formats.split(","))
    if chosen == ("auto",):
        chosen = default_formats(backend, flavour)
    form = form_of(profile, backend, chosen, (weights, None), "no device was named")
    return form.with_shapes(shapes)


def _wanted(device: str | None, form: Form) -> dict[str, Any] | None:
    """What was made for a device, and why."""
    if device is None:
        return None
    return {"name": device, "weights": vars(form.weights), "shapes": form.shapes_why}


def _check_plain(via: str | None, *options: Any) -> None:
    """--weights, --hidden-states, --format, --trained and shapes must be as they are by default.

    Raises:
        OptionError: one is not, and optimum would ignore it.
    """
    if via is not None and options not in (
        (None, (), "auto", (), "", None),
        ("auto", (), "auto", (), "", None),
    ):
        raise OptionError(
            "--via optimum exports the whole checkpoint in float32 to ONNX and nothing else; leave "
            "out --weights, --hidden-states, --format, --trained, --device and shapes"
        )


def _facts(
    out: Path, manifest: Manifest, lacking: Sequence[Path], seconds: float
) -> dict[str, Any]:
    """What the bundle holds, and which shipped drafts it lacks."""
    variants = manifest.roles["target"]
    beside = [v.name for role in manifest.roles if role != "target" for v in manifest.roles[role]]
    return {
        "bundle": str(out),
        "family": manifest.model.family,
        "parameters": manifest.model.num_parameters,
        "formats": [v.target_format for v in variants],
        "flavours": [v.flavour for v in variants],
        "weights": [v.weight_format for v in variants],
        "widths": [sorted(v.widths) for v in variants],
        "cache_slots": [v.capacity or None for v in variants],
        "parts": list(dict.fromkeys(beside)),
        "size": sum(entry.size for entry in manifest.files.values()),
        "left_out": [file.stem for file in lacking],
        "seconds": seconds,
    }


def _show(facts: dict[str, Any], manifest: Manifest) -> None:
    """The same for people."""
    size, count = human_size(facts["size"]), facts["parameters"]
    parameters = f"{human_count(count)} parameters, " if count else ""  # unknown of other exports
    click.echo(f"{facts['bundle']}: {facts['family']}, {parameters}{size}")
    peak = machine.peak_memory()
    memory = "" if peak is None else f", {human_size(peak)} of memory at most"
    variants = manifest.roles["target"]
    names = ", ".join(f"{v.target_format} {v.flavour} {v.weight_format}" for v in variants)
    click.echo(f"{names}, in {facts['seconds']:.1f} s{memory}")
    if facts["parts"]:
        click.echo(f"with {', '.join(facts['parts'])}")
    if facts["left_out"]:
        formats = ", ".join(dict.fromkeys(v.target_format for v in variants))
        click.echo(
            f"without {', '.join(facts['left_out'])}, which come with quickdraft for this "
            f"checkpoint and cannot be added to {formats} here"
        )


def _checkpoint(source: str, bars: Bars, offline: bool) -> tuple[Path, Provenance | None]:
    """The checkpoint of a model, and where it is from if that is not said by itself."""
    from quickdraft.models.resolve import find_origin

    path = Path(source)
    if path.exists():
        return path, None
    origin = find_origin(source, progress=bars, offline=offline)
    assert origin is not None  # only what exists is a bundle  # noqa: S101
    checkpoint = origin.fetch()
    return checkpoint, origin.provenance(checkpoint) if origin.provenance else None
