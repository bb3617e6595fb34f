"""`quickdraft verify`: are drafted answers the plain ones, here, with this model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import print_json, table
from quickdraft.commands.progress import Bars, open_model
from quickdraft.errors import InputError, OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.model import Model
    from quickdraft.runtime.verification import Prompt
    from quickdraft.runtime.verification_prompts import Text
    from quickdraft.runtime.verification_report import Difference, DrafterReport, Verification

AUTO = "auto"
PROMPTS = 10
SHOWN = 5
"""Differences printed per drafter; --json has all of them."""

PROMISES = {
    "bit_identical": "the same tokens and the same bits as plain decoding",
    "same_distribution": "plain decoding up to rounding: a near-tie may fall the other way",
    "lossy": "nothing about single tokens: differences are shown, not held against it",
}


@click.command()
@click.argument("model")
@click.option(
    "--prompts", "count", type=int, metavar="N", help="Built-in prompts to use.  [default: 10]"
)
@click.option(
    "--text", "texts", multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Use this text as a prompt instead. Repeatable.",
)  # fmt: skip
@click.option(
    "--sound", "sounds", multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Ask a speech model about the first 30 s of this file. Repeatable.",
)  # fmt: skip
@click.option("--tokens", default=64, show_default=True, type=int, help="Most tokens of an answer.")
@click.option(
    "--draws", default=2000, show_default=True, type=int,
    help="Answers drawn per drafter from a tiny model whose law is known.",
)  # fmt: skip
@click.option("--draft-model", metavar="NAME", help="Also verify small_model, with this bundle.")
@loading_options("device", "backend", "weights", "threads", "kv_cache", "offline")
@common_options
def verify(
    model: str,
    count: int | None,
    texts: tuple[Path, ...],
    sounds: tuple[Path, ...],
    tokens: int,
    draws: int,
    draft_model: str | None,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Compare drafted answers with plain ones.

    Every drafter by itself, and all of them as they are by default: greedy answers, tokens and
    bits; sampled answers with a seed; and how often every beginning of an answer comes from a tiny
    model. Exits with 1 if something is not as promised.
    """
    from quickdraft.runtime.verification import Prompt, VerificationPlan, run_verification

    if sounds and (texts or count is not None):
        raise OptionError("--sound is for speech models, --text and --prompts for others; give one")
    if texts and count is not None:
        raise OptionError("--prompts counts built-in prompts, and --text replaces them; give one")
    plan = VerificationPlan(tokens, draws, draft_model)
    asked = _read(texts) if texts else _built_in(PROMPTS if count is None else count)
    with (
        open_model(model, drafter=AUTO, store=False, **loading) as loaded,
        Bars(quiet=as_json, transient=True) as bars,
    ):
        reads = loaded.spec.source
        if reads is not None and reads.width and not sounds:
            raise InputError(
                f"{loaded.name} reads sound, not text: give it files with --sound FILE"
            )
        if sounds:
            prompts = _heard(loaded, sounds)
        else:
            prompts = [Prompt(name, _tokens(loaded, text)) for name, text in asked]
        found = run_verification(loaded, prompts, plan, bars)
        shown = None if as_json else render(found, loaded)
    if shown is None:
        print_json(found.to_dict())
    else:
        click.echo(shown)
    if not found.holds:
        raise click.exceptions.Exit(1)


def _heard(model: Model, files: tuple[Path, ...]) -> list[Prompt]:
    """The first window of each file."""
    from quickdraft.runtime.audio.sound import open_sound
    from quickdraft.runtime.audio.transcribe import Transcriber
    from quickdraft.runtime.verification import Prompt

    transcriber, found = Transcriber(model, timestamps=False), []
    for file in files:
        with open_sound(file) as sound:
            source, opening = transcriber.question(sound)
        found.append(Prompt(file.name, source, opening))
    return found


