"""`quickdraft run`: one prompt, one answer; or one for each of several files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.batch import Batch
from quickdraft.commands.beams import beam_options, search, searches
from quickdraft.commands.explain import explain as steps_table
from quickdraft.commands.options import (
    check_text,
    common_options,
    generation_options,
    loading_options,
    read_file,
    read_input,
)
from quickdraft.commands.output import dim, is_terminal, print_json, write
from quickdraft.errors import InputError, OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.backends.base import CancelToken
    from quickdraft.runtime.languages import Translation
    from quickdraft.runtime.model import Chunk, Model, Result

    Asked = str | list[dict[str, str]] | Translation


@click.command(epilog="Options of sampling that are not given come from the model.")
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option(
    "--input",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Read the prompt from FILE, not from standard input; again for one answer each.",
    metavar="FILE",
)
@click.option("--system", help="System message.")
@click.option("--source-language", metavar="CODE", help="Language of the text, to translate it.")
@click.option("--target-language", metavar="CODE", help="Language to translate the text into.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@click.option("-v", "--verbose", is_flag=True, help="Print times and rates on standard error.")
@click.option("--explain", is_flag=True, help="Print why each step drafted what it did.")
@generation_options
@beam_options
@loading_options()
@common_options
def run(
    model: str,
    prompt: tuple[str, ...],
    files: tuple[Path, ...],
    system: str | None,
    source_language: str | None,
    target_language: str | None,
    raw: bool,
    verbose: bool,
    explain: bool,
    generation: dict[str, Any],
    constraint: dict[str, Any],
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer one prompt.

    Text is printed as it comes, that of a search at its end. The prompt is the arguments, standard
    input, or both: arguments first, then an empty line, then standard input. An encoder-decoder
    model (T5, BART, Marian) answers about it. With several files each has an answer of its own,
    under its name or, with --json, on a line of its own; a file that fails is reported, the others
    go on, and the exit code says so at the end.
    """
    from quickdraft.commands.progress import Bars, open_model
    from quickdraft.runtime.languages import Translation

    _check_options(generation, raw and system is not None, as_json)
    translated = (source_language, target_language) != (None, None)
    batch, several = Batch(as_json), len(files) > 1
    prompts = _prompts(prompt, files, batch)
    if not prompts:
        batch.end()
    with open_model(model, **loading) as loaded:
        if loaded.chat_template is None and system is not None:
            raise OptionError(f"--system: {loaded.name} has no chat template to put it in")
        loaded.check_options(generation)  # before a file: all would fail for the same reason
        plain = raw or loaded.chat_template is None
        shown = several and (as_json or not is_terminal(sys.stdout))

        def answer(text: str, name: dict[str, str]) -> None:
            asked: Asked = text if plain else _messages(system, text)
            if translated:
                asked = Translation(text, source_language, target_language)
            if searches(generation, constraint):
                result = search(loaded, asked, generation, constraint, quiet=as_json)
            else:
                result = _answer(loaded, asked, generation, quiet=as_json)
            _report(loaded, result, name, as_json=as_json, explain=explain, verbose=verbose)

        with Bars(quiet=not shown, transient=True) as bars:
            for index, (file, text) in enumerate(prompts):
                bars("files", index, len(prompts))
                if file is None or not several:
                    answer(text, {})
                    continue
                write("" if as_json else f"{file}:\n")
                with batch.guard(file):
                    answer(text, {"file": str(file)})
            bars("files", len(prompts), len(prompts))
    batch.end()


def _check_options(generation: dict[str, Any], both: bool, as_json: bool) -> None:
    """Bad values fail before anything is fetched. both: --raw and --system are given."""
    from quickdraft.runtime.generation import GenerationConfig

    if both:
        raise OptionError("--system needs the chat template, and --raw leaves it out; give one")
    if generation.get("logprobs") and not as_json:
        raise OptionError("--logprobs is reported in JSON only; add --json")
    GenerationConfig.from_dict(generation)


def _prompts(
    words: tuple[str, ...], files: tuple[Path, ...], batch: Batch
) -> list[tuple[Path | None, str]]:
    """The prompt of each file that has one; without files, that of arguments and standard input."""
    if len(files) < 2:
        file = files[0] if files else None
        return [(file, _prompt_text(words, file))]
    found: list[tuple[Path | None, str]] = []
    for file in files:
        with batch.guard(file):
            found.append((file, _prompt_text(words, file)))
    return found


def _report(
    loaded: Model,
    result: Result,
    name: dict[str, str],
    *,
    as_json: bool,
    explain: bool,
    verbose: bool,
) -> None:
    """What is said of an answer once it is there; one that was cancelled ends the program."""
    if as_json:
        print_json({**name, **as_object(result, explain), **placed(loaded)})
    elif explain:
        click.echo(dim(steps_table(result)), err=True)
    if verbose:
        where = "" if loaded.placement is None else f"\ndevice   {loaded.placement.why}"
        if loaded.placement is not None and loaded.placement.form is not None:
            where += f"\nform     {loaded.placement.form}"
        click.echo(dim(statistics(result) + where), err=True)
    if result.finish_reason == "cancelled":
        raise click.exceptions.Exit(130)


