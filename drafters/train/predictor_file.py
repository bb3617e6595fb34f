"""From a checkpoint and text to the file of a trained predictor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraft import strict_json
from quickdraft.drafters.train.history import History
from quickdraft.drafters.train.large_tokens import enlarging_layers
from quickdraft.drafters.train.loop import (
    LoopOptions,
    first_alone,
    is_first_process,
    pick_device,
    pick_dtype,
    train,
)
from quickdraft.drafters.train.own_maps import copied_maps, own_maps
from quickdraft.drafters.train.prediction_quality import measure
from quickdraft.drafters.train.predictor import Fitted, Plan, fit_predictor, pruned_auxiliary
from quickdraft.drafters.train.predictor_distil import (
    PredictorTrainee,
    prepare_distillation,
    trained_tensors,
)
from quickdraft.drafters.train.predictor_options import (
    LAYOUT,
    RATE,
    SAVE_MINUTES,
    SHARE,
    PredictorOptions,
    check_layers,
    check_options,
)
from quickdraft.drafters.train.siblings import SiblingModel
from quickdraft.drafters.train.streams import LayerRunner
from quickdraft.drafters.train.text import Rows, encoder_of, make_rows, read_documents
from quickdraft.errors import Cancelled
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.layer_maps import kept_layers, pruned_sources, sibling_sources
from quickdraft.export.prediction import (
    KIND,
    PredictionSettings,
    Pruned,
    Sibling,
    read_prediction,
)
from quickdraft.export.trained import Target, write_trained
from quickdraft.export.weights import dense_weight
from quickdraft.types import Progress

_STEP_TOKENS = 2048
"""Of a step of training by gradient."""
_PROBED, _PROBED_LENGTH = 8, 64
"""Rows, and of how many tokens, that show which layers make the first token large."""


@dataclass(frozen=True)
class Made:
    """What came of it: the card of the file, and what was measured while it was trained. file: None
    in all processes but the first, which writes it."""

    file: Path | None
    card: Mapping[str, Any]
    history: History


@dataclass(frozen=True)
class _Job:
    """What is to be made, of what. tensors: of the file, that nothing is found for: those of a
    sibling."""

    checkpoint: Checkpoint
    target: Target
    sibling: SiblingModel | None
    rows: Rows
    options: PredictorOptions
    settings: PredictionSettings
    work: Path
    progress: Progress | None
    stop: Callable[[], bool]
    device: torch.device
    dtype: torch.dtype
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change between a run and one that goes on from it."""
        return {
            "settings": strict_json.encode(self.settings),
            "target": self.checkpoint.source.fingerprint,
            "text": self.rows.sha256,
            "dtype": str(self.dtype),
            **(self.sibling.identity if self.sibling is not None else {}),
        }


