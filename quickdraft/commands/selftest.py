"""`quickdraft doctor --selftest`: a tiny model through every backend that runs here.

A random model of two layers is exported to each format and run with the backend of that format:
a prompt in odd chunks, single tokens, trees of which one path is kept, and a forked cache. Its
logits must be those of the NumPy reference. On a Mac this is where Core ML itself, on each of its
compute units, is held to what the evaluator was held to elsewhere.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quickdraft.errors import QuickdraftError

if TYPE_CHECKING:
    from quickdraft.export.emitters.base import EmitRequest
    from quickdraft.export.weights import Weight
    from quickdraft.manifest import Variant
    from quickdraft.runtime.backends.base import Backend

TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}
"""Of the largest logit, which is above 1: what a rounding of every value may add up to."""
CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Case:
    """A backend to check. package: what must be installed."""

    backend: str
    format: str
    weights: str
    package: str
    device: str | None = None

    @property
    def name(self) -> str:
        """As people read it."""
        return (
            f"{self.backend if self.device is None else f'{self.backend}:{self.device}'} "
            f"{self.weights}"
        )


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


def cases() -> list[Case]:
    """What could run on this machine."""
    from quickdraft.runtime.backends import coreml_engine

    found = [
        Case("onnxruntime", "onnx", "fp32", "onnxruntime"),
        Case("openvino", "openvino", "fp32", "openvino"),
        Case("coreml", "coreml", "fp32", "coremltools", coreml_engine.EVALUATOR),
        Case("coreml", "coreml", "fp16", "coremltools", coreml_engine.EVALUATOR),
    ]
    if coreml_engine.problem() is None:
        found.append(Case("coreml", "coreml", "fp32", "coremltools", "CPU_ONLY"))
        units = coreml_engine.UNITS
        found += [Case("coreml", "coreml", "fp16", "coremltools", unit) for unit in units]
    return found


def run() -> Iterator[Result]:
    """Check one case after another."""
    for case in cases():
        if importlib.util.find_spec(case.package) is None:
            yield Result(case.name, None, None, f"{case.package} is not installed")
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                error = _check(case, Path(folder))
            except QuickdraftError as failed:
                yield Result(case.name, False, None, str(failed))
                continue
        passed = error <= TOLERANCE[case.weights]
        problem = None if passed else f"differs by {error:.1e}, and {TOLERANCE[case.weights]} may"
        yield Result(case.name, passed, error, problem)


def _check(case: Case, folder: Path) -> float:
    """The largest difference of a case."""
    from quickdraft.registry import BACKENDS, EMITTERS, lookup

    request = _request(folder, case.weights)
    spec = request.parts[0].spec
    options = {} if case.device is None else {"device": case.device}
    backends: list[Backend] = []
    try:
        for backend, form, more in (
            (case.backend, case.format, options),
            ("reference", "reference", {}),
        ):
            variant: Variant = lookup("format", EMITTERS, form)(request)[0]
            backends.append(lookup("backend", BACKENDS, backend)(folder, spec, variant, **more))
        return _compare(backends)
    finally:
        for opened in backends:
            opened.close()


def _request(folder: Path, weights: str) -> EmitRequest:
    from quickdraft.export.architectures.base import find_family
    from quickdraft.export.emitters.base import EmitRequest, Part
    from quickdraft.export.quantize import FORMATS

    family = find_family(CONFIG)
    described = family.read(CONFIG)
    part = Part(
        "target",
        "model",
        lambda ops: family.build(ops, described, _random_weights()),
        described.model_spec(),
    )
    return EmitRequest(folder, FORMATS[weights], (part,))


def _random_weights() -> Any:
    """Tensors of whatever name and shape the model asks for, the same for the same name."""
    import numpy as np

    from quickdraft.export.checkpoints.base import WeightMap
    from quickdraft.export.weights import dense_weight

    class Random(WeightMap):
        def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
            values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
            scaled = 1 + 0.3 * values if len(shape) == 1 else 1.2 * values / shape[-1] ** 0.5
            if "embed" in name:
                scaled = values
            return dense_weight(name, scaled.astype(np.float32))

    return Random({})


def _compare(backends: list[Backend]) -> float:
    """Give both the same steps; the largest difference of a logit over the largest logit."""
    import numpy as np

    from quickdraft.drafters.tree import Tree

    random = np.random.default_rng(7)
    caches = [backend.new_cache() for backend in backends]
    parent = np.array([-1, 0, 0, 1, 2, 2, 4, 4, 6, 8, 0], np.int64)
    worst = 0.0
    steps: list[tuple[Tree, list[int]]] = []
    for chunk in (13, 7, 1, 70, 1):
        steps.append((Tree.chain(random.integers(0, 96, chunk)), list(range(chunk))))
        steps.append((Tree(random.integers(0, 96, len(parent)), parent), [0, 2, 4, 6]))
    for number, (tree, path) in enumerate(steps):
        if number == 5:
            caches = [cache.fork() for cache in caches]
        ours, theirs = (
            backend.step(tree, cache).logits.copy()
            for backend, cache in zip(backends, caches, strict=True)
        )
        difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
        for cache in caches:
            cache.commit(path)
    return worst
