"""The command line: finds the command, runs it, and turns every failure into a message.

Commands live in `quickdraft.commands`, one file each, and are imported when they are used, so
that `quickdraft --help` imports click and nothing else.

Exit codes: 0 done, 1 failed, 2 bad use or bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

import click

from quickdraft import __version__
from quickdraft.commands.output import report_failure, use_utf8
from quickdraft.errors import QuickdraftError

COMMANDS = {
    "run": ("quickdraft.commands.run:run", "Answer one prompt."),
    "transcribe": (
        "quickdraft.commands.transcribe:transcribe",
        "Write down what is said in sound files.",
    ),
    "chat": ("quickdraft.commands.chat:chat", "Talk with a model, turn by turn."),
    "pull": ("quickdraft.commands.pull:pull", "Fetch a model and export it to the cache."),
    "list": ("quickdraft.commands.list_:list_models", "List the models of the cache."),
    "show": ("quickdraft.commands.show:show", "Print the facts of a model."),
    "rm": ("quickdraft.commands.rm:rm", "Remove models from the cache."),
    "export": ("quickdraft.commands.export:export", "Turn a checkpoint into a bundle."),
    "bench": ("quickdraft.commands.bench:bench", "Measure prefill and decoding speed."),
    "bench curve": (
        "quickdraft.commands.bench_curve:curve",
        "Measure what a step costs by its rows.",
    ),
    "bench speculation": (
        "quickdraft.commands.bench_speculation:speculation",
        "Measure what drafting gains, by kinds of text.",
    ),
    "bench device": (
        "quickdraft.commands.bench_device:device",
        "Report on a device, or compare reports.",
    ),
    "device list": ("quickdraft.commands.device:list_devices", "List the devices that are known."),
    "device show": ("quickdraft.commands.device:show_device", "Print what is known of a device."),
    "calibrate": (
        "quickdraft.commands.calibrate:calibrate",
        "Measure what a step costs, to plan drafting.",
    ),
    "verify": (
        "quickdraft.commands.verify:verify",
        "Compare drafted answers with plain ones.",
    ),
    "train generate": (
        "quickdraft.commands.train_generate:generate",
        "Let a model answer prompts, for drafts to learn from.",
    ),
    "train draft": (
        "quickdraft.commands.train_draft:draft",
        "Train a draft on answers of its model.",
    ),
    "train predictor": (
        "quickdraft.commands.train_predictor:predictor",
        "Fit a predictor of the KV cache.",
    ),
    "doctor": ("quickdraft.commands.doctor:doctor", "Report on this machine and installation."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a misspelt name."""
        if " ".join(args[:2]) in COMMANDS:  # a command of two words
            args = [" ".join(args[:2]), *args[2:]]
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            longer = [command for command in COMMANDS if command.startswith(f"{name} ")]
            if longer:
                raise click.UsageError(f"{name!r} needs one word more: {', '.join(longer)}.", ctx)
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="MODEL is a bundle folder, a checkpoint folder, a .gguf file, owner/name on the hub, "
    "or an alias such as smollm2-135m.",
)
@click.version_option(__version__, message="quickdraft %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks of failures.")
def cli(debug: bool) -> None:
    """Run small language models on the devices people own, fast and exactly."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. argv: without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    use_utf8()
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        code = _run(arguments, as_json="--json" in options, debug="--debug" in options)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError as error:
        # The reader has gone, or there is no room for the rest: it cannot be printed anywhere.
        _close_output()
        if not isinstance(error, BrokenPipeError):
            report_failure(type(error).__name__, f"standard output: {_describe(error)}", False)
        return 1
    return code


def _run(arguments: list[str], as_json: bool, debug: bool) -> int:
    """Call click and translate what comes out. The only place where errors become messages."""
    try:
        result = cli.main(arguments, prog_name="quickdraft", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SystemExit as stop:  # click's own way out when a pipe closes or a shell asks for help
        return stop.code if isinstance(stop.code, int) else 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "quickdraft"
        hint = f"Try '{where} --help'."
        return _fail(error, error.format_message(), as_json, 2, "UsageError", hint)
    except click.ClickException as error:
        return _fail(error, error.format_message(), as_json, error.exit_code, "UsageError")
    except QuickdraftError as error:
        if debug:
            traceback.print_exc()
        return _fail(error, str(error), as_json, error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        return _fail(error, _describe(error), as_json, 1)
    except MemoryError as error:
        message = "out of memory; a smaller model or a narrower weight format may fit"
        return _fail(error, message, as_json, 1)
    except Exception as error:
        if debug:
            raise
        message = f"unexpected {type(error).__name__}: {_first_line(error)}"
        hint = (
            "This is a defect of quickdraft. Please report it with the output of "
            "'quickdraft doctor' and of the same command with --debug."
        )
        return _fail(error, message, as_json, 1, hint=hint)


def _fail(
    error: BaseException,
    message: str,
    as_json: bool,
    code: int,
    kind: str | None = None,
    hint: str | None = None,
) -> int:
    """Report a failure, and return its exit code."""
    report_failure(kind or type(error).__name__, message, as_json)
    if hint:
        click.echo(hint, err=True)
    return code


def _describe(error: OSError) -> str:
    """One line on what the system refused."""
    reason = error.strerror or _first_line(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _first_line(error: BaseException) -> str:
    """The beginning of an error's own message."""
    return (str(error).splitlines() or ["no message"])[0]


def _close_output() -> None:
    """Send what is still buffered nowhere, or Python complains about the pipe when it exits."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
