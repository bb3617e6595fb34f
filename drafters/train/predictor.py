"""Fitting a predictor of the KV cache in closed form: bridges and maps, one layer after another.

The auxiliary's stream and the target's go through the text side by side. Where the auxiliary lacks
layers, a bridge is fitted from its stream to the target's, and the auxiliary goes on from there, so
that every fit sees what the fits before it left. Each map is fitted to the target's keys and values
from the stream that the predictor will really have. Ours: the paper (arXiv 2410.08391) trains by
gradient alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from quickdraft.drafters.train.ridge import NormalEquations, solve_ridge
from quickdraft.drafters.train.streams import LayerRunner, StreamFiles, batches
from quickdraft.drafters.train.text import Rows
from quickdraft.errors import Cancelled, OptionError
from quickdraft.export.architectures.decoder import DecoderSpec, DecoderWeights
from quickdraft.export.checkpoints.safetensors_file import read_metadata
from quickdraft.export.layer_maps import Features, Sources
from quickdraft.export.trained import Target
from quickdraft.hashes import write_atomically
from quickdraft.types import Progress

Floats = NDArray[np.float32]
_Sums = tuple[NormalEquations, NormalEquations]
"""Of training and of held-out rows."""
_REPORT = "report"


@dataclass(frozen=True)
class Plan:
    """What is to be fitted.

    spec, weights: of the auxiliary. keep: the layers of the target that it has, None for a
    sibling, which gets no bridges. sources: as in PredictionSettings. exact_first: first rows of a
    text that no map has to fit.
    """

    target: Target
    spec: DecoderSpec
    weights: DecoderWeights
    keep: tuple[int, ...] | None
    features: Features
    sources: Sources
    exact_first: int

    def goal(self, passed: int) -> int | None:
        """The target's stream that the auxiliary's should be after `passed` layers and a bridge;
        None where there is no bridge: in a sibling, and up to the first layer that is left out."""
        if self.keep is None or self.keep[: passed + 1] == tuple(range(passed + 1)):
            return None
        return [*self.keep[1:], len(self.target.spec.layers)][passed - 1]


@dataclass(frozen=True)
class Fitted:
    """tensors: of the trained file. report: errors by bridge and map, for the card. seconds: of
    work, over all runs."""

    tensors: Mapping[str, NDArray[Any]]
    report: Mapping[str, Any]
    seconds: float


def pruned_auxiliary(target: Target, keep: Sequence[int]) -> tuple[DecoderSpec, DecoderWeights]:
    """The layers `keep` of the target as a decoder."""
    spec = replace(target.spec, layers=tuple(target.spec.layers[k] for k in keep))
    return spec, replace(target.weights, layers=tuple(target.weights.layers[k] for k in keep))


def fit_predictor(
    plan: Plan,
    rows: Rows,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008  # does not change
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Fit bridges and maps to rows of text.

    folder: for streams and what is done so far; a call that was interrupted goes on from there.
    identity: plain JSON values that say what is fitted to what.

    Raises:
        OptionError: the folder is that of another fit.
        Cancelled: `stop` said so; the same call goes on.
        StorageError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_identity(folder / "identity.json", identity)
    return _Fit(plan, rows, folder, dtype, device, progress or _silent, stop).run()


@dataclass
class _Fit:
    plan: Plan
    rows: Rows
    folder: Path
    dtype: torch.dtype
    device: torch.device
    progress: Progress
    stop: Callable[[], bool]
    done: int = 0
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan, target = self.plan, self.plan.target
        # Held-out rows come first.
        self.tokens = np.concatenate([self.rows.held_out, self.rows.training])
        self.held = len(self.rows.held_out)
        count, length = self.tokens.shape
        self.of_target = StreamFiles(self.folder, (count, length, target.spec.hidden_size))
        self.of_auxiliary = StreamFiles(self.folder, (count, length, plan.spec.hidden_size))
        self.target = LayerRunner(target.spec, target.weights, self.dtype, self.device)
        self.auxiliary = LayerRunner(plan.spec, plan.weights, self.dtype, self.device)
        self.parts = list(batches(count, length))
        layers, own = len(target.spec.layers), len(plan.spec.layers)
        # The target's layers, the auxiliary's, the bridges' second pass, and the maps.
        self.total = (layers + 2 * own + layers) * len(self.parts)

    def run(self) -> Fitted:
        """All stages: stage p has what reads the auxiliary after p of its layers."""
        seconds = 0.0
        for stage in range(len(self.plan.spec.layers) + 1):
            file = self.folder / f"stage-{stage}.safetensors"
            if not file.is_file():
                started = time.monotonic()
                self._save(file, *self._stage(stage), started)
            seconds += self._take(file)
            self._clean(stage)
        self.progress("fit", self.total, self.total)
        return Fitted(self.tensors, self.report, seconds)

    def _stage(self, stage: int) -> tuple[dict[str, Floats], dict[str, Any]]:
        tensors: dict[str, Floats] = {}
        report: dict[str, Any] = {}
        if stage == 0:
            self._start()
        else:
            self._cross(stage, tensors, report)
        groups: dict[tuple[int, ...], list[int]] = {}
        for layer, sources in enumerate(self.plan.sources):
            if max(sources) == stage:
                groups.setdefault(sources, []).append(layer)
        for sources, layers in groups.items():
            self._map(sources, layers, tensors, report)
        return tensors, report

    def _start(self) -> None:
        """The embeddings."""
        for files, runner, name in (
            (self.of_target, self.target, "target-0"),
            (self.of_auxiliary, self.auxiliary, "auxiliary-0"),
        ):
            if name not in files:
                with files.write(name) as out:
                    for part in self.parts:
                        out[part] = runner.embed(self.tokens[part])

    def _advance(self, goal: int) -> Floats:
        """The target's stream after `goal` layers."""
        begin = max(i for i in range(goal + 1) if f"target-{i}" in self.of_target)
        for index in range(begin, goal):
            before = self.of_target.read(f"target-{index}")
            with self.of_target.write(f"target-{index + 1}") as out:
                for part in self.parts:
                    self._step()
                    out[part] = self.target.layer(index, before[part])
        return self.of_target.read(f"target-{goal}")

    def _cross(self, stage: int, tensors: dict[str, Floats], report: dict[str, Any]) -> None:
        """Take the auxiliary one layer on, and over the bridge behind it."""
        goal = self.plan.goal(stage)
        raw = "unbridged" if goal is not None else f"auxiliary-{stage}"
        wanted = None if goal is None else self._advance(goal)
        width = self.plan.spec.hidden_size
        sums = _two(width, width)
        before = self.of_auxiliary.read(f"auxiliary-{stage - 1}")
        with self.of_auxiliary.write(raw) as out:
            for part in self.parts:
                self._step()
                y = self.auxiliary.layer(stage - 1, before[part])
                out[part] = y
                if wanted is not None:
                    x = self.auxiliary.normed(y)
                    self._count(sums, part, x, wanted[part] - y, wanted[part])
        if wanted is None:
            return
        found = solve_ridge(*sums, {"stream": slice(0, width)})
        tensors[f"bridge.{stage - 1}.weight"] = found.weight
        tensors[f"bridge.{stage - 1}.bias"] = found.bias
        report["bridges"] = {str(stage - 1): _rounded(found.errors["stream"])}
        unbridged = self.of_auxiliary.read(raw)
        with self.of_auxiliary.write(f"auxiliary-{stage}") as out:
            for part in self.parts:
                self._step()
                y = np.asarray(unbridged[part])
                out[part] = y + self.auxiliary.normed(y) @ found.weight.T + found.bias
        self.of_auxiliary.drop(raw)

    def _count(
        self,
        sums: _Sums,
        part: slice,
        x: Floats,
        y: Floats,
        wanted: Floats,
    ) -> None:
        """Count in rows, held-out ones apart, each by its relative error: a first token may be a
        hundred times as large as the others."""
        weights = 1 / np.maximum((wanted * wanted).mean(-1), 1e-12)
        for row in range(part.start, part.stop):
            at = row - part.start
            sums[row < self.held].add(x[at], y[at], weights[at])

    def _map(
        self,
        sources: tuple[int, ...],
        layers: list[int],
        tensors: dict[str, Floats],
        report: dict[str, Any],
    ) -> None:
        """Fit keys and values of the layers that read the same sources."""
        streams = [self.of_auxiliary.read(f"auxiliary-{source}") for source in sources]
        self._advance(max(layers))
        # Keys and values side by side where they read the same, else apart.
        hidden = self.plan.features == "hidden"
        kinds = (("key", "value"),) if hidden else (("key",), ("value",))
        columns = {kind: _columns(self.plan.target.spec, layers, kind) for kind in kinds}
        widths = [_width(self.plan, source) for source in sources]
        sums = {kind: _two(sum(widths), _end(columns[kind])) for kind in kinds}
        for part in self.parts:
            rows = {layer: self._wanted(layer, part) for layer in layers}
            read = [
                self._features(source, x[part]) for source, x in zip(sources, streams, strict=True)
            ]
            for kind in kinds:
                x = np.concatenate([each[kind[0]] for each in read], -1)
                y = np.concatenate([rows[layer][name] for layer, name in columns[kind]], -1)
                self._count_maps(sums[kind], part, x, y)
        for kind in kinds:
            groups = {f"{layer}.{name}": cut for (layer, name), cut in columns[kind].items()}
            found = solve_ridge(*sums[kind], groups)
            report.setdefault("maps", {}).update(
                {group: _rounded(error) for group, error in found.errors.items()}
            )
            for (layer, name), cut in columns[kind].items():
                tensors[f"map.{layer}.{name}_bias"] = found.bias[cut]
                begin = 0
                for source, width in zip(sources, widths, strict=True):
                    block = found.weight[cut, begin : begin + width]
                    tensors[f"map.{layer}.{source}.{name}"] = np.ascontiguousarray(block)
                    begin += width

    def _wanted(self, layer: int, part: slice) -> dict[str, Floats]:
        """The target's own keys and values, as projected."""
        self._step()
        x = self.of_target.read(f"target-{layer}")[part]
        keys, values = self.target.project(layer, x)
        return {"key": keys, "value": values}

    def _features(self, source: int, x: Floats) -> dict[str, Floats]:
        """What the maps of keys and of values read of a source."""
        if self.plan.features == "hidden":
            normed = self.auxiliary.normed(x)
            return {"key": normed, "value": normed}
        keys, values = self.auxiliary.project(source, x)
        return {"key": keys, "value": values}

    def _count_maps(self, sums: _Sums, part: slice, x: Floats, y: Floats) -> None:
        first = self.plan.exact_first
        for row in range(part.start, part.stop):
            at = row - part.start
            sums[row < self.held].add(x[at, first:], y[at, first:])

    def _clean(self, stage: int) -> None:
        """Drop the streams that no later stage reads."""
        later = [sources for sources in self.plan.sources if max(sources) > stage]
        needed = {source for sources in later for source in sources}
        for passed in range(stage):
            if passed not in needed:
                self.of_auxiliary.drop(f"auxiliary-{passed}")
        last = len(self.plan.target.spec.layers)
        unread = {i for i, sources in enumerate(self.plan.sources) if max(sources) > stage}
        furthest = max((i for i in range(last + 1) if f"target-{i}" in self.of_target), default=0)
        for index in range(furthest):
            if index not in unread:
                self.of_target.drop(f"target-{index}")

    def _save(
        self, file: Path, tensors: dict[str, Floats], report: dict[str, Any], started: float
    ) -> None:
        described = {**report, "seconds": time.monotonic() - started}
        # A stage may have nothing; a file of safetensors needs no tensor.
        write_atomically(file, save(tensors, {_REPORT: json.dumps(described)}))

    def _take(self, file: Path) -> float:
        """What a stage found; its seconds."""
        data = file.read_bytes()
        self.tensors.update(load(data))
        report = json.loads(read_metadata(file)[_REPORT])
        for name in ("bridges", "maps"):
            self.report.setdefault(name, {}).update(report.get(name, {}))
        return float(report["seconds"])

    def _step(self) -> None:
        """After each piece of work: tell, and stop if asked to."""
        self.done += 1
        self.progress("fit", min(self.done, self.total), self.total)
        if self.stop():
            raise Cancelled("the fit was stopped; the same command goes on where it was")


