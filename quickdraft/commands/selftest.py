"""`quickdraft doctor --selftest`: tiny models through every backend and device that is here.

Random models of two layers are exported to each format and run by the backend of that format, on
every device that its library finds: a prompt in odd chunks, single tokens, trees of which one path
is kept, a forked cache, and a prompt of which the last row is wanted. Logits must be those of the
NumPy reference with the same weights. On a Mac this is where Core ML itself, on each of its compute
units, is held to what the evaluator was held to elsewhere; on a machine with an NPU or GPU the same
goes for OpenVINO and for the providers of ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickdraft.device_names import base
from quickdraft.errors import QuickdraftError

if TYPE_CHECKING:
    from quickdraft.runtime.backends.base import Backend

FLOAT32, FLOAT16, INT8 = 1e-3, 2e-2, 5e-2
"""Of the largest logit, which is above 1: what a rounding of every value may add up to, or that of
all activations to 8 bits, with which some products of blocks are computed (2.5e-2 was seen)."""


@dataclass(frozen=True)
class Case:
    """A backend to check. package: what must be installed. model: of selftest_models. tolerance:
    what a logit may differ by, relative to the largest."""

    backend: str
    format: str
    weights: str
    package: str
    device: str | None = None
    model: str = "llama"
    tolerance: float = FLOAT32

    @property
    def name(self) -> str:
        """As people read it."""
        where = base(self.backend) if self.device is None else f"{base(self.backend)}:{self.device}"
        static = ["static"] if self.format.endswith("-static") else []
        other = [] if self.model == "llama" else [self.model]
        return " ".join([where, *static, self.weights, *other])

    @property
    def problem(self) -> str | None:
        """Why it cannot run here, None if it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.backend == "hotpath":
            from quickdraft.runtime.backends import hotpath

            return hotpath.problem()
        return None


@dataclass(frozen=True)
class Result:
    """What came of a case. error: the largest difference of a logit, relative to the largest logit;
    None where nothing ran, and then problem says why. passed: None where it is not installed."""

    name: str
    passed: bool | None
    error: float | None
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


PROMPT = 150
"""Tokens of the prompt of which the last row is wanted: fixed widths have a graph for it."""
BLOCKS = ("fp32", "int8", "int4")
OTHERS = ("mistral", "gemma2", "bart")
"""Models besides the plain one, each with the weights that say most: those that are not rounded."""


def cases() -> list[Case]:
    """What could run on this machine; where a package is missing, what would run with it."""
    found = _every("hotpath", "hotpath", "onnxruntime")
    found += _every("onnxruntime", "onnx", "onnxruntime")
    found += _every("onnxruntime_static", "onnx-static", "onnxruntime")
    for form in ("openvino", "openvino-static"):
        found += _every("openvino", form, "openvino")
    return found + _core_ml() + _of_devices()


def _every(backend: str, form: str, package: str, device: str | None = None) -> list[Case]:
    """All weights and all models on one device. Another than the processor computes in float16."""
    limit = FLOAT32 if device is None else FLOAT16
    found = []
    for weights in BLOCKS:
        coarse = weights != "fp32" and backend != "openvino"
        tolerance = INT8 if coarse else limit
        found.append(Case(backend, form, weights, package, device, tolerance=tolerance))
    models = [model for model in OTHERS if (form, model) != ("onnx-static", "bart")]
    return found + [Case(backend, form, "fp32", package, device, model, limit) for model in models]


def _core_ml() -> list[Case]:
    """Core ML where it is, and the evaluator of its packages everywhere."""
    from quickdraft.runtime.backends import coreml_engine

    units = [coreml_engine.EVALUATOR]
    if coreml_engine.problem() is None:
        units += coreml_engine.UNITS
    found = []
    for unit in units:
        more = ("coremltools", unit)
        if unit in (coreml_engine.EVALUATOR, "CPU_ONLY"):
            found.append(Case("coreml", "coreml", "fp32", *more))
        for weights in ("fp16", "int8", "int4"):
            found.append(Case("coreml", "coreml", weights, *more, tolerance=FLOAT16))
        for model in OTHERS:
            found.append(Case("coreml", "coreml", "fp16", *more, model, FLOAT16))
    return found