def _prompt_text(words: tuple[str, ...], file: Path | None) -> str:
    """The prompt from arguments, and a file or standard input."""
    argument = check_text("prompt", " ".join(words))
    given = read_input() if file is None else read_file(file)
    text = "\n\n".join(part for part in (argument, given) if part)
    if not text and file is not None:
        raise InputError(f"{file} holds no text; put the prompt into it, or leave it out")
    if not text:
        raise InputError("there is no prompt; give it as an argument or on standard input")
    return text


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": check_text("system", system)}]
    return [*head, {"role": "user", "content": text}]


def _answer(model: Model, prompt: Asked, generation: dict[str, Any], quiet: bool) -> Result:
    """Stream an answer to standard output, unless it is to be quiet, and return all of it."""
    from quickdraft.commands.interrupt import stop_on_interrupt

    with stop_on_interrupt() as cancel:
        return show_stream(_stream(model, prompt, generation, cancel), quiet)


def _stream(
    model: Model,
    prompt: Asked,
    generation: dict[str, Any],
    cancel: CancelToken,
) -> Iterator[Chunk]:
    if isinstance(prompt, list):
        return model.stream_chat(prompt, cancel=cancel, **generation)
    return model.stream(prompt, cancel=cancel, **generation)


def show_stream(chunks: Iterator[Chunk], quiet: bool) -> Result:
    """Print chunks as they come, end the line, and return the result in the last one."""
    last = ""
    result = None
    for chunk in chunks:
        if chunk.text and not quiet:
            write(chunk.text)
            last = chunk.text
        result = chunk.result
    if not quiet and not last.endswith("\n"):
        write("\n")
    assert result is not None  # a stream that did not raise ends with it  # noqa: S101
    return result


def as_object(result: Result, explain: bool) -> dict[str, Any]:
    """An answer as `--json` prints it; `--explain` adds its steps."""
    steps = {"steps": [step.to_dict() for step in result.steps]} if explain else {}
    return {**result.to_dict(), **steps}


def placed(model: Model) -> dict[str, Any]:
    """Where a model runs, in which form, and why, as `--json` prints it."""
    place = model.placement
    if place is None or place.form is None:
        return {}
    return {"placement": {"name": place.device, "why": place.why, "form": place.form.to_dict()}}


def _predicted(result: Result) -> list[str]:
    """A line on predicted rows, where there were any."""
    p = result.prediction
    if p is None:
        return []
    swap = f"; exact from token {p.exact_from} on" if p.exact_from is not None else ""
    failed = f"; not refreshed: {p.refresh_error}" if p.refresh_error is not None else ""
    rows = f"{p.rows} rows by {p.predictor} in {p.predict_ms:.0f} ms"
    return [f"prefill  {result.prefill}: {rows}{swap}{failed}"]


def _searched(result: Result) -> list[str]:
    """A line on beams, where there were any."""
    b = result.beams
    if b is None:
        return []
    groups = f" in {b.num_beam_groups} groups" if b.num_beam_groups > 1 else ""
    held = {"tree": "one cache", "caches": "a cache each"}[b.rows]
    return [f"beams    {b.num_beams}{groups} over {held}, {b.computed} rows; drafting off"]


def _read(result: Result) -> list[str]:
    """A line on the source of an encoder-decoder model."""
    s = result.source
    if s is None:
        return []
    spent = "known from before" if s.cached else f"encoded in {s.encode_ms:.0f} ms"
    return [f"source   {s.n} {s.unit}, {spent}"]


def statistics(result: Result) -> str:
    """Times and rates of an answer, for people."""
    from quickdraft.runtime.metrics import drafting_summary

    t = result.timings
    prompt_rate = 1e3 * t.prompt_n / t.prompt_ms if t.prompt_ms else 0.0
    reused = f", {t.cached_n} reused" if t.cached_n else ""
    share = f" ({t.draft_n_accepted / t.draft_n:.0%})" if t.draft_n else ""
    found = drafting_summary(result.steps)["drafters"].items()
    by = ", ".join(f"{name} {d['accepted']} of {d['drafted']}" for name, d in found if d["drafted"])
    share += f": {by}" if by else ""
    isa = f" on {result.isa}" if result.isa else ""
    per_step = f", {(t.predicted_n - 1) / t.steps:.2f} tokens per step" if t.steps else ""
    return "\n".join(
        (
            f"load     {t.load_ms:.0f} ms",
            f"first    {t.ttft_ms:.0f} ms to the first token",
            *_read(result),
            f"prompt   {t.prompt_n} tokens{reused}, {prompt_rate:.1f} tokens/s",
            *_predicted(result),
            f"answer   {t.predicted_n} tokens, {t.predicted_per_second:.1f} tokens/s{per_step}",
            f"drafts   {t.draft_n_accepted} of {t.draft_n} tokens accepted{share}",
            f"backend  {result.backend}:{result.device}, {result.flavour}{isa}, {result.guarantee}",
            f"cache    {result.kv_cache} keys and values",
            *_searched(result),
            f"end      {result.finish_reason}",
        )
    )
