"""Measure the curve: what a step of a loaded target costs by its rows.

A step reads the same weights whatever it computes, so its tokens may be any, and what a cache holds
may be any, too: a long context is made by moving rows, not by running a prompt. Rows and contexts
take turns, and the minimum of the rounds counts, so that a disturbance hits all of them or none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from quickdraft import __version__
from quickdraft.device_names import base
from quickdraft.device_profiles import machine
from quickdraft.device_profiles.curve import Curve
from quickdraft.device_profiles.curve_store import Device, load_curve, save_curve
from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.kvcache.base import KvCache
from quickdraft.manifest import Manifest
from quickdraft.runtime import native
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.opening import opened_variant
from quickdraft.runtime.backends.simulated import SimulatedBackend
from quickdraft.runtime.sources import trial_cache
from quickdraft.types import Progress

_log = logging.getLogger(__name__)

SHORT_CONTEXT = 64
"""Less than this tells nothing about what context adds."""


_LIBRARIES = {"openvino": "openvino", "coreml": "coremltools"}
"""What computes for a backend, where that is not ONNX Runtime."""

STEADY = 1.25
"""How far a typical second best time may lie above the best one."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What is measured: steps of `rows` rows over an empty context, and of `long_rows` rows over
    `context` tokens, `rounds` times each, or as often as `seconds` allow, at least twice. Of a
    model that is too slow for that, steps of few rows only, `FEW_ROWS` at least."""

    rows: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    long_rows: tuple[int, ...] = (1, 4, 16)
    context: int = 1024
    rounds: int = 3
    seconds: float = 1.5


FEW_ROWS = 8
MOST_ROUNDS = 2
"""Times the planned rounds and seconds, where the rounds do not agree."""
SHORT = CalibrationPlan()
"""About a second for a model that takes 20 ms a step: what happens on first use."""
THOROUGH = CalibrationPlan(
    rows=(*range(1, 17), 20, 24, 28, 32),
    long_rows=(1, 2, 4, 8, 16, 32),
    rounds=15,
    seconds=60.0,
)
"""What `quickdraft calibrate` does."""

Point = tuple[int, int]
"""Tokens of context, rows of the step."""


@dataclass(frozen=True)
class Measured:
    """A curve. steady: whether rounds agree and more rows cost more; where not, the machine
    was busy."""

    curve: Curve
    steady: bool


def measure_curve_of(
    backend: Backend,
    plan: CalibrationPlan = SHORT,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Measured:
    """The curve of a loaded backend. progress: stage `calibrate`, in steps.

    Raises:
        BackendError: the engine failed.
    """
    spec = backend.spec
    context = min(plan.context, spec.context_length - max(plan.long_rows))
    # Graphs of fixed widths: one row more than a width costs as much as the next one.
    edges = {width + 1 for width in getattr(backend, "widths", ()) if width < max(plan.rows)}
    points = [(0, n) for n in sorted({*plan.rows, *edges}) if n <= spec.context_length]
    if context >= SHORT_CONTEXT:
        points += [(context, n) for n in plan.long_rows if n in plan.rows]
    points.sort(key=lambda point: point[1])
    steps = _Steps(backend, clock)
    times: dict[Point, list[float]] = {}
    started = clock()
    for turn in range(MOST_ROUNDS * plan.rounds):
        spent = clock() - started
        if turn >= plan.rounds and (_is_steady(times) or spent > MOST_ROUNDS * plan.seconds):
            break
        for number, point in enumerate(points):
            late = clock() - started > plan.seconds
            if late and (1 < turn < plan.rounds or (turn == 0 and point[1] > FEW_ROWS)):
                break
            times.setdefault(point, []).append(steps.time(point))
            if progress is not None and turn < plan.rounds:
                progress("calibrate", turn * len(points) + number + 1, plan.rounds * len(points))
        points = list(times)
    best = {point: min(seconds) for point, seconds in times.items()}
    near = {n: seconds for (length, n), seconds in best.items() if length == 0}
    growth = {n: (s - near[n]) / length for (length, n), s in best.items() if length}
    curve = Curve.smoothed(near, growth)
    return Measured(curve, _is_steady(times) and _is_even(near, curve))


def _is_even(best: Mapping[int, float], curve: Curve) -> bool:
    """Whether the best times rise with the rows as they must. Where one lies far above that of more
    rows, all rounds were disturbed there, and nothing says which others were."""
    return all(seconds < STEADY * curve.at(rows) for rows, seconds in best.items())


def _is_steady(times: Mapping[Point, Sequence[float]]) -> bool:
    """Whether rounds agree: a typical second best time is near the best one."""
    spread = [sorted(seconds)[1] / min(seconds) for seconds in times.values()]
    return statistics.median(spread) < STEADY


class _Steps:
    """Steps of one backend over contexts that are made when they are first needed."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._caches: dict[int, KvCache] = {}

    def time(self, point: Point) -> float:
        """Seconds of one step."""
        context, rows = point
        if context not in self._caches:
            self._caches[context] = trial_cache(self._backend)
            _fill(self._caches[context], context)
        cache = self._caches[context]
        tree = Tree.chain(np.arange(rows, dtype=np.int64) % self._backend.spec.vocab_size)
        started = self._clock()
        self._backend.step(tree, cache, full_logits=False)
        spent = self._clock() - started
        cache.truncate(context)
        return spent