def _columns(
    spec: DecoderSpec, layers: Sequence[int], names: Sequence[str]
) -> dict[tuple[int, str], slice]:
    """Where the keys and values of layers stand side by side."""
    found: dict[tuple[int, str], slice] = {}
    begin = 0
    for layer in layers:
        for name in names:
            width = spec.layers[layer].num_kv_heads * spec.head_dim
            found[layer, name] = slice(begin, begin + width)
            begin += width
    return found


def _two(inputs: int, outputs: int) -> _Sums:
    return NormalEquations(inputs, outputs), NormalEquations(inputs, outputs)


def _end(columns: Mapping[tuple[int, str], slice]) -> int:
    return max(int(cut.stop) for cut in columns.values())


def _width(plan: Plan, source: int) -> int:
    if plan.features == "hidden":
        return plan.spec.hidden_size
    return plan.spec.layers[source].num_kv_heads * plan.spec.head_dim


def _rounded(error: float) -> float:
    return float(f"{error:.4g}")


def _check_identity(file: Path, identity: Mapping[str, Any]) -> None:
    text = json.dumps(identity, sort_keys=True)
    if not file.is_file():
        write_atomically(file, text.encode())
    elif file.read_text(encoding="utf-8") != text:
        raise OptionError(
            f"{file.parent} holds an unfinished fit of another model, text or options; go on with "
            "those, or remove the folder"
        )


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
