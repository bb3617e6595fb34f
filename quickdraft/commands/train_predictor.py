"""`quickdraft train predictor`: fit what writes a model's KV cache without running the model."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.interrupt import stop_on_interrupt
from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, print_json
from quickdraft.commands.progress import Bars
from quickdraft.commands.train_status import StatusLine, duration, require_training
from quickdraft.errors import Cancelled, OptionError

if TYPE_CHECKING:
    from quickdraft.drafters.train.predictor_file import Made
    from quickdraft.export.checkpoints.base import Checkpoint


def _keep(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> float | tuple[int, ...] | None:
    """A click callback: `0.25`, or layers such as `0,1,2,6,11`."""
    if value is None:
        return None
    try:
        if "," in value:
            return tuple(int(part) for part in value.split(","))
        return float(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a share such as 0.25 nor layers such as 0,1,2,6"
        ) from None


def _losses(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, float]:
    """A click callback: `NAME=WEIGHT`, weights by name."""
    found: dict[str, float] = {}
    for value in values:
        name, _, text = value.partition("=")
        try:
            weight = float(text)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=WEIGHT, such as cache=0.5") from None
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = weight
    return found


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
    "--keep", callback=_keep, metavar="SHARE",
    help="Layers of the auxiliary: 0.25, 0.5 or 0.75 of the model's, or their numbers.  "
    "[default: 0.25]",
)  # fmt: skip
@click.option(
    "--layout", type=click.Choice(("graded", "first", "spread")),
    help="Which layers a share is: the first ones, some at regular intervals, or both.  "
    "[default: graded]",
)  # fmt: skip
@click.option(
    "--sibling", metavar="MODEL",
    help="Take a smaller model with the same tokenizer as the auxiliary, in place of layers.",
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
@click.option(
    "--budget", "minutes", type=float, metavar="MINUTES",
    help="Of training by gradient, interruptions left out.",
)  # fmt: skip
@click.option("--steps", type=int, help="The same in steps.")
@click.option("--rate", type=float, help="Learning rate of that.  [default: 0.0002]")
@click.option(
    "--loss", "losses", multiple=True, metavar="NAME=WEIGHT", callback=_losses,
    help="What answer, auxiliary, cache or divergence counts in it.  [default: 1]",
)  # fmt: skip
@click.option(
    "--train-layers", is_flag=True, help="Train the auxiliary's layers, too; the file gets larger."
)
@click.option("--save-minutes", type=float, help="Keep the state of it this often.  [default: 2]")
@click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True
)
@click.option(
    "--for-drafting", "whole", is_flag=True,
    help="Keep all keys and values of the auxiliary, so that it drafts on without reading the "
    "prompt again; predicting takes some percent longer.",
)  # fmt: skip
@click.option("--name", default="", help="Of the parts in the bundle.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the text.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@common_options
def predictor(
    model: str,
    data: tuple[Path, ...],
    out: Path,
    sibling: str | None,
    overwrite: bool,
    offline: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fit a predictor of the KV cache.

    MODEL is what a bundle is made from: a .gguf file, a checkpoint folder, or a name. `quickdraft
    export MODEL --trained OUT` then makes a bundle that can start early. Beside OUT are its card
    (.md), OUT.json, with what was measured, and, after training, OUT.png with matplotlib. Ctrl-C,
    or whatever else ends this, loses a few minutes at most: the same command goes on where it
    stopped. Several GPUs: `accelerate launch -m quickdraft train predictor`.
    """
    require_training()
    from quickdraft.drafters.train.loop import is_first_process, pick_device
    from quickdraft.drafters.train.predictor_file import make_predictor, work_folder
    from quickdraft.drafters.train.predictor_options import PredictorOptions, check_options

    chosen = PredictorOptions(**options)
    check_options(chosen, sibling is not None)  # bad values fail before anything is fetched
    if out.exists() and not work_folder(out).exists() and not overwrite:
        raise OptionError(f"{out} is already there; --overwrite replaces it")
    pick_device(chosen.device)
    is_first = is_first_process()
    checkpoint = _read(model, offline, as_json)
    auxiliary = None if sibling is None else _read(sibling, offline, as_json)
    quiet = as_json or not is_first
    with StatusLine(quiet=quiet) as status, stop_on_interrupt() as token:
        started = time.monotonic()

        def tell(stage: str, done: int, total: int) -> None:
            spent = time.monotonic() - started
            status(f"{stage}: {100 * done / max(total, 1):.0f} %, {duration(spent)}")

        try:
            made = make_predictor(
                checkpoint,
                data,
                out,
                chosen,
                sibling=auxiliary,
                progress=tell,
                stop=lambda: token.cancelled,
            )
        except Cancelled:
            if is_first:
                raise
            raise click.exceptions.Exit(130) from None  # the first process says why
    if made.file is None:
        return
    _report(made)
    if as_json:
        print_json({"file": str(out), "size": out.stat().st_size, "card": made.card})
    else:
        _show(out, made.card)


def _read(model: str, offline: bool, quiet: bool) -> Checkpoint:
    """The checkpoint of a model."""
    from quickdraft.export.pipeline import read_checkpoint
    from quickdraft.models.resolve import find_checkpoint

    with Bars(quiet=quiet, transient=True) as bars:
        source = find_checkpoint(model, progress=bars, offline=offline)
    if source is None:
        raise OptionError(f"{model} is a bundle; name the checkpoint that it was made from")
    return read_checkpoint(source)


def _report(made: Made) -> None:
    """Write what was measured beside the file."""
    from quickdraft.drafters.train.report import licence_of, write_card, write_report

    assert made.file is not None  # asked only then  # noqa: S101
    is_drawn = bool(made.history.training) and find_spec("matplotlib") is not None
    plot = made.file.with_name(f"{made.file.name}.png") if is_drawn else None
    facts = {"title": f"predictor of {made.card['model']}", **made.card}
    write_report(made.file.with_name(f"{made.file.name}.json"), made.history, facts, plot)
    card, found = made.card, made.card["continuations"]
    words = [licence_of(card["model"], card["licence"])]
    if "sibling" in card:
        words.append(licence_of(card["sibling"], card["sibling_licence"]))
    figures = (f"{name} {found[name]:.3f}" for name in ("exact", "predicted", "without"))
    page = {
        "Data": f"{card['text']['tokens']} tokens of text (sha256 {card['text']['sha256'][:16]})",
        "Recipe": card["recipe"],
        "Time": f"{duration(card['seconds'])} on {card['device']}",
        "Quality": f"nats a token after {found['prefix']} tokens: {', '.join(figures)}",
        "Licence": "; ".join(words),
    }
    write_card(made.file, f"A predictor for {card['model']}", page)


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