def _fill(cache: KvCache, length: int) -> None:
    """Make a cache hold `length` rows, of anything. They are moved by one slot, because memory that
    was never written would be read at no cost."""
    cache.stage(length + 1)
    cache.commit(range(1, length + 1))


@dataclass(frozen=True)
class Calibrated:
    """A curve and what it is for. path: where later runs find it, None if they do not."""

    curve: Curve
    device: Device
    bundle: str
    path: Path | None


def calibrate(
    backend: Backend,
    manifest: Manifest,
    threads: int | None = None,
    plan: CalibrationPlan = SHORT,
    *,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure a loaded backend and keep its curve for later runs, unless the machine was busy.

    Raises:
        OptionError: the device is simulated. BackendError: the engine failed.
    """
    if isinstance(backend, SimulatedBackend):
        raise OptionError(
            f"{backend.device} has the curve of its profile; there is none to measure"
        )
    device, bundle = device_of(backend, threads), files_key(manifest, backend)
    measured = measure_curve_of(backend, plan, progress=progress)
    path = None
    if measured.steady:
        path = save_curve(device, bundle, measured.curve)
    else:
        _log.warning(
            "the machine is busy: the measured cost of a step is uncertain. It is used now and not "
            "kept, the next start measures again; or run `quickdraft calibrate` when it is idle"
        )
    return Calibrated(measured.curve, device, bundle, path)


def curve_for(
    backend: Backend,
    manifest: Manifest,
    threads: int | None = None,
    *,
    progress: Progress | None = None,
) -> Curve:
    """The stored curve of a loaded backend, or one measured now and stored; a simulated device has
    its own.

    manifest: of the bundle the backend was opened from; threads: as it was given.

    Raises:
        BackendError: the engine failed.
    """
    if isinstance(backend, SimulatedBackend):
        return backend.curve
    stored = load_curve(device_of(backend, threads), files_key(manifest, backend))
    if stored is not None:
        return stored
    started = time.perf_counter()
    curve = calibrate(backend, manifest, threads, progress=progress).curve
    _log.info("measured the cost of a step in %.2f s", time.perf_counter() - started)
    return curve


def files_key(manifest: Manifest, backend: Backend) -> str:
    """Tells the model files that a backend opens from any others, whatever they are called."""
    variant = opened_variant(manifest, backend)
    hashes = sorted(manifest.files[name].sha256 for name in variant.files)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def device_of(backend: Backend, threads: int | None) -> Device:
    """What the speed of a loaded backend depends on."""
    return Device(
        processor=machine.cpu_name() or "unknown",
        processors=machine.usable_processors() or 0,
        threads=threads or 0,
        backend=backend.name if backend.device == "CPU" else f"{backend.name}:{backend.device}",
        isa=backend.isa or "",
        kv_type=backend.kv_type,
        versions=", ".join(_versions(backend)),
    )


def _versions(backend: Backend) -> list[str]:
    found = [f"quickdraft {__version__}"]
    for package in (_LIBRARIES.get(base(backend.name), "onnxruntime"), "numpy"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    library = native.library_path() if backend.isa is not None else None
    if library is not None:
        # Kernels that were built again are other kernels, whatever their version says.
        facts = os.stat(library)
        found.append(f"kernels {facts.st_size}-{facts.st_mtime_ns}")
    return found
