"""What happens to a turn of a chat: an answer, or a command that starts with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import click

from quickdraft.commands.explain import explain as steps_table
from quickdraft.commands.interrupt import stop_on_interrupt
from quickdraft.commands.output import dim, facts, human_count, is_terminal, print_json
from quickdraft.commands.run import as_object, show_stream, statistics
from quickdraft.errors import InputError, OptionError, TemplateError
from quickdraft.runtime.model import Model, Result

HELP = '''\
/set NAME VALUE   change an option of answers, or the system message (/set system TEXT)
/show [WHAT]      config, stats, messages or model; all of them without a name
/clear            forget the conversation
/help             this list
/bye              leave (as Ctrl-D does)
"""               open a turn of several lines, and close it
Ctrl-C stops an answer.'''


@dataclass(frozen=True)
class Reports:
    """What is told of an answer: an object instead of its text, times and rates, its steps."""

    as_json: bool = False
    verbose: bool = False
    explain: bool = False


class Dialogue:
    """A conversation with its options. Every method prints what it has to say."""

    def __init__(
        self, model: Model, system: str | None, generation: Mapping[str, Any], reports: Reports
    ) -> None:
        if model.chat_template is None:
            raise TemplateError(
                f"{model.name} has no chat template, so it cannot chat; "
                "quickdraft run continues a text"
            )
        self._model = model
        self._config = model.generation_config.replace(**generation)
        self._config.check_vocabulary(model.spec.vocab_size)
        self._conversation = model.conversation(system)
        self._reports = reports
        self._last: Result | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/show": self._show,
            "/clear": self._clear,
            "/help": self._help,
        }

    def answer(self, text: str) -> None:
        """Ask the model and print its answer as it comes. Ctrl-C ends the answer only.

        Raises:
            QuickdraftError: the turn failed; the conversation is as before.
        """
        with stop_on_interrupt() as cancel:
            chunks = self._conversation.stream(text, self._config, cancel=cancel)
            self._last = show_stream(chunks, quiet=self._reports.as_json)
        if self._reports.as_json:
            print_json(as_object(self._last, self._reports.explain))
        elif self._last.finish_reason == "cancelled":
            click.echo(dim("(stopped)"), err=True)
        elif self._last.finish_reason == "length" and is_terminal(sys.stderr):
            limit = self._config.max_new_tokens
            reason = f"max_new_tokens is {limit}; /set max_new_tokens N changes that"
            if self._last.timings.predicted_n < limit:
                reason = "the context is full; /clear starts anew"
            click.echo(dim(f"(cut off: {reason})"), err=True)
        if self._reports.explain and not self._reports.as_json:
            click.echo(dim(steps_table(self._last)), err=True)
        if self._reports.verbose:
            click.echo(dim(statistics(self._last)), err=True)

    def command(self, line: str) -> None:
        """Carry out a slash command.

        Raises:
            InputError: there is no such command, or its words make no sense.
        """
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            near = get_close_matches(name, [*self._commands, "/bye"], n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise InputError(
                f"there is no command {name}; {hint} "
                '(to say this to the model, put it between three quotes: """)'
            )
        self._commands[name](rest.strip())

    def _help(self, rest: str) -> None:
        click.echo(HELP, err=True)

    def _clear(self, rest: str) -> None:
        self._conversation.clear()
        click.echo(dim("the conversation starts anew"), err=True)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name or not value.strip():
            raise OptionError("/set takes a name and a value, such as: /set temperature 0.7")
        if name == "system":
            self._conversation = self._model.conversation(value.strip())
            self._clear("")
            return
        config = self._config.replace(**{name: _value(value.strip())})
        config.check_vocabulary(self._model.spec.vocab_size)
        self._config = config

    def _show(self, rest: str) -> None:
        views: dict[str, Callable[[], Any]] = {
            "config": self._config.to_dict,
            "stats": lambda: self._last.timings.to_dict() if self._last else {},
            "messages": lambda: list(self._conversation.messages),
            "model": self._facts,
        }
        if rest and rest not in views:
            raise OptionError(f"/show knows {', '.join(views)}; not {rest!r}")
        for name in [rest] if rest else views:
            content = views[name]()
            if self._reports.as_json:
                print_json({name: content})
            elif isinstance(content, list):
                for message in content:
                    click.echo(f"{message['role']}: {message['content']}")
            else:
                click.echo(facts(content) if content else f"no {name} yet")

    def _facts(self) -> dict[str, Any]:
        model = self._model
        return {
            "name": model.name,
            "family": model.spec.family,
            "parameters": human_count(model.spec.num_parameters),
            "context": model.spec.context_length,
            "backend": f"{model.backend.name}, {model.backend.flavour}",
            "guarantee": model.backend.guarantee,
            "drafter": model.drafter,
            "predictors": ", ".join(model.prediction.entries) or "none",
        }


def _value(text: str) -> Any:
    """What was typed, as JSON where it is JSON: 0.7, true, ["a", "b"]; else as it stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
