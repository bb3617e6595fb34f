"""`quickdraft list`: what is in the cache."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import click

from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, print_json, table
from quickdraft.models import store


@click.command("list")
@common_options
def list_models(as_json: bool) -> None:
    """List the models of the cache."""
    entries = store.entries()
    if as_json:
        print_json([{**dataclasses.asdict(e), "path": str(e.path)} for e in entries])
        return
    if not entries:
        click.echo(f"{store.cache_folder()} holds no models; fetch one with: quickdraft pull MODEL")
        return
    rows = [("MODEL", "KIND", "WEIGHTS", "FORMAT", "SIZE", "MODIFIED")]
    for entry in entries:
        day = datetime.fromtimestamp(entry.modified, UTC).astimezone()
        rows.append(
            (
                entry.model,
                entry.kind,
                entry.weights or "",
                entry.formats or "",
                human_size(entry.size),
                day.strftime("%Y-%m-%d %H:%M"),
            )
        )
    click.echo(table(rows, right=frozenset({4})))
