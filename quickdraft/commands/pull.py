"""`quickdraft pull`: fetch a model and export it, so that its first answer comes at once."""

from __future__ import annotations

import time
from typing import Any

import click

from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import human_count, human_size, print_json
from quickdraft.commands.progress import Bars


@click.command()
@click.argument("model")
@loading_options("weights", "offline")
@common_options
def pull(model: str, loading: dict[str, Any], as_json: bool) -> None:
    """Fetch a model and export it to the cache.

    Nothing is done twice: what is there and sound is kept. A name on the hub is looked up anew.
    """
    from quickdraft.models.resolve import resolve

    started = time.perf_counter()
    with Bars(quiet=as_json) as bars:
        bundle = resolve(model, progress=bars, refresh=not loading.get("offline", False), **loading)
    seconds = time.perf_counter() - started
    spec = bundle.manifest.model
    size = sum(entry.size for entry in bundle.manifest.files.values())
    if as_json:
        print_json(
            {
                "model": model,
                "bundle": str(bundle.folder),
                "family": spec.family,
                "parameters": spec.num_parameters,
                "weights": [v.weight_format for v in bundle.manifest.roles["target"]],
                "size": size,
                "seconds": round(seconds, 3),
            }
        )
        return
    parameters = human_count(spec.num_parameters)
    click.echo(f"{model}: {spec.family}, {parameters} parameters, {human_size(size)}")
    click.echo(f"{bundle.folder}, in {seconds:.1f} s")
