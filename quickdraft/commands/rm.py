"""`quickdraft rm`: make room in the cache."""

from __future__ import annotations

import sys

import click

from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, is_terminal, print_json
from quickdraft.errors import OptionError
from quickdraft.models import store


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common_options
def rm(models: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove models from the cache.

    Checkpoints and bundles outside the cache are never touched.
    """
    # All names are looked up before anything goes.
    found = {entry.name: entry for model in models for entry in store.find(model)}
    size = sum(entry.size for entry in found.values())
    if not yes:
        if not is_terminal(sys.stdin):
            raise OptionError("there is no terminal to ask at; give --yes to remove without asking")
        for entry in found.values():
            click.echo(f"{entry.path} ({human_size(entry.size)})", err=True)
        if not click.confirm(f"Remove {human_size(size)}?", err=True):
            raise click.exceptions.Exit(1)
    for name in found:
        store.remove(name)
    if as_json:
        print_json({"removed": list(found), "freed": size})
    else:
        click.echo(f"removed {', '.join(found)}: {human_size(size)} are free again")
