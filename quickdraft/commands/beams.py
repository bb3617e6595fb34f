"""`quickdraft run` with beams: its options, and how the best answers are printed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import Command, check_text
from quickdraft.commands.output import write
from quickdraft.errors import InputError, OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.backends.base import CancelToken
    from quickdraft.runtime.languages import Translation
    from quickdraft.runtime.model import Model, Result

    Asked = str | list[dict[str, str]] | Translation

MAX_ALLOWED_BYTES = 64 << 20

# Field of GenerationConfig, type, metavar, help.
_OPTIONS: tuple[tuple[str, Any, str | None, str], ...] = (
    ("num_beams", int, None, "Search for the best answers with so many beams."),
    ("num_beam_groups", int, None, "Groups of beams that are to differ from each other."),
    ("diversity_penalty", float, None, "What a token costs that earlier groups chose."),
    ("length_penalty", float, None, "More than 0 favours longer answers of a search."),
    ("early_stopping", str, "true|false|never", "When a search ends."),
    ("num_return_sequences", int, None, "Print so many of the best answers."),
)
_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def beam_options(command: Command) -> Command:
    """Options of a search: numbers go into the parameter `generation`, what an answer must be into
    `constraint`. To be put above `generation_options`."""

    @functools.wraps(command)
    def gather(*args: Any, generation: dict[str, Any], **params: Any) -> Any:
        given = {name: params.pop(name) for name, *_ in _OPTIONS}
        if given["early_stopping"] is not None:
            given["early_stopping"] = _stopping(given["early_stopping"])
        found = {name: value for name, value in given.items() if value is not None}
        names = {name: params.pop(name) for name in ("answer_prefix", "allowed")}
        constraint = {name: value for name, value in names.items() if value is not None}
        return command(*args, generation=generation | found, constraint=constraint, **params)

    wrapped: Command = gather
    wrapped = click.option(
        "--allowed",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Give one of the answers in FILE, one a line.",
    )(wrapped)
    wrapped = click.option("--answer-prefix", metavar="TEXT", help="Begin the answer so.")(wrapped)
    for name, kind, metavar, text in reversed(_OPTIONS):
        flag = f"--{name.replace('_', '-')}"
        wrapped = click.option(flag, name, type=kind, metavar=metavar, help=text)(wrapped)
    return wrapped


def _stopping(value: str) -> bool | str:
    if value not in _STOPPING:
        raise OptionError(f"--early-stopping is {value!r}; it must be true, false or never")
    return _STOPPING[value]


def searches(generation: dict[str, Any], constraint: dict[str, Any]) -> bool:
    """Whether answers are searched for."""
    return generation.get("num_beams", 1) > 1 or bool(constraint)


def search(
    model: Model,
    prompt: Asked,
    generation: dict[str, Any],
    constraint: dict[str, Any],
    quiet: bool,
) -> Result:
    """Search, and print the best answers unless it is to be quiet."""
    from quickdraft.commands.interrupt import stop_on_interrupt

    with stop_on_interrupt() as cancel:
        result = _search(model, prompt, generation, constraint, cancel)
    if not quiet:
        show(result)
    return result


def _search(
    model: Model,
    prompt: Asked,
    generation: dict[str, Any],
    constraint: dict[str, Any],
    cancel: CancelToken,
) -> Result:
    from quickdraft.runtime.beams.constraints import TokenTrie

    rules: dict[str, Any] = {}
    if "answer_prefix" in constraint:
        rules["answer_prefix"] = check_text("answer prefix", constraint["answer_prefix"])
    if "allowed" in constraint:
        answers = [
            model.tokenizer.encode(line, special=False, bos=False)
            for line in _lines(constraint["allowed"])
        ]
        rules["allowed_tokens"] = TokenTrie(answers, model.tokenizer.eos_token_ids)
    ids = model.tokenize_chat(prompt) if isinstance(prompt, list) else prompt
    return model.search(ids, cancel=cancel, **rules, **generation)


def _lines(file: Path) -> list[str]:
    """Lines of a file that are not empty.

    Raises:
        InputError: it cannot be read, is too large, is not UTF-8, or has no such line.
    """
    try:
        if file.stat().st_size > MAX_ALLOWED_BYTES:
            raise InputError(f"--allowed: {file} has more than {MAX_ALLOWED_BYTES} bytes")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--allowed: {file} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"--allowed: {file} cannot be read: {error.strerror or error}") from error
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"--allowed: {file} has no line; give one answer a line")
    return found


def show(result: Result) -> None:
    """Print the best answer; several with their places and scores."""
    several = len(result.sequences) > 1
    for place, ranked in enumerate(result.sequences, 1):
        if several:
            write(f"{place}  {ranked.score:.4f}\n")
        write(ranked.text if ranked.text.endswith("\n") else f"{ranked.text}\n")
