"""`quickdraft transcribe`: sound files to text and captions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import is_terminal, print_json, write
from quickdraft.errors import OptionError

if TYPE_CHECKING:
    from quickdraft.runtime.audio.transcribe import Segment, Transcriber
    from quickdraft.runtime.backends.base import CancelToken

FORMS = ("text", "srt", "vtt", "json")


@click.command(epilog="WAV files need nothing else; FLAC, OGG and MP3 need the extra `audio`.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="whisper-tiny.en", show_default=True, help="A speech model.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMS),
    default="text",
    show_default=True,
    help="How to write it.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a file for each sound file here, named after it; else to standard output.",
)
@click.option("--language", help="Spoken language, as in `en`; else the model finds out.")
@click.option(
    "--task",
    type=click.Choice(("transcribe", "translate")),
    default="transcribe",
    show_default=True,
    help="Write what is said, or translate it to English.",
)
@click.option(
    "--timestamps/--no-timestamps",
    default=True,
    help="Let the model say times; without, each window of 30 s is one segment.",
)
@loading_options()
@common_options
def transcribe(
    files: tuple[Path, ...],
    model: str,
    form: str,
    output_dir: Path | None,
    language: str | None,
    task: str,
    timestamps: bool,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Write down what is said in sound files.

    Segments are printed as they are found; files of --output-dir are written whole.
    """
    from quickdraft.commands.interrupt import stop_on_interrupt
    from quickdraft.commands.progress import open_model
    from quickdraft.runtime.audio.captions import FORMATS
    from quickdraft.runtime.audio.sound import open_sound
    from quickdraft.runtime.audio.transcribe import Transcriber

    if as_json and (output_dir is not None or form != "text"):
        raise OptionError(
            "--json prints one object for all files; leave out --format, --output-dir"
        )
    _check_names(files, output_dir)
    for file in files:  # a bad file should not wait for the model and for those before it
        open_sound(file).close()
    found = []
    with open_model(model, **loading) as loaded, stop_on_interrupt() as cancel:
        transcriber = Transcriber(loaded, language=language, task=task, timestamps=timestamps)
        for file in files:
            said = _segments(transcriber, file, cancel, silent=as_json or output_dir is not None)
            if as_json:
                found.append({"file": str(file), "segments": [each.to_dict() for each in said]})
            elif output_dir is not None:
                _save(file, "".join(FORMATS[form](said)), form, output_dir)
            else:
                if form == "text" and len(files) > 1:
                    write(f"{file}:\n")
                for piece in FORMATS[form](said):
                    write(piece)
    if as_json:
        print_json({"model": model, "files": found})


def _check_names(files: tuple[Path, ...], output_dir: Path | None) -> None:
    if output_dir is not None and len({file.stem for file in files}) < len(files):
        raise OptionError(
            "two of the files have one name, so their texts would overwrite each other in "
            "--output-dir; do them one after the other into different folders"
        )


def _segments(
    transcriber: Transcriber, file: Path, cancel: CancelToken, *, silent: bool
) -> Iterator[Segment]:
    """Segments as they are found. silent: nothing is printed meanwhile, so that a terminal has room
    for a bar."""
    from quickdraft.commands.progress import Bars
    from quickdraft.runtime.audio.sound import open_sound

    alone = silent or not is_terminal(sys.stdout)
    with open_sound(file) as sound, Bars(quiet=not alone, transient=True) as bars:
        yield from transcriber.segments(sound, cancel, bars)


def _save(file: Path, text: str, form: str, output_dir: Path) -> None:
    from quickdraft.hashes import storage_error
    from quickdraft.runtime.audio.captions import EXTENSIONS

    path = output_dir / f"{file.stem}{EXTENSIONS[form]}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, str(path)) from error