def make_predictor(
    checkpoint: Checkpoint,
    data: Sequence[Path],
    out: Path,
    options: PredictorOptions,
    *,
    sibling: Checkpoint | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Made:
    """Fit a predictor for a checkpoint and write it to `out`, with what it costs in its card.

    sibling: the model that is its auxiliary, in place of layers of the target. A call that was
    interrupted goes on from the folder `OUT.work`, which is gone afterwards. Where a launcher
    started several processes, all train and the first one does the rest.

    Raises:
        OptionError: an option has a value it cannot have. InputError: bad or too little text, or
        a sibling with another tokenizer. CheckpointError, UnsupportedModel: a model. Cancelled:
        `stop` said so. StorageError.
    """
    check_options(options, sibling is not None)
    device = pick_device(options.device)
    target = Target.of(checkpoint)
    if sibling is None:
        check_layers(options, len(target.spec.layers))
    model = None if sibling is None else SiblingModel.of(sibling, checkpoint)
    rows, dtype = _rows(checkpoint, data, options), pick_dtype(device)
    job = _Job(
        checkpoint,
        target,
        model,
        rows,
        options,
        _settings(target, model, rows, options, dtype, device),
        work_folder(out),
        progress,
        stop,
        device,
        dtype,
        {} if model is None else model.tensors(),
    )
    fitted, history = _start(job), History()
    if options.trains:
        fitted, history = _distil(job, fitted)
    if not is_first_process():
        return Made(None, {}, history)
    fitted = replace(fitted, tensors={**job.tensors, **fitted.tensors})
    card = _card(job, fitted)
    write_trained(
        out,
        kind=KIND,
        target=checkpoint.source.fingerprint,
        settings=strict_json.encode(job.settings),
        tensors=fitted.tensors,
        card=card,
    )
    shutil.rmtree(job.work, ignore_errors=True)
    return Made(out, card, history)


def work_folder(out: Path) -> Path:
    """Where the state of a predictor that is being made for `out` is kept."""
    return out.with_name(f"{out.name}.work")


def _start(job: _Job) -> Fitted:
    """Maps and bridges as far as no gradient is needed."""
    spec, sources, options = job.target.spec, job.settings.sources, job.options
    auxiliary = job.settings.auxiliary
    if job.sibling is not None:
        keep, parts = None, (job.sibling.target.spec, job.sibling.target.weights)
    else:
        assert isinstance(auxiliary, Pruned)  # without a sibling  # noqa: S101
        keep, parts = auxiliary.keep, pruned_auxiliary(job.target, auxiliary.keep)
    if options.method in ("none", "distil"):
        is_stream = options.features == "hidden"
        maps = own_maps(job.target, sources) if is_stream else copied_maps(spec, parts[0], sources)
        return Fitted(maps, {}, 0.0)
    plan = Plan(job.target, *parts, keep, options.features, sources, options.exact_first)
    return first_alone(
        lambda: fit_predictor(
            plan,
            job.rows,
            job.work,
            identity=job.identity,
            dtype=job.dtype,
            device=job.device,
            progress=job.progress,
            stop=job.stop,
        )
    )


def _card(job: _Job, fitted: Fitted) -> dict[str, Any]:
    """What people should know of the file."""
    options, auxiliary = job.options, job.settings.auxiliary
    card: dict[str, Any] = {
        "kind": KIND,
        "model": job.checkpoint.source.name,
        "licence": job.checkpoint.source.licence,
    }
    if job.sibling is not None:
        source = job.sibling.checkpoint.source
        card |= {"sibling": source.name, "sibling_licence": source.licence}
        of, chosen = f"sibling {source.name}", {}
    else:
        assert isinstance(auxiliary, Pruned)  # without a sibling  # noqa: S101
        chosen = {"keep": list(auxiliary.keep)}
        of = f"layers {chosen['keep']}"
    return {
        **card,
        "recipe": f"{options.method}, {options.features} features, {of}",
        "options": {**asdict(options), **chosen, "losses": asdict(options.weights)},
        "device": job.device.type,
        "text": {"sha256": job.rows.sha256, "tokens": int(job.rows.training.size)},
        "seconds": round(fitted.seconds, 1),
        "errors": fitted.report,
        "continuations": _measure(job, fitted),
    }


def _settings(
    target: Target,
    sibling: SiblingModel | None,
    rows: Rows,
    options: PredictorOptions,
    dtype: torch.dtype,
    device: torch.device,
) -> PredictionSettings:
    count = len(target.spec.layers)
    auxiliary: Pruned | Sibling
    if sibling is not None:
        auxiliary = Sibling("sibling", dict(sibling.checkpoint.config))
        sources = sibling_sources(count, len(sibling.target.spec.layers))
        share = "sibling"
    else:
        layout = options.layout or LAYOUT
        if isinstance(options.keep, tuple):
            keep, share = options.keep, f"{len(options.keep)}of{count}"
        else:
            wanted: tuple[int, ...] = ()
            if layout == "graded":
                runner = LayerRunner(target.spec, target.weights, dtype, device)
                wanted = enlarging_layers(runner, rows.held_out[:_PROBED, :_PROBED_LENGTH])
            part = SHARE if options.keep is None else options.keep
            keep, share = kept_layers(count, part, layout, wanted), f"{part:g}-{layout}"
        auxiliary = Pruned("pruned", keep)
        sources = pruned_sources(options.features, count, keep, len(keep) - 1)
    return PredictionSettings(
        name=options.name or f"{share}-{options.features}-{options.method}",
        auxiliary=auxiliary,
        features=options.features,
        sources=sources,
        exact_first=options.exact_first,
        method=options.method,
        whole=options.whole,
    )


def _rows(checkpoint: Checkpoint, data: Sequence[Path], options: PredictorOptions) -> Rows:
    return make_rows(
        read_documents(data, checkpoint.source.fingerprint),
        encoder_of(checkpoint),
        length=options.length,
        tokens=options.tokens,
        held_out=options.held_out,
        seed=options.seed,
    )


def _distil(job: _Job, fitted: Fitted) -> tuple[Fitted, History]:
    """Train what was fitted; the state is in the folder `work`."""
    options, progress = job.options, job.progress
    minutes = SAVE_MINUTES if options.save_minutes is None else options.save_minutes
    loop = LoopOptions(
        minutes=options.minutes,
        steps=options.steps,
        rate=options.rate or RATE,
        seed=options.seed,
        device=options.device,
        save_seconds=60 * minutes,
    )
    module = prepare_distillation(
        job.target,
        job.settings,
        {**job.tensors, **fitted.tensors},
        losses=options.weights,
        train_layers=options.train_layers,
        dtype=job.dtype,
        device=job.device,
    )
    job.work.mkdir(parents=True, exist_ok=True)
    rows = max(1, _STEP_TOKENS // options.length)
    outcome = train(
        PredictorTrainee(module, job.rows, rows, options.seed),
        loop,
        file=job.work / "training.safetensors",
        identity={
            **job.identity,
            "losses": asdict(options.weights),
            "train_layers": options.train_layers,
        },
        progress=lambda now: progress("train", int(1000 * now.share), 1000) if progress else None,
        stop=job.stop,
    )
    if not outcome.finished:
        raise Cancelled("training was stopped; the same command goes on where it was")
    losses = [dict(point.figures) for point in outcome.history.held_out]
    report = {**fitted.report, "training": {"steps": outcome.steps, "losses": losses}}
    tensors = trained_tensors(module, job.settings)
    return Fitted(tensors, report, fitted.seconds + outcome.seconds), outcome.history


def _measure(job: _Job, fitted: Fitted) -> Mapping[str, Any]:
    named = fitted.tensors.items()
    weights = WeightMap({name: dense_weight(name, np.asarray(v)) for name, v in named})
    found = measure(
        job.target,
        read_prediction(job.settings, weights, job.target),
        job.rows.held_out[: job.options.measured],
        prefix=job.options.length // 2,
        exact_first=job.options.exact_first,
        dtype=job.dtype,
        device=job.device,
    )
    return asdict(found)
