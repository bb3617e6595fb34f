"""`quickdraft train draft`: a draft for a model, from answers of that model."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quickdraft.commands.options import check_text, common_options
from quickdraft.commands.output import facts, human_size, print_json
from quickdraft.commands.progress import Bars
from quickdraft.commands.train_status import StatusLine, duration, require_training
from quickdraft.errors import OptionError
from quickdraft.registry import TRAINED, TRAINED_WITH_ENCODER

if TYPE_CHECKING:
    from quickdraft.drafters.train.data import Corpus
    from quickdraft.drafters.train.kinds import DraftTraining, Hear
    from quickdraft.drafters.train.loop import LoopOptions, Outcome, Status
    from quickdraft.export.checkpoints.base import Checkpoint
    from quickdraft.export.trained import Target, TargetWithEncoder
    from quickdraft.types import SourceSpec

KINDS = tuple(kind for kind in (*TRAINED, *TRAINED_WITH_ENCODER) if kind != "predictor")


def _settings(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """A click callback: `KEY=VALUE` settings by name."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals or name in found:
            raise click.BadParameter(f"{value!r} is not one KEY=VALUE per key", ctx, param)
        found[name] = check_text("setting", text)
    return found


@click.command("train draft")
@click.argument("model")
@click.option(
    "--kind", type=click.Choice(KINDS), default="compact", show_default=True,
    help="What to train; see docs/training.md.",
)  # fmt: skip
@click.option(
    "--data", multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Answers of the model, from `quickdraft train generate`. Repeatable.",
)  # fmt: skip
@click.option(
    "--text", multiple=True, metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="People's text to learn from: .txt, .jsonl, or .gz of these. Repeatable.",
)  # fmt: skip
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="File of the trained draft (.safetensors).",
)  # fmt: skip
@click.option(
    "--budget", "minutes", type=float, metavar="MINUTES",
    help="Of training, interruptions left out.",
)  # fmt: skip
@click.option("--steps", type=int, help="The same in steps, for the same result every time.")
@click.option("--rate", type=float, help="Highest learning rate.  [default: that of the kind]")
@click.option("--accumulate", default=1, show_default=True, help="Batches of a step.")
@click.option(
    "-s", "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=_settings,
    help="Set an option of the kind. Repeatable.",
)  # fmt: skip
@click.option(
    "--held-out", default=0.05, show_default=True,
    type=click.FloatRange(min=0, max=0.5, min_open=True),
    help="Share of the answers that it is tested on and does not learn.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True
)
@click.option("--save-minutes", default=2.0, show_default=True, help="Keep the state this often.")
@click.option("--overwrite", is_flag=True, help="Replace a draft that is already there.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@common_options
def draft(
    model: str, out: Path, overwrite: bool, offline: bool, as_json: bool, **options: Any
) -> None:
    """Train a draft on answers of its model.

    A compact draft may read text before that (--text). OUT is added to a bundle with
    `quickdraft export --trained OUT`. Beside it are its card (.md), OUT.json, with what was
    measured on the way, and OUT.png where matplotlib is installed. Ctrl-C, or whatever else ends
    this, loses a few minutes at most: OUT.state holds the state, and the same command goes on from
    there to the same end. Several GPUs: `accelerate launch -m quickdraft train draft`.
    """
    require_training()
    from quickdraft.drafters.train.loop import LoopOptions, is_first_process, pick_device

    if options["text"] and options["kind"] in TRAINED_WITH_ENCODER:
        raise OptionError(
            f"--kind {options['kind']} learns answers about sources, and --text has none; give "
            "answers of the model as --data"
        )
    if not options["data"] and not options["text"]:
        raise OptionError("give answers of the model (--data FILE), text (--text FILE), or both")
    loop = _loop(options, LoopOptions)  # bad values fail before anything is read
    state = out.with_name(out.name + ".state")
    if out.exists() and not state.exists() and not overwrite:
        raise OptionError(f"{out} is there already; name another file, or add --overwrite")
    device = pick_device(options["device"])
    checkpoint, corpus, prepared = _prepare(model, options, device, offline, as_json)
    loop = _loop(options, prepared.loop)
    identity = _identity(checkpoint, corpus, prepared, options)
    outcome, interrupted = _run(prepared, loop, state, identity, as_json)
    told = {
        "file": str(out),
        "kind": options["kind"],
        "finished": outcome.finished,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "held_out": dict(outcome.history.held_out[-1].figures),
    }
    if outcome.finished and is_first_process():
        card = _card(checkpoint, corpus, prepared, loop, outcome) | {"device": device.type}
        told["bytes"] = _write(out, checkpoint, prepared, options["kind"], outcome, card)
        with suppress(FileNotFoundError):
            state.unlink()
    if is_first_process():
        _show(told, as_json, interrupted)
    if interrupted:
        raise click.exceptions.Exit(130)


def _loop(options: dict[str, Any], make: Any) -> LoopOptions:
    """How to train, as far as the user says it."""
    given = {name: options[name] for name in ("steps", "minutes", "accumulate", "seed", "device")}
    if options["rate"] is not None:
        given["rate"] = options["rate"]
    made: LoopOptions = make(**given, save_seconds=60 * options["save_minutes"])
    return made


def _prepare(
    model: str, options: dict[str, Any], device: Any, offline: bool, quiet: bool
) -> tuple[Checkpoint, Corpus, DraftTraining]:
    """The checkpoint of the target, the answers, and what is to be trained."""
    from quickdraft.drafters.train.data import read_corpus
    from quickdraft.drafters.train.text import encoder_of
    from quickdraft.export.pipeline import read_checkpoint
    from quickdraft.models.resolve import find_checkpoint

    with Bars(quiet=quiet, transient=True) as bars:
        path = find_checkpoint(model, progress=bars, offline=offline)
    if path is None:
        raise OptionError(
            f"{model} is a bundle, whose weights cannot be trained against; name the checkpoint it "
            "was made from"
        )
    checkpoint = read_checkpoint(path)
    target = _target(checkpoint, options["kind"])
    corpus = read_corpus(
        options["data"],
        checkpoint.source.fingerprint,
        target.spec.vocab_size,
        options["text"],
        encoder_of(checkpoint),
    )
    training, held_out = corpus.split(options["held_out"])
    given = {
        "training": training,
        "held_out": held_out,
        "options": options["settings"],
        "seed": options["seed"],
        "device": device,
    }
    return checkpoint, corpus, _of_kind(options["kind"], target, given)


def _target(checkpoint: Checkpoint, kind: str) -> Target | TargetWithEncoder:
    """The model of a checkpoint, which a kind of draft must be for."""
    from quickdraft.export.architectures.base import find_any
    from quickdraft.export.architectures.seq2seq import Seq2SeqFamily
    from quickdraft.export.trained import Target, TargetWithEncoder

    encodes = isinstance(find_any(checkpoint.config), Seq2SeqFamily)
    if encodes != (kind in TRAINED_WITH_ENCODER):
        what = "an encoder-decoder model" if encodes else "a decoder"
        fits = TRAINED_WITH_ENCODER if encodes else [each for each in KINDS if each in TRAINED]
        raise OptionError(
            f"--kind {kind}: {checkpoint.source.name} is {what}, for which there is "
            f"{', '.join(fits)}"
        )
    return TargetWithEncoder.of(checkpoint) if encodes else Target.of(checkpoint)


def _of_kind(kind: str, target: Any, given: dict[str, Any]) -> DraftTraining:
    """What is to be trained, with the rest of its request."""
    from quickdraft.drafters.train import kinds
    from quickdraft.registry import lookup

    encodes = kind in kinds.KINDS_WITH_ENCODER
    known = kinds.KINDS_WITH_ENCODER if encodes else kinds.KINDS
    if encodes:
        hear = _hear(target.spec.source)
        request: Any = kinds.RequestWithEncoder(target=target, hear=hear, **given)
    else:
        request = kinds.Request(target=target, **given)
    prepared: DraftTraining = lookup("kind of draft", known, kind)(request)
    return prepared


def _hear(reads: SourceSpec) -> Hear | None:
    """What reads sound for a model, if it does."""
    from quickdraft.runtime.audio.mel import HOP, log_mel
    from quickdraft.runtime.audio.sound import open_sound

    if not reads.width:
        return None

    def hear(path: str, start: int) -> Any:
        with open_sound(Path(path)) as sound:
            return log_mel(sound.read(start, reads.length * HOP), reads.length, reads.width)

    return hear


def _identity(
    checkpoint: Checkpoint, corpus: Corpus, prepared: DraftTraining, options: dict[str, Any]
) -> dict[str, Any]:
    """What must not change between a run and one that goes on from it."""
    return {
        "kind": options["kind"],
        "target": checkpoint.source.fingerprint,
        "data": corpus.sha256,
        "held_out": options["held_out"],
        "settings": dict(prepared.options),
    }


def _run(
    prepared: DraftTraining,
    loop: LoopOptions,
    state: Path,
    identity: dict[str, Any],
    quiet: bool,
) -> tuple[Outcome, bool]:
    """Train, and whether that was interrupted."""
    from quickdraft.commands.interrupt import stop_on_interrupt
    from quickdraft.drafters.train.loop import is_first_process, train

    with StatusLine(quiet or not is_first_process()) as status, stop_on_interrupt() as cancel:
        outcome = train(
            prepared.trainee,
            loop,
            file=state,
            identity=identity,
            progress=lambda now: status(_line(now)),
            stop=lambda: cancel.cancelled,
        )
        return outcome, cancel.cancelled and not outcome.finished


def _line(now: Status) -> str:
    """Where training is, and how long it will take."""
    figures = ", ".join(f"{name} {value:.3f}" for name, value in now.figures.items())
    left = now.seconds * (1 / now.share - 1) if now.share else 0.0
    return f"step {now.steps} ({now.share:.0%}), {figures}, {duration(left)} left"


def _card(
    checkpoint: Checkpoint,
    corpus: Corpus,
    prepared: DraftTraining,
    loop: LoopOptions,
    outcome: Outcome,
) -> dict[str, Any]:
    """What people should know of a draft."""
    return {
        "target": checkpoint.source.name,
        "licence": checkpoint.source.licence,
        "recipe": prepared.recipe,
        "options": dict(prepared.options),
        "rate": loop.rate,
        "seed": loop.seed,
        "answers": len(corpus) - corpus.texts,
        "texts": corpus.texts,
        "tokens": sum(len(d.tokens) - d.answer for d in corpus.documents),
        "data": corpus.sha256,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "held_out": dict(outcome.history.held_out[-1].figures),
    }


def _write(
    out: Path,
    checkpoint: Checkpoint,
    prepared: DraftTraining,
    kind: str,
    outcome: Outcome,
    card: dict[str, Any],
) -> int:
    """Write the draft, then its report; the bytes of the draft."""
    from quickdraft.drafters.train.report import write_card, write_report
    from quickdraft.export.trained import write_trained
    from quickdraft.hashes import storage_error

    try:
        write_trained(
            out,
            kind=kind,
            target=checkpoint.source.fingerprint,
            settings=prepared.settings,
            tensors=prepared.tensors(),
            card=card,
        )
    except OSError as error:
        raise storage_error(error, str(out)) from error
    plot = out.with_name(out.name + ".png") if find_spec("matplotlib") is not None else None
    report = {"title": f"{kind} draft of {checkpoint.source.name}", **card}
    write_report(out.with_name(out.name + ".json"), outcome.history, report, plot)
    write_card(out, f"A draft for {checkpoint.source.name} ({kind})", _page(card))
    return out.stat().st_size


def _page(card: dict[str, Any]) -> dict[str, str]:
    """The card in words."""
    from quickdraft.drafters.train.report import licence_of

    figures = ", ".join(f"{name} {value:.3f}" for name, value in card["held_out"].items())
    data = [f"{card['answers']} answers of {card['target']}"] if card["answers"] else []
    data += [f"{card['texts']} texts"] if card["texts"] else []
    return {
        "Data": f"{' and '.join(data)}, {card['tokens']} tokens (sha256 {card['data'][:16]})",
        "Recipe": f"{card['recipe']}; rate {card['rate']:g}, seed {card['seed']}",
        "Time": f"{card['steps']} steps in {duration(card['seconds'])} on {card['device']}",
        "Acceptance": f"held out: {figures}",
        "Licence": licence_of(card["target"], card["licence"]),
    }


def _show(told: dict[str, Any], as_json: bool, interrupted: bool) -> None:
    """What came out."""
    if as_json:
        print_json(told)
        return
    rows = {"steps": told["steps"], "time": duration(told["seconds"])}
    rows |= {name: f"{value:.3f}" for name, value in told["held_out"].items()}
    if "bytes" in told:
        rows |= {"file": f"{told['file']}, {human_size(told['bytes'])}"}
    click.echo(facts(rows))
    if not told["finished"]:
        why = "Interrupted" if interrupted else "Stopped"
        click.echo(f"{why}: the same command goes on from here.")
