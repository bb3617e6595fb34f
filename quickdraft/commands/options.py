"""Options that several commands share. What the user did not give is not passed on."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from quickdraft.errors import InputError, OptionError
from quickdraft.manifest import WeightFormat
from quickdraft.static_shapes import StaticShapes

Command = Callable[..., Any]

MAX_THREADS = 1024
MAX_INPUT_BYTES = 64 << 20
_DEBUG = "quickdraft.debug"
_SOUND = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3")
"""What WAV, FLAC, OGG and MP3 files begin with."""


# Field of GenerationConfig, names on the command line, type, help.
GENERATION: tuple[tuple[str, tuple[str, ...], Any, str], ...] = (
    ("max_new_tokens", ("-n", "--max-new-tokens"), int, "Most tokens of an answer."),
    ("min_new_tokens", ("--min-new-tokens",), int, "Least tokens of an answer."),
    ("temperature", ("--temperature", "--temp"), float, "0 always takes the likeliest token."),
    ("top_k", ("--top-k",), int, "Sample from the K likeliest tokens; 0 is off."),
    ("top_p", ("--top-p",), float, "Sample from the likeliest tokens that add up to P."),
    ("min_p", ("--min-p",), float, "Least probability, relative to the likeliest token."),
    ("typical_p", ("--typical-p",), float, "Sample from the most typical tokens adding up to P."),
    ("repetition_penalty", ("--repetition-penalty",), float, "Divide logits of past tokens."),
    ("presence_penalty", ("--presence-penalty",), float, "Subtract once per token of the answer."),
    ("frequency_penalty", ("--frequency-penalty",), float, "Subtract per use in the answer."),
    ("no_repeat_ngram_size", ("--no-repeat-ngram-size",), int, "No n-gram of this size twice."),
    ("logit_bias", ("--logit-bias",), str, "Add VALUE to a token's logit. Repeatable."),
    ("seed", ("--seed",), int, "Make sampling repeatable."),
    (
        "stop_strings",
        ("--stop", "--stop-strings"),
        str,
        "End the answer before this text. Repeatable.",
    ),
    ("logprobs", ("--logprobs",), int, "Report this many likeliest tokens per token (--json)."),
    ("max_time", ("--max-time",), float, "Most seconds of an answer."),
    (
        "acceptance",
        ("--acceptance",),
        click.Choice(("exact", "typical", "judge")),
        "exact; or, lossy, typical, or what the judge of the bundle lets pass.",
    ),
    (
        "judge_threshold",
        ("--judge-threshold",),
        float,
        "With --acceptance judge: how sure it must be, from 0 to 1.",
    ),
    ("num_draft_tokens", ("--draft-tokens",), int, "Draft N tokens a step, instead of planning."),
)
_REPEATED = frozenset({"logit_bias", "stop_strings"})
_METAVARS = {"logit_bias": "ID=VALUE"}

# Parameter of quickdraft.load, names on the command line, attributes of the option.
LOADING: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("drafter", "--drafter", {"help": "auto, none, or drafters: NAME[,NAME]."}),
    (
        "drafter_options",
        "--drafter-option",
        {
            "multiple": True,
            "metavar": "NAME.KEY=VALUE",
            "help": "Set an option of a drafter. Repeatable.",
        },
    ),
    (
        "no_store",
        "--no-store",
        {"is_flag": True, "help": "Keep nothing that drafters learn."},
    ),
    (
        "device",
        "--device",
        {
            "metavar": "NAME",
            "help": "auto, cpu, gpu, npu, a name of `device list`, or simulated:NAME.",
        },
    ),
    ("backend", "--backend", {"help": "auto, or a backend: NAME, or NAME:DEVICE of its own."}),
    (
        "weights",
        "--weights",
        {"help": f"Weight format: auto, {', '.join(get_args(WeightFormat))}."},
    ),
    (
        "threads",
        "--threads",
        {"type": int, "envvar": "QUICKDRAFT_THREADS", "help": "Threads of the backend."},
    ),
    ("kv_cache", "--kv-cache", {"help": "How keys and values are stored: f16, f32 or int8."}),
    (
        "prefill",
        "--prefill",
        {
            "metavar": "KIND",
            "help": "exact; or, lossy, predicted or hybrid:N, with @NAME, +refresh as wanted.",
        },
    ),
    ("offline", "--offline", {"is_flag": True, "help": "Never use the network."}),
)


def common_options(command: Command) -> Command:
    """`--json` (parameter as_json) and `--debug` (read by `quickdraft.cli`)."""
    command = click.option(
        "--debug", is_flag=True, expose_value=False, hidden=True, callback=_remember_debug
    )(command)
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on standard output, errors too."
    )(command)


def _remember_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_DEBUG] = value


def wants_traceback() -> bool:
    """Whether --debug was given, before or after the name of the command."""
    context = click.get_current_context()
    return bool(context.meta.get(_DEBUG) or context.find_root().params.get("debug"))


def generation_options(command: Command) -> Command:
    """Options of an answer, gathered in the parameter `generation`: fields that were given."""

    @functools.wraps(command)
    def gather(*args: Any, **params: Any) -> Any:
        values = {field: params.pop(field) for field, *_ in GENERATION}
        values["ignore_eos"] = params.pop("ignore_eos") or None
        generation = {name: v for name, v in values.items() if v is not None and v != ()}
        if "logit_bias" in generation:
            generation["logit_bias"] = _biases(generation["logit_bias"])
        if "judge_threshold" in generation and generation.get("acceptance") != "judge":
            raise OptionError(
                f"--judge-threshold {generation['judge_threshold']:g} is for the judge; give "
                "--acceptance judge with it, or leave it out"
            )
        return command(*args, generation=generation, **params)

    wrapped = click.option(
        "--ignore-eos", is_flag=True, help="Do not end the answer at an end-of-text token."
    )(gather)
    for field, names, kind, text in reversed(GENERATION):
        wrapped = click.option(
            *names,
            field,
            type=kind,
            multiple=field in _REPEATED,
            metavar=_METAVARS.get(field),
            help=text,
        )(wrapped)
    return wrapped


def _biases(pairs: tuple[str, ...]) -> dict[int, float]:
    """`ID=VALUE` pairs by token; ranges are GenerationConfig's business."""
    biases: dict[int, float] = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            number, value = int(token), float(bias)
        except ValueError:
            raise OptionError(
                f"--logit-bias: {pair!r} is not a token id and a number, such as 42=-100"
            ) from None
        if number in biases:
            raise OptionError(f"--logit-bias names token {number} twice")
        biases[number] = value
    return biases


