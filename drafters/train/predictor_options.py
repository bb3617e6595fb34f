"""How a predictor is made, and what of that goes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from quickdraft.drafters.train.predictor_distil import Losses
from quickdraft.errors import OptionError
from quickdraft.export.layer_maps import FRACTIONS, Features, Layout, kept_layers
from quickdraft.export.prediction import PART_NAME

Method = Literal["none", "ridge", "distil", "ridge-distil"]
METHODS: tuple[Method, ...] = ("ridge", "ridge-distil", "distil", "none")
SHARE = 0.25
LAYOUT: Layout = "graded"
RATE = 2e-4
SAVE_MINUTES = 2.0
"""What is meant where nothing was said."""
_LEAST_LENGTH = 8


@dataclass(frozen=True)
class PredictorOptions:
    """How a predictor is made. None: nothing was said, see the constants of this module.

    keep: a share of the target's layers (a key of layer_maps.FRACTIONS), or the layers themselves.
    layout: which layers a share is, see layer_maps.kept_layers. A sibling has neither.
    features: what maps read. method: how maps are found: `ridge`; `none` for the target's own
    projections; `ridge-distil` and `distil` for training by gradient that starts from these, or,
    with features `kv`, from keys and values as the auxiliary has them. name: of the parts; made of
    the others where it is empty. tokens: of text to fit to. length: of a row of text. held_out:
    rows to choose penalties by and to measure on. exact_first: first tokens of a prompt that the
    target prefills itself. measured: how many of the held-out rows continuations are measured on.
    device: what layers run on: `auto`, `cpu` or `cuda`. whole: whether the predictor keeps all of
    the auxiliary's keys and values, so that the drafter `auxiliary` need not read the prompt again.

    Of training by gradient alone: minutes or steps, the budget; rate, of learning; losses: what
    each counts, by name, those of `Losses` where nothing is said; train_layers: whether the
    auxiliary's layers are trained, too; save_minutes: between writing the state.
    """

    keep: float | tuple[int, ...] | None = None
    layout: Layout | None = None
    features: Features = "hidden"
    method: Method = "ridge"
    name: str = ""
    tokens: int = 100_000
    length: int = 512
    held_out: int = 32
    exact_first: int = 4
    measured: int = 16
    seed: int = 0
    device: str = "auto"
    whole: bool = False
    minutes: float | None = None
    steps: int | None = None
    rate: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    train_layers: bool = False
    save_minutes: float | None = None

    @property
    def trains(self) -> bool:
        """Whether the method trains by gradient."""
        return self.method.endswith("distil")

    @property
    def weights(self) -> Losses:
        """What each loss counts."""
        return Losses(**self.losses)


def check_options(options: PredictorOptions, has_sibling: bool) -> None:
    """Refuse what no model can have. has_sibling: whether the auxiliary is another model.

    Raises:
        OptionError: a value cannot be, or would say nothing.
    """
    if options.method not in METHODS:
        raise OptionError(f"--method {options.method} (there are: {', '.join(METHODS)})")
    if options.trains:
        _check_training(options)
    else:
        _check_no_training(options)
    _check_auxiliary(options, has_sibling)
    _check_text(options)
    if options.name and not PART_NAME.fullmatch(options.name):
        raise OptionError(
            f"--name {options.name[:80]!r}: names are up to 64 letters, digits, '.', '_' and '-', "
            "and begin with one of the first two"
        )


def check_layers(options: PredictorOptions, count: int) -> None:
    """Refuse layers that a model with `count` of them does not have.

    Raises:
        OptionError: it lacks a layer, or too few would stay.
    """
    if isinstance(options.keep, tuple):
        keep = options.keep
        if list(keep) != sorted({k for k in keep if 0 <= k < count}) or len(keep) < 2:
            raise OptionError(
                f"--keep {','.join(map(str, keep))}: name two layers or more, ascending, of the "
                f"{count} that the model has (0 to {count - 1})"
            )
    else:
        share = SHARE if options.keep is None else options.keep
        if len(kept_layers(count, share)) < 2:
            raise OptionError(f"--keep {share:g} of {count} layers is too few; keep more")


def _check_training(options: PredictorOptions) -> None:
    if (options.minutes is None) == (options.steps is None):
        raise OptionError(f"--method {options.method} trains: give it --budget or --steps, one")
    for name, value in (
        ("--budget", options.minutes),
        ("--steps", options.steps),
        ("--rate", options.rate),
    ):
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"{name} {value:g} must be above 0")
    if options.save_minutes is not None and not 0 <= options.save_minutes < math.inf:
        raise OptionError(f"--save-minutes {options.save_minutes:g} must be 0 or more")
    known = [each.name for each in fields(Losses)]
    for name, weight in options.losses.items():
        if name not in known:
            raise OptionError(f"--loss {name} (there are: {', '.join(known)})")
        if not 0 <= weight < math.inf:
            raise OptionError(f"--loss {name}={weight:g} must be 0 or more")
    if not any(getattr(options.weights, name) for name in known):
        raise OptionError("--loss: all losses count 0; nothing would be learnt")


def _check_no_training(options: PredictorOptions) -> None:
    given = {
        "--budget": options.minutes,
        "--steps": options.steps,
        "--rate": options.rate,
        "--loss": options.losses or None,
        "--train-layers": options.train_layers or None,
        "--save-minutes": options.save_minutes,
    }
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        raise OptionError(
            f"--method {options.method} does not train by gradient, so {', '.join(unused)} would "
            "say nothing; leave it out, or use --method ridge-distil or distil"
        )


def _check_auxiliary(options: PredictorOptions, has_sibling: bool) -> None:
    if has_sibling and (options.keep is not None or options.layout is not None):
        raise OptionError(
            "--keep and --layout choose layers of the model, and --sibling takes another model; "
            "give one of them"
        )
    if isinstance(options.keep, tuple) and options.layout is not None:
        raise OptionError(
            f"--layout {options.layout} says which layers a share is, and --keep names the layers; "
            "leave one out"
        )
    if isinstance(options.keep, float) and options.keep not in FRACTIONS:
        known = ", ".join(f"{fraction:g}" for fraction in FRACTIONS)
        raise OptionError(f"--keep {options.keep:g} is none of {known}; or name layers")
    if options.method == "none" and options.features != "hidden":
        raise OptionError(
            "--method none takes the target's projections of the stream: use --features hidden"
        )
    if options.method in ("none", "distil") and options.features == "hidden" and has_sibling:
        raise OptionError(
            f"--method {options.method} starts from the target's projections of its own stream, "
            "which a sibling does not have; use --method ridge or ridge-distil, or distil with "
            "--features kv"
        )


def _check_text(options: PredictorOptions) -> None:
    if options.length < _LEAST_LENGTH:
        raise OptionError(f"--length {options.length} must be {_LEAST_LENGTH} or more")
    if options.tokens < options.length:
        raise OptionError(f"--tokens {options.tokens} must be --length at least")
    if options.seed < 0:
        raise OptionError(f"--seed {options.seed} must be 0 or more")
    if not 1 <= options.measured <= options.held_out:
        raise OptionError(f"--measure {options.measured} must be 1 to --held-out")
    if not 0 <= options.exact_first < options.length // 4:
        raise OptionError(f"--first {options.exact_first} must be below a quarter of --length")