def _built_in(count: int) -> list[tuple[str, Text]]:
    from quickdraft.runtime.verification_prompts import PROMPTS as BUILT_IN

    if not 1 <= count <= len(BUILT_IN):
        raise OptionError(
            f"prompts is {count}; it must be between 1 and {len(BUILT_IN)}, or give your own "
            "with --text"
        )
    return list(BUILT_IN[:count])


def _read(files: tuple[Path, ...]) -> list[tuple[str, Text]]:
    texts: list[tuple[str, Text]] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"--text: {file} is not UTF-8") from None
        if not text:
            raise InputError(f"--text: {file} is empty")
        texts.append((file.name, text))
    return texts


def _tokens(model: Model, text: Text) -> list[int]:
    """Token ids of a prompt. Without a template, the messages of a chat are lines."""
    if isinstance(text, str):
        return model.tokenize(text)
    if model.chat_template is None:
        return model.tokenize("\n".join(content for _, content in text) + "\n")
    return model.tokenize_chat([{"role": role, "content": content} for role, content in text])


def render(found: Verification, model: Model) -> str:
    """What was found, for people: the promise, a table, and what differs."""
    isa = f" on {found.isa}" if found.isa else ""
    lines = [
        f"{found.model}: {found.backend}{isa}, {found.guarantee}",
        f"promised: {PROMISES[found.guarantee]}",
        f"compared: {found.prompts} prompts, up to {found.tokens} tokens, greedy and sampled",
        "",
        table(
            [
                ("drafter", "tokens", "bits", "tokens/step", "accepted", "law", ""),
                *(_row(report) for report in found.drafters.values()),
                *((name, *["-"] * 5, f"not tested: {why}") for name, why in found.untested.items()),
            ],
            right=frozenset({3, 4, 5}),
        ),
        "",
    ]
    for report in found.drafters.values():
        lines += _complaints(report, model)
    return "\n".join([*lines, _verdict(found)])


def _row(report: DrafterReport) -> tuple[str, ...]:
    step, accepted = report.tokens_per_step, report.acceptance
    return (
        report.name,
        "identical" if report.identical else "differ",
        "identical" if report.bits_identical else "differ",
        "" if step is None else f"{step:.2f}",
        "" if accepted is None else f"{accepted:.1%}",
        "" if not report.laws else f"{max(law.ratio for law in report.laws):.2f}",
        "" if report.holds else "FAILED",
    )


def _complaints(report: DrafterReport, model: Model) -> list[str]:
    lines = [_describe(d, model) for d in report.differences[:SHOWN]]
    if len(report.differences) > SHOWN:
        lines.append(f"{report.name}: {len(report.differences) - SHOWN} more; see --json")
    if not report.verified:
        lines.append(f"{report.name}: nothing was drafted for these prompts, so nothing was tested")
    for law in report.laws:
        if not law.holds:
            lines.append(
                f"{report.name}, {law.what}: {law.draws} draws are {law.ratio:.2f} times as far "
                f"from their law as exact ones on average; these stay below {law.limit:.2f}"
            )
        elif not law.accepted:
            lines.append(f"{report.name}, {law.what}: no draft was accepted, so nothing was tested")
    return lines


def _describe(d: Difference, model: Model) -> str:
    """One line on where a drafted answer leaves the plain one."""

    def token(number: int | None) -> str:
        if number is None:
            return "the end"
        return f"{number} {model.detokenize([number], skip_special=False)!r}"

    where = f"{d.drafter}, prompt {d.prompt!r}, {'sampled' if d.sampled else 'greedy'}"
    if d.same_tokens:
        what = f"the bits of the most likely tokens differ (by {d.deviation:.2g} at most)"
    else:
        logits = "the same logits" if d.same_logits else "other logits"
        what = f"plain has {token(d.plain)}, drafted {token(d.drafted)}, from {logits}"
    allowed = "; within what is promised" if d.allowed else ""
    return f"{where}, token {d.position}: {what}{allowed}"


def _verdict(found: Verification) -> str:
    failed = [name for name, report in found.drafters.items() if not report.holds]
    if failed:
        return f"FAILED: {', '.join(failed)}"
    return "Everything is as promised."
