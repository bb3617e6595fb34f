"""`quickdraft train predictor`: fit what writes a model's KV cache without running the model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from quickdraft.commands.interrupt import stop_on_interrupt
from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, print_json
from quickdraft.commands.progress import Bars
from quickdraft.commands.train_status import StatusLine, duration, require_training
from quickdraft.errors import OptionError


def _keep(ctx: click.Context, param: click.Parameter, value: str) -> float | tuple[int, ...]:
    """A click callback: `0.25`, or layers such as `0,1,2,6,11`."""
    try:
        if "," in value:
            return tuple(int(part) for part in value.split(","))
        return float(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a share such as 0.25 nor layers such as 0,1,2,6"
        ) from None


@click.command("train predictor")
@click.argument("model")
@click.option(
    "--data", required=True, multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Text: .txt, .jsonl (text, prompt, answer), answers of `train generate`; or .gz of "
    "these. Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="File of the predictor (.safetensors).",
)  # fmt: skip
@click.option(
    "--keep", default="0.25", show_default=True, callback=_keep, metavar="SHARE",
    help="Layers of the auxiliary: 0.25, 0.5 or 0.75 of the model's, or their numbers.",
)  # fmt: skip
@click.option(
    "--layout", default="graded", show_default=True,
    type=click.Choice(("graded", "first", "spread")),
    help="Which layers a share is: the first ones, some at regular intervals, or both.",
)  # fmt: skip
@click.option(
    "--features", default="hidden", show_default=True, type=click.Choice(("hidden", "kv")),
    help="What keys and values are predicted from: the stream, or keys and values.",
)  # fmt: skip
@click.option(
    "--method", default="ridge", show_default=True,
    type=click.Choice(("ridge", "ridge-distil", "distil", "none")),
    help="A closed-form fit; with training by gradient after it; that alone; neither.",
)  # fmt: skip
@click.option("--tokens", default=100_000, show_default=True, help="Of text to fit to.")
@click.option("--length", default=512, show_default=True, help="Tokens of a row of text.")
@click.option("--held-out", default=32, show_default=True, help="Rows to test on.")
@click.option(
    "--measure", "measured", default=16, show_default=True, metavar="N",
    help="Held-out rows after which continuations are measured.",
)  # fmt: skip
@click.option(
    "--first", "exact_first", default=4, show_default=True, metavar="N",
    help="First tokens of a prompt that the model shall read itself.",
)  # fmt: skip
@click.option("--minutes", type=float, help="Budget of training by gradient.")
@click.option("--steps", type=int, help="The same in steps.")
@click.option("--rate", default=2e-4, show_default=True, help="Learning rate of that.")
@click.option(
    "--train-layers", is_flag=True, help="Train the auxiliary's layers, too; the file gets larger."
)
@click.option("--name", default="", help="Of the parts in the bundle.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the text.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@common_options
def predictor(
    model: str, data: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Fit a predictor of the KV cache.

    MODEL is what a bundle is made from: a .gguf file, a checkpoint folder, or a name. `quickdraft
    export MODEL --trained FILE` then makes a bundle that can start early. Ctrl-C, or whatever else
    ends this, loses a few minutes at most: the same command goes on where it stopped.
    """
    require_training()
    if out.exists() and not overwrite:
        raise OptionError(f"{out} is already there; --overwrite replaces it")
    from quickdraft.drafters.train.predictor_file import PredictorOptions, make_predictor
    from quickdraft.export.pipeline import read_checkpoint
    from quickdraft.models.resolve import find_checkpoint

    with Bars(quiet=as_json, transient=True) as bars:
        source = find_checkpoint(model, progress=bars)
    if source is None:
        raise OptionError(f"{model} is a bundle; name the checkpoint that it was made from")
    with StatusLine(quiet=as_json) as status, stop_on_interrupt() as token:
        started = time.monotonic()

        def tell(stage: str, done: int, total: int) -> None:
            spent = time.monotonic() - started
            status(f"{stage}: {100 * done / max(total, 1):.0f} %, {duration(spent)}")

        made = make_predictor(
            read_checkpoint(source),
            data,
            out,
            PredictorOptions(**options),
            progress=tell,
            stop=lambda: token.cancelled,
        )
    if as_json:
        print_json({"file": str(out), "size": out.stat().st_size, "card": made.card})
        return
    _show(out, made.card)


def _show(out: Path, card: Any) -> None:
    found = card["continuations"]
    click.echo(f"{out}: {human_size(out.stat().st_size)}, {card['recipe']}")
    click.echo(f"{card['text']['tokens']} tokens in {duration(card['seconds'])}")
    click.echo(
        f"Text after {found['prefix']} tokens, in nats a token ({found['tokens']} tokens of text "
        "that was not fitted to):"
    )
    for name, what in (
        ("exact", "the model after its own cache"),
        ("predicted", "the model after the predicted cache"),
        ("without", "the model without those tokens"),
        ("auxiliary", "the auxiliary alone"),
        ("skipping", "the model without the layers left out"),
    ):
        click.echo(f"  {found[name]:8.4f}  {what}")
    click.echo(f"  {100 * found['agreement']:7.1f}%  of tokens the same after both caches")
