"""`quickdraft train generate`: the target answers prompts, for drafts to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import print_json
from quickdraft.commands.progress import open_model
from quickdraft.commands.train_status import StatusLine, duration
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.answering import Answered, AnswerOptions, Prompt
    from quickdraft.runtime.model import Model


def _temperatures(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """A click callback: `0,0.6` as numbers."""
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,0.8") from None


@click.command("train generate")
@click.argument("model")
@click.option(
    "--prompts", required=True, multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="JSON lines with a prompt, or a file of sound, each (.jsonl or .jsonl.gz). Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="File of answers; one that is there is continued.",
)  # fmt: skip
@click.option("-n", "--max-new-tokens", default=256, show_default=True, help="Of an answer.")
@click.option(
    "--temperature", "temperatures", default="0,0.6,0.8,1", show_default=True,
    callback=_temperatures, metavar="T,...", help="Each prompt draws one of these.",
)  # fmt: skip
@click.option(
    "--max-prompt-tokens", default=1024, show_default=True, help="Leave longer prompts out."
)
@click.option("--limit", type=click.IntRange(min=1), help="Ask only so many prompts.")
@click.option(
    "--budget", "minutes", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES",
    help="Begin no answer after that.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--batch", default=1, show_default=True, metavar="N",
    help="Answer so many prompts at once, without drafts; for decoders on the hot path.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Continue prompts as they are, without chat template.")
@loading_options()
@common_options
def generate(
    model: str,
    prompts: tuple[Path, ...],
    out: Path,
    limit: int | None,
    minutes: float | None,
    batch: int,
    loading: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Let a model answer prompts, for drafts to learn from.

    One line of OUT is one answer. Prompts come in an order drawn at random; which answer each gets
    depends on the seed and its id alone. Ctrl-C, or whatever else ends this, loses at most the
    answers that run: the same command goes on where it stopped.
    """
    from quickdraft.runtime.answering import AnswerOptions, read_prompts, shuffled, windows_of

    chosen = AnswerOptions(**options)
    asked = shuffled(read_prompts(prompts), chosen.seed)[:limit]
    loading.setdefault("store", False)  # nobody wants these drafted in a conversation
    if batch != 1:
        _check_batch(batch, loading)
        loading["drafter"] = "none"
    with open_model(model, **loading) as loaded:
        asked = shuffled(windows_of(asked, loaded), chosen.seed)
        if chosen.max_new_tokens >= loaded.spec.context_length:
            raise OptionError(
                f"max_new_tokens is {chosen.max_new_tokens} and the model holds "
                f"{loaded.spec.context_length} tokens; lower it"
            )
        told, interrupted = _answer(loaded, asked, chosen, out, minutes, batch, as_json)
    if as_json:
        print_json(_as_object(told, out, interrupted))
    else:
        click.echo(_summary(told, out, interrupted))
    if interrupted:
        raise click.exceptions.Exit(130)


def _check_batch(batch: int, loading: dict[str, Any]) -> None:
    """Refuse what says nothing where several prompts are answered at once."""
    for option, plain in (("drafter", "none"), ("prefill", "exact"), ("drafter_options", None)):
        if loading.get(option, plain) != plain:
            raise OptionError(
                f"--batch is {batch}, and several prompts at once are decoded plainly after an "
                f"exact prefill; leave out --{option.removesuffix('s').replace('_', '-')} or "
                "--batch"
            )


def _answer(
    model: Model,
    asked: list[Prompt],
    options: AnswerOptions,
    out: Path,
    minutes: float | None,
    batch: int,
    quiet: bool,
) -> tuple[Answered, bool]:
    """Answer what is left, and whether that was interrupted."""
    from quickdraft.answers import AnswersWriter
    from quickdraft.commands.interrupt import stop_on_interrupt
    from quickdraft.runtime.answering import answer_prompts

    header = options.header(model)
    with (
        AnswersWriter(out, header) as writer,
        StatusLine(quiet) as status,
        stop_on_interrupt() as cancel,
    ):
        told = answer_prompts(
            model,
            asked,
            options,
            writer,
            minutes=minutes,
            cancel=cancel,
            batch=batch,
            progress=lambda now: status(_line(now, minutes)),
        )
        return told, cancel.cancelled


def _line(told: Answered, minutes: float | None) -> str:
    """Where it is, how fast, and how long it will take."""
    each = told.seconds / told.answers
    left = each * (told.total - told.done - told.skipped)
    if minutes is not None:
        left = min(left, max(60 * minutes - told.seconds, 0.0))
    return (
        f"{told.done} of {told.total} answers, {told.tokens / told.seconds:.1f} tokens/s, "
        f"{told.tokens / told.steps:.2f} tokens per step, {duration(left)} left"
    )


def _summary(told: Answered, out: Path, interrupted: bool) -> str:
    """What this run did, and what is left."""
    rate = f", {told.tokens / told.seconds:.1f} tokens/s" if told.tokens else ""
    skipped = f"; {told.skipped} prompts are too long or refused" if told.skipped else ""
    lines = [
        f"{told.answers} answers of {told.tokens} tokens in {duration(told.seconds)}{rate}",
        f"{out} holds answers to {told.done} of {told.total} prompts{skipped}",
    ]
    if not told.complete:
        why = "Interrupted" if interrupted else "Out of time"
        lines.append(f"{why}: the same command goes on from here.")
    return "\n".join(lines)


def _as_object(told: Answered, out: Path, interrupted: bool) -> dict[str, Any]:
    """The same as one object."""
    return {
        "file": str(out),
        "complete": told.complete,
        "interrupted": interrupted,
        **vars(told),
    }
