"""`quickdraft train predictor`: fit what writes a model's KV cache without running the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quickdraft.commands.options import common_options


@click.command("train predictor")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="File of the trained part."
)
@common_options
def predictor(source: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Fit a predictor of the KV cache.

    SOURCE is a .gguf file or a Hugging Face checkpoint folder.
    """
    raise NotImplementedError
