"""`quickdraft transcribe`: sound files to text and captions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.batch import Batch
from quickdraft.commands.options import common_options, loading_options
from quickdraft.commands.output import is_terminal, print_json, write
from quickdraft.errors import OptionError, QuickdraftError

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
@click.option("--num-beams", type=int, help="Search for the best text of a window, undrafted.")
@click.option(
    "--checks/--no-checks",
    default=True,
    help="Leave out silence; decode again what repeats itself or is improbable.",
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
    num_beams: int | None,
    checks: bool,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Write down what is said in sound files.

    Segments are printed as they are found. A file that fails is reported, the others go on, and the
    exit code says so at the end. --json prints an object a file, as soon as it is done.
    """
    from quickdraft.commands.interrupt import stop_on_interrupt
    from quickdraft.commands.progress import open_model
    from quickdraft.runtime.audio.sound import open_sound
    from quickdraft.runtime.audio.transcribe import Transcriber
    from quickdraft.runtime.generation import GenerationConfig

    if as_json and (output_dir is not None or form != "text"):
        raise OptionError("--json prints an object for each file; leave out --format, --output-dir")
    options = {} if num_beams is None else {"num_beams": num_beams}
    GenerationConfig.from_dict(options)  # bad values fail before anything is fetched
    _check_names(files, output_dir)
    batch, good = Batch(as_json), []
    for file in files:  # a bad file should not wait for the model and for those before it
        with batch.guard(file):
            open_sound(file).close()
            good.append(file)
    if not good:
        batch.end()
    with open_model(model, **loading) as loaded, stop_on_interrupt() as cancel:
        how: dict[str, Any] = {"language": language, "task": task, **options}
        transcriber = Transcriber(loaded, timestamps=timestamps, checks=checks, **how)
        for file in good:
            if batch.interrupted:
                break
            cancel.check()
            job = _Job(transcriber, file, cancel)
            if as_json:
                job.as_object(batch, model)
            elif output_dir is not None:
                job.into(output_dir, form, batch)
            else:
                job.shown(form, batch, title=len(files) > 1)
    batch.end()


def _check_names(files: tuple[Path, ...], output_dir: Path | None) -> None:
    if output_dir is not None and len({file.stem for file in files}) < len(files):
        raise OptionError(
            "two of the files have one name, so their texts would overwrite each other in "
            "--output-dir; do them one after the other into different folders"
        )


class _Job:
    """One file being written down. What was found before it ends early is never thrown away."""

    def __init__(self, transcriber: Transcriber, file: Path, cancel: CancelToken) -> None:
        self._transcriber, self._file, self._cancel = transcriber, file, cancel
        self._stopped: QuickdraftError | None = None
        self._windows: list[dict[str, Any]] = []

    def as_object(self, batch: Batch, model: str) -> None:
        """Print an object."""
        segments = [each.to_dict() for each in self._segments(silent=True)]
        found = {"model": model, "segments": segments, "windows": self._windows}
        if self._stopped is None:
            print_json({"file": str(self._file), **found})
        else:
            batch.fail(self._file, self._stopped, **found)

    def shown(self, form: str, batch: Batch, *, title: bool) -> None:
        """Print text or captions. title: under the name of the file."""
        from quickdraft.runtime.audio.captions import FORMATS

        if form == "text" and title:
            write(f"{self._file}:\n")
        for piece in FORMATS[form](self._segments(silent=False)):
            write(piece)
        if self._stopped is not None:
            batch.fail(self._file, self._stopped)

    def into(self, folder: Path, form: str, batch: Batch) -> None:
        """Write a file, which has `.part` at the end of its name until it is whole."""
        from quickdraft.hashes import storage_error
        from quickdraft.runtime.audio.captions import EXTENSIONS, FORMATS

        path = folder / f"{self._file.stem}{EXTENSIONS[form]}"
        part = path.with_name(f"{path.name}.part")
        with batch.guard(self._file):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with part.open("w", encoding="utf-8") as out:
                    for piece in FORMATS[form](self._segments(silent=True)):
                        out.write(piece)
                        out.flush()
                if self._stopped is None:
                    part.replace(path)
            except OSError as error:
                raise storage_error(error, str(part)) from error
        if self._stopped is not None:
            batch.fail(self._file, self._stopped)
            click.echo(f"what was found of {self._file} is in {part}", err=True)

    def _segments(self, *, silent: bool) -> Iterator[Segment]:
        """Segments as they are found, up to the error that ends them, which is kept. silent:
        nothing is printed meanwhile, so that a terminal has room for a bar."""
        from quickdraft.commands.progress import Bars
        from quickdraft.runtime.audio.sound import open_sound

        alone = silent or not is_terminal(sys.stdout)
        try:
            with open_sound(self._file) as sound, Bars(quiet=not alone, transient=True) as bars:
                for window in self._transcriber.windows(sound, self._cancel, bars):
                    yield from window.segments
                    self._windows.append(window.to_dict())
                    if window.cut_off:
                        count = len(window.result.token_ids)
                        told = (
                            f"{self._file}: the text of {window.start:.0f} to {window.end:.0f} s "
                        )
                        told += f"had no room after {count} tokens; the rest of it is missing"
                        click.echo(f"warning: {told}", err=True)
        except QuickdraftError as error:
            self._stopped = error