def loading_options(*names: str) -> Callable[[Command], Command]:
    """Options of how a model is opened, gathered in `loading`: those that were given.

    names: which of LOADING; all of them if empty.
    """
    chosen = [entry for entry in LOADING if not names or entry[0] in names]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gather(*args: Any, **params: Any) -> Any:
            values = {name: params.pop(name) for name, *_ in chosen}
            given = {k: v for k, v in values.items() if v is not None and v is not False}
            loading = {name: value for name, value in given.items() if value != ()}
            if loading.pop("no_store", False):
                loading["store"] = False
            if "drafter_options" in loading:
                loading["drafter_options"] = _drafter_options(loading["drafter_options"])
            _check_threads(loading.get("threads"))
            return command(*args, loading=loading, **params)

        wrapped: Command = gather
        for name, flag, attributes in reversed(chosen):
            wrapped = click.option(flag, name, **attributes)(wrapped)
        return wrapped

    return decorate


def _drafter_options(settings: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """`NAME.KEY=VALUE` settings by drafter and option; what there is, the drafters know."""
    options: dict[str, dict[str, str]] = {}
    for setting in settings:
        place, equals, value = setting.partition("=")
        name, _, key = place.partition(".")
        if not (name and key and equals):
            raise OptionError(
                f"--drafter-option: {setting!r} is not NAME.KEY=VALUE, such as "
                "prompt_lookup.max_tokens=16"
            )
        chosen = options.setdefault(name, {})
        if key in chosen:
            raise OptionError(f"--drafter-option sets {place} twice")
        chosen[key] = check_text("drafter option", value)
    return options


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise OptionError(
            f"threads is {threads}; it must be between 1 and {MAX_THREADS} "
            f"(this machine has {os.cpu_count()} processors)"
        )


def whole_numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """A click callback: `5,14` as numbers, in order, without repeats."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a list of whole numbers, such as 5,14", ctx, param
        ) from None
    return tuple(dict.fromkeys(numbers))


def static_options(command: Command) -> Command:
    """Dimensions of static graphs, gathered in the parameter `shapes`."""

    @functools.wraps(command)
    def gather(*args: Any, **params: Any) -> Any:
        names = ("widths", "prefill_chunk", "cache_length")
        return command(*args, shapes=StaticShapes(*(params.pop(name) for name in names)), **params)

    options = (
        click.option(
            "--cache-length",
            type=int,
            metavar="N",
            help="Static formats: tokens that a conversation may have.",
        ),
        click.option(
            "--widths",
            callback=whole_numbers,
            metavar="ROWS",
            help="Static formats: rows of the steps that verify, such as 1,4,8,16.",
        ),
        click.option(
            "--prefill-chunk",
            type=int,
            metavar="ROWS",
            help="Static formats: rows of the step that reads prompts.",
        ),
    )
    wrapped: Command = gather
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def read_input() -> str:
    """Everything on standard input, without the last line break; empty on a terminal.

    Raises:
        InputError: it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    return decode_input(sys.stdin.buffer.read()).removesuffix("\n").removesuffix("\r")


def read_file(path: Path) -> str:
    """The text of a file, without the last line break.

    Raises:
        InputError: it cannot be read, is too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_INPUT_BYTES:
        raise InputError(f"{path} has more than {MAX_INPUT_BYTES} bytes; give a shorter text")
    return decode_input(data, str(path)).removesuffix("\n").removesuffix("\r")


def decode_input(data: bytes, where: str = "standard input") -> str:
    """UTF-8 text from standard input, or what `where` says.

    Raises:
        InputError: it is not UTF-8; the message has the place.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(_SOUND):
            raise InputError(
                f"{where} is sound, not text; speech models write it down with "
                "`quickdraft transcribe`"
            ) from None
        raise InputError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it first"
        ) from None


def check_text(name: str, text: str) -> str:
    """The same text.

    Raises:
        InputError: it holds bytes of the command line that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the {name} is not valid UTF-8") from None
    return text
