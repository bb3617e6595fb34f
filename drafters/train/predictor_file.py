"""From a checkpoint and text to the file of a trained predictor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from quickdraft import strict_json
from quickdraft.drafters.train.large_tokens import enlarging_layers
from quickdraft.drafters.train.loop import LoopOptions, pick_device, pick_dtype, train
from quickdraft.drafters.train.own_maps import own_maps
from quickdraft.drafters.train.prediction_quality import measure
from quickdraft.drafters.train.predictor import Fitted, Plan, fit_predictor, pruned_auxiliary
from quickdraft.drafters.train.predictor_distil import (
    Losses,
    PredictorTrainee,
    prepare_distillation,
    trained_tensors,
)
from quickdraft.drafters.train.streams import LayerRunner
from quickdraft.drafters.train.text import Rows, make_rows, read_documents
from quickdraft.errors import Cancelled, OptionError
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.layer_maps import FRACTIONS, Features, Layout, kept_layers, pruned_sources
from quickdraft.export.prediction import KIND, PredictionSettings, Pruned, read_prediction
from quickdraft.export.trained import Target, write_trained
from quickdraft.export.weights import dense_weight
from quickdraft.types import Progress

Method = Literal["none", "ridge", "distil", "ridge-distil"]
METHODS: tuple[Method, ...] = ("ridge", "ridge-distil", "distil", "none")
_STEP_TOKENS = 2048
"""Of a step of training by gradient."""
_PROBED, _PROBED_LENGTH = 8, 64
"""Rows, and of how many tokens, that show which layers make the first token large."""


@dataclass(frozen=True)
class PredictorOptions:
    """How a predictor is made.

    keep: a share of the target's layers (a key of layer_maps.FRACTIONS), or the layers themselves.
    layout: which layers a share is, see layer_maps.kept_layers.
    features: what maps read. method: how maps are found: `ridge`; `none` for the target's own
    projections; `ridge-distil` and `distil` for training by gradient that starts from these, for
    `minutes` or `steps` at the learning rate `rate`, of the auxiliary's layers too if
    `train_layers`. name: of the parts; made of the others where it is empty. tokens: of text to fit
    to. length: of a row of text. held_out: rows to choose penalties by and to measure on.
    exact_first: first tokens of a prompt that the target prefills itself. measured: how many of the
    held-out rows continuations are measured on.
    """

    keep: float | tuple[int, ...] = 0.25
    layout: Layout = "graded"
    features: Features = "hidden"
    method: Method = "ridge"
    name: str = ""
    tokens: int = 100_000
    length: int = 512
    held_out: int = 32
    exact_first: int = 4
    measured: int = 16
    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
    rate: float = 2e-4
    train_layers: bool = False


@dataclass(frozen=True)
class Made:
    """What came of it: the card of the file."""

    file: Path
    card: Mapping[str, Any]


def make_predictor(
    checkpoint: Checkpoint,
    data: Sequence[Path],
    out: Path,
    options: PredictorOptions,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Made:
    """Fit a predictor for a checkpoint and write it to `out`, with what it costs in its card.

    A call that was interrupted goes on from the folder `OUT.work`, which is gone afterwards.

    Raises:
        OptionError: an option has a value it cannot have. InputError: bad or too little text.
        CheckpointError, UnsupportedModel: the model. Cancelled: `stop` said so. StorageError.
    """
    target = Target.of(checkpoint)
    spec = target.spec
    _check(options, len(spec.layers))
    rows, dtype = _rows(checkpoint, data, options), pick_dtype(torch.device("cpu"))
    wanted = _wanted(target, rows, options, dtype)
    settings = _settings(options, len(spec.layers), wanted)
    assert isinstance(settings.auxiliary, Pruned)  # siblings are made elsewhere  # noqa: S101
    keep = settings.auxiliary.keep
    plan = Plan(
        target,
        *pruned_auxiliary(target, keep),
        keep,
        options.features,
        settings.sources,
        options.exact_first,
    )
    identity = {
        "settings": strict_json.encode(settings),
        "target": checkpoint.source.fingerprint,
        "text": rows.sha256,
        "dtype": str(dtype),
    }
    work = out.with_name(f"{out.name}.work")
    if options.method in ("none", "distil"):
        fitted = Fitted(own_maps(target, settings.sources), {}, 0.0)
    else:
        fitted = fit_predictor(
            plan, rows, work, identity=identity, dtype=dtype, progress=progress, stop=stop
        )
    if options.method.endswith("distil"):
        fitted = _distil(target, settings, fitted, rows, options, work, progress, stop)
    card = _card(checkpoint, target, settings, fitted, rows, options)
    write_trained(
        out,
        kind=KIND,
        target=checkpoint.source.fingerprint,
        settings=strict_json.encode(settings),
        tensors=fitted.tensors,
        card=card,
    )
    shutil.rmtree(work, ignore_errors=True)
    return Made(out, card)


def _card(
    checkpoint: Checkpoint,
    target: Target,
    settings: PredictionSettings,
    fitted: Fitted,
    rows: Rows,
    options: PredictorOptions,
) -> dict[str, Any]:
    """What people should know of the file."""
    assert isinstance(settings.auxiliary, Pruned)  # noqa: S101
    keep = list(settings.auxiliary.keep)
    return {
        "kind": KIND,
        "model": checkpoint.source.name,
        "licence": checkpoint.source.licence,
        "recipe": f"{options.method}, {options.features} features, layers {keep}",
        "options": {**asdict(options), "keep": keep},
        "text": {"sha256": rows.sha256, "tokens": int(rows.training.size)},
        "seconds": round(fitted.seconds, 1),
        "errors": fitted.report,
        "continuations": _measure(target, settings, fitted, rows, options),
    }


def _check(options: PredictorOptions, count: int) -> None:
    """Refuse options that a model with `count` layers cannot have."""
    if options.method not in METHODS:
        raise OptionError(f"--method {options.method} (there are: {', '.join(METHODS)})")
    if options.method.endswith("distil") != (options.minutes != options.steps):
        raise OptionError(
            f"--method {options.method}: give --minutes or --steps to the methods that train by "
            "gradient, distil and ridge-distil, and to these alone"
        )
    if options.method in ("none", "distil") and options.features != "hidden":
        raise OptionError(f"--method {options.method} takes the stream: use --features hidden")
    if not 1 <= options.measured <= options.held_out:
        raise OptionError(f"--measure {options.measured} must be 1 to --held-out")
    if not 0 <= options.exact_first < options.length // 2:
        raise OptionError(f"--first {options.exact_first} must be below half of --length")
    if isinstance(options.keep, tuple):
        keep = options.keep
        if list(keep) != sorted({k for k in keep if 0 <= k < count}) or len(keep) < 2:
            raise OptionError(
                f"--keep {','.join(map(str, keep))}: name two layers or more, ascending, of the "
                f"{count} that the model has (0 to {count - 1})"
            )
    elif options.keep not in FRACTIONS:
        known = ", ".join(f"{fraction:g}" for fraction in FRACTIONS)
        raise OptionError(f"--keep {options.keep:g} is none of {known}; or name layers")
    elif len(kept_layers(count, options.keep)) < 2:
        raise OptionError(f"--keep {options.keep:g} of {count} layers is too few; keep more")


def _wanted(
    target: Target, rows: Rows, options: PredictorOptions, dtype: torch.dtype
) -> tuple[int, ...]:
    """Layers that an auxiliary should not lack."""
    if options.layout != "graded" or isinstance(options.keep, tuple):
        return ()
    runner = LayerRunner(target.spec, target.weights, dtype)
    return enlarging_layers(runner, rows.held_out[:_PROBED, :_PROBED_LENGTH])


def _settings(options: PredictorOptions, count: int, wanted: tuple[int, ...]) -> PredictionSettings:
    """wanted: layers that an auxiliary should not lack."""
    if isinstance(options.keep, tuple):
        keep, share = options.keep, f"{len(options.keep)}of{count}"
    else:
        keep = kept_layers(count, options.keep, options.layout, wanted)
        share = f"{options.keep:g}-{options.layout}"
    return PredictionSettings(
        name=options.name or f"{share}-{options.features}-{options.method}",
        auxiliary=Pruned("pruned", keep),
        features=options.features,
        sources=pruned_sources(options.features, count, keep, len(keep) - 1),
        exact_first=options.exact_first,
        method=options.method,
    )


def _rows(checkpoint: Checkpoint, data: Sequence[Path], options: PredictorOptions) -> Rows:
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.tokenizer_json.decode("utf-8"))
    bos = checkpoint.tokenizer.bos_token_id

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        starts = checkpoint.tokenizer.add_bos and bos is not None
        return [bos, *ids] if starts and bos is not None else ids

    return make_rows(
        read_documents(data),
        encode,
        length=options.length,
        tokens=options.tokens,
        held_out=options.held_out,
        seed=options.seed,
    )


def _distil(
    target: Target,
    settings: PredictionSettings,
    fitted: Fitted,
    rows: Rows,
    options: PredictorOptions,
    work: Path,
    progress: Progress | None,
    stop: Callable[[], bool],
) -> Fitted:
    """Train what was fitted; the state is in the folder `work`."""
    loop = LoopOptions(
        minutes=options.minutes, steps=options.steps, rate=options.rate, seed=options.seed
    )
    device = pick_device(loop.device)
    module = prepare_distillation(
        target,
        settings,
        fitted.tensors,
        losses=Losses(),
        train_layers=options.train_layers,
        dtype=pick_dtype(device),
        device=device,
    )
    work.mkdir(parents=True, exist_ok=True)
    outcome = train(
        PredictorTrainee(module, rows, max(1, _STEP_TOKENS // options.length), options.seed),
        loop,
        file=work / "training.safetensors",
        identity={"settings": strict_json.encode(settings), "text": rows.sha256},
        progress=lambda status: (
            progress("train", int(1000 * status.share), 1000) if progress else None
        ),
        stop=stop,
    )
    if not outcome.finished:
        raise Cancelled("training was stopped; the same command goes on where it was")
    report = {
        **fitted.report,
        "training": {
            "steps": outcome.steps,
            "losses": [dict(point.figures) for point in outcome.history.held_out],
        },
    }
    seconds = fitted.seconds + outcome.seconds
    return Fitted(trained_tensors(module, settings), report, seconds)


def _measure(
    target: Target,
    settings: PredictionSettings,
    fitted: Fitted,
    rows: Rows,
    options: PredictorOptions,
) -> Mapping[str, Any]:
    weights = WeightMap({name: dense_weight(name, v) for name, v in fitted.tensors.items()})
    prediction = read_prediction(settings, weights, replace(target))
    found = measure(
        target,
        prediction,
        rows.held_out[: options.measured],
        prefix=options.length // 2,
        exact_first=options.exact_first,
        dtype=pick_dtype(torch.device("cpu")),
    )
    return asdict(found)