def _of_devices() -> list[Case]:
    """Devices that OpenVINO and ONNX Runtime find besides the processor."""
    from quickdraft.device_names import needs_static, split_device
    from quickdraft.runtime.found_devices import found_devices

    found: list[Case] = []
    for each in found_devices():
        backend, device = split_device(each.backend)
        if backend == "openvino" and device != "CPU":
            forms = ["openvino-static"] if needs_static(backend, device) else []
            for form in forms or ["openvino", "openvino-static"]:
                found += _every(backend, form, "openvino", device)
        elif backend == "onnxruntime" and device != "CPU":
            if not needs_static(backend, device):
                found += _every(backend, "onnx", "onnxruntime", device)
            found += _every("onnxruntime_static", "onnx-static", "onnxruntime", device)
    return found


def run() -> Iterator[Result]:
    """Check one case after another."""
    for case in cases():
        if case.problem is not None:
            yield Result(case.name, None, None, case.problem)
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                error = _check(case, Path(folder))
            except (
                QuickdraftError,
                RuntimeError,
            ) as failed:  # a driver's, on hardware not seen yet
                yield Result(case.name, False, None, str(failed))
                continue
        passed = error <= case.tolerance
        problem = None if passed else f"differs by {error:.1e}, and {case.tolerance} may"
        yield Result(case.name, passed, error, problem)


def _check(case: Case, folder: Path) -> float:
    """The largest difference of a case."""
    from quickdraft.commands.selftest_models import request_of
    from quickdraft.registry import BACKENDS, EMITTERS, lookup

    request = request_of(case.model, case.weights, folder)
    spec = request.parts[0].spec
    own = {} if case.device is None else {"device": case.device}
    if case.backend == "hotpath":
        own["kv_cache"] = "f32"  # else its caches round as well
    backends: list[Backend] = []
    try:
        for backend, form, options in (
            (case.backend, case.format, own),
            ("reference", "reference", {}),
        ):
            variants = lookup("format", EMITTERS, form)(request)
            more: dict[str, Any] = dict(options)
            if len(variants) > 1:
                more["encoder"] = variants[1]
            kind = lookup("backend", BACKENDS, backend)
            backends.append(kind(folder, spec, variants[0], **more))
        return _compare(backends, case.model)
    finally:
        for opened in backends:
            opened.close()


def _compare(backends: list[Backend], model: str) -> float:
    """Give both the same steps; the largest difference of a logit over the largest logit."""
    import numpy as np

    from quickdraft.commands.selftest_models import VOCABULARY, source_of
    from quickdraft.drafters.tree import Tree
    from quickdraft.runtime.backends.base import Seq2SeqBackend

    random, source = np.random.default_rng(7), source_of(model)
    caches: list[Any] = []
    for backend in backends:
        if source is not None and isinstance(backend, Seq2SeqBackend):
            caches.append(backend.new_cache(backend.encode(source)))
        else:
            caches.append(backend.new_cache())
    parent = np.array([-1, 0, 0, 1, 2, 2, 4, 4, 6, 8, 0], np.int64)
    worst = 0.0
    steps: list[tuple[Tree, list[int]]] = []
    for chunk in (13, 7, 1, 70, 1, PROMPT):
        steps.append((Tree.chain(random.integers(0, VOCABULARY, chunk)), list(range(chunk))))
        steps.append((Tree(random.integers(0, VOCABULARY, len(parent)), parent), [0, 2, 4, 6]))
    for number, (tree, path) in enumerate(steps):
        if number == 5:
            caches = [cache.fork() for cache in caches]
        rows = np.array([len(tree) - 1]) if len(tree) == PROMPT else None
        ours, theirs = (
            backend.step(tree, cache, rows).logits.copy()
            for backend, cache in zip(backends, caches, strict=True)
        )
        difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
        for cache in caches:
            cache.commit(path)
    return worst
