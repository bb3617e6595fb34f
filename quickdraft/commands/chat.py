"""`quickdraft chat`: a conversation in the terminal, or one turn per line of a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.lines import LineReader, history
from quickdraft.commands.options import (
    check_text,
    common_options,
    generation_options,
    loading_options,
)
from quickdraft.commands.output import dim, report_failure
from quickdraft.errors import ContextOverflow, OptionError, QuickdraftError

if TYPE_CHECKING:
    from quickdraft.commands.dialogue import Dialogue


@click.command(epilog="In the chat, /help lists what else can be typed.")
@click.argument("model")
@click.option("--system", help="System message.")
@click.option("-v", "--verbose", is_flag=True, help="Print times and rates after each answer.")
@click.option("--explain", is_flag=True, help="Print why each step drafted what it did.")
@generation_options
@loading_options()
@common_options
def chat(
    model: str,
    system: str | None,
    verbose: bool,
    explain: bool,
    generation: dict[str, Any],
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Talk with a model, turn by turn.

    Ctrl-C stops an answer; twice, or Ctrl-D, leaves. Without a terminal, every line of standard
    input is a turn, and --json prints one object per turn.
    """
    import platformdirs

    from quickdraft.commands.dialogue import Dialogue, Reports
    from quickdraft.commands.progress import open_model
    from quickdraft.runtime.generation import GenerationConfig

    if generation.get("logprobs") and not as_json:
        raise OptionError("--logprobs is reported in JSON only; add --json")
    GenerationConfig.from_dict(generation)  # bad values fail before anything is fetched
    if system is not None:
        check_text("system message", system)
    with open_model(model, **loading) as loaded:
        reports = Reports(as_json, verbose, explain)
        dialogue = Dialogue(loaded, system, generation, reports)
        reader = LineReader()
        if reader.interactive:
            click.echo(dim(f"{loaded.name}: /help for help, /bye to leave"), err=True)
        with history(platformdirs.user_state_path("quickdraft") / "chat_history"):
            code = _talk(dialogue, reader, as_json)
    raise click.exceptions.Exit(code)


def _talk(dialogue: Dialogue, reader: LineReader, as_json: bool) -> int:
    """Take turns until there are none; the exit code."""
    failure = 0
    while True:
        try:
            text, literal = reader.turn()
            if text == "/bye" and not literal:
                return failure
            if text.startswith("/") and not literal:
                dialogue.command(text)
            elif text:
                dialogue.answer(text)
        except EOFError:
            if reader.interactive:
                click.echo(err=True)
            return failure
        except QuickdraftError as error:
            hint = "; /clear starts anew" if isinstance(error, ContextOverflow) else ""
            report_failure(type(error).__name__, f"{error}{hint}", as_json)
            # A person has seen it and goes on; a script only has the exit code.
            failure = 0 if reader.interactive else error.exit_code
