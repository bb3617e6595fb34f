"""Medusa and Hydra heads say the same in every form, and what their definitions say."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.folders import lasting_folder
from tiny.native import needs_native

from quickdraft.drafters.tree import Tree
from quickdraft.errors import CheckpointError
from quickdraft.export.architectures.base import find_family
from quickdraft.export.heads import hydra, medusa
from quickdraft.export.heads.parts import HeadsSettings
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, read_trained, write_trained
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.heads import BackendHead, open_head

HEADS = 3
VOCAB = 96
Floats = NDArray[np.float32]
Tensors = dict[str, NDArray[Any]]

BACKENDS = ["reference", "onnxruntime", pytest.param("hotpath", marks=needs_native)]
FORMATS = {"reference": "reference", "onnxruntime": "onnx", "hotpath": "hotpath"}


def target_of(family: str) -> Target:
    checkpoint = tiny_checkpoint(family)
    found = find_family(checkpoint.config)
    spec = found.read(checkpoint.config)
    return Target(spec, found.collect(spec, checkpoint.weights))


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    rng = np.random.default_rng(3)
    tensors: Tensors = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    tensors["tokens"] = np.sort(rng.permutation(320)[:VOCAB]).astype(np.int32)
    return tensors


def write_heads(folder: Path, family: str, kind: str, tensors: Tensors, name: str = "") -> Path:
    file = folder / f"{kind}.safetensors"
    write_trained(
        file,
        kind=kind,
        target=tiny_checkpoint(family).source.fingerprint,
        settings={"heads": HEADS, "vocab_size": VOCAB, "name": name or kind},
        tensors=tensors,
        card={},
        int8=False,
    )
    return file


@functools.cache
def bundle(family: str) -> tuple[Path, Manifest, dict[str, Tensors]]:
    """A tiny model with heads of both kinds, in every form."""
    folder = lasting_folder("heads-")
    settings = HeadsSettings(HEADS, VOCAB, "any")
    spec = target_of(family).spec
    tensors = {
        "medusa": random_tensors(medusa.tensor_shapes(spec, settings)),
        "hydra": random_tensors(hydra.tensor_shapes(spec, settings)),
    }
    files = [write_heads(folder, family, kind, each) for kind, each in tensors.items()]
    manifest = export_checkpoint(
        tiny_checkpoint(family),
        folder / "bundle",
        weights="fp32",
        formats=tuple(FORMATS.values()),
        trained=files,
    )
    return folder / "bundle", manifest, tensors


def opened(family: str, backend: str, name: str) -> BackendHead:
    folder, manifest, _ = bundle(family)
    target = open_backend(folder, manifest, backend, None).backend
    assert manifest.roles["target"][0].step.hidden_states, "the target offers what heads read"
    return open_head(folder, manifest, target, None, name)


def rms(x: Floats, scale: Floats | float = 1.0, eps: float = 1e-6) -> Floats:
    result: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * scale
    return result


def silu(x: Floats) -> Floats:
    result: Floats = x / (1 + np.exp(-x))
    return result


def scores(target: Target, tokens: NDArray[Any], y: Floats) -> Floats:
    """Logarithms of probabilities, float32 [rows, VOCAB]."""
    logits = y @ target.weights.head.weight.dense()[tokens].T
    cap = target.spec.logit_softcap
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
    best = logits.max(-1, keepdims=True)
    result: Floats = logits - best - np.log(np.exp(logits - best).sum(-1, keepdims=True))
    return result


def check(output: Any, expected: Floats, tokens: NDArray[Any], tolerance: float) -> None:
    """Ids are the target's, likeliest first, with their probabilities."""
    assert output.ids.shape == output.log_probs.shape
    column = {int(token): place for place, token in enumerate(tokens)}
    for ids, sure, row in zip(output.ids, output.log_probs, expected, strict=True):
        places = [column[token] for token in ids.tolist()]
        assert sure == pytest.approx(row[places], abs=tolerance)
        assert np.sort(row)[::-1][: len(places)] == pytest.approx(sure, abs=tolerance)


TOLERANCE: dict[str, float] = {"reference": 1e-4, "onnxruntime": 1e-3, "hotpath": 1e-3}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_medusa(family: str, backend: str) -> None:
    target, tensors = target_of(family), bundle(family)[2]["medusa"]
    head = opened(family, backend, "medusa")
    assert head.details["kind"] == "medusa"
    assert head.details["heads"] == HEADS
    (layer,) = head.details["hidden_states"]
    assert layer == len(target.spec.layers)
    features = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    norm = target.weights.final_norm
    assert norm is not None
    assert norm.weight is not None
    scale = norm.weight.dense() + np.float32(target.spec.norm_offset)
    x = rms(features, scale, target.spec.norm_eps)
    y = [x + silu(x @ tensors[f"block_{k}"].T + tensors[f"bias_{k}"]) for k in range(1, HEADS + 1)]
    expected = scores(target, tensors["tokens"], np.concatenate(y))
    cache = head.new_cache()
    for rows in (range(2 * HEADS), [0, 5]):
        output = head.step(Tree.chain([7, 9]), cache, features, rows)
        check(output, expected[list(rows)], tensors["tokens"], TOLERANCE[backend])
    output = head.step(Tree.chain([7]), cache, features[:1], range(HEADS))
    check(output, expected[::2], tensors["tokens"], TOLERANCE[backend])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_hydra(family: str, backend: str) -> None:
    target, tensors = target_of(family), bundle(family)[2]["hydra"]
    rng = np.random.default_rng(0)
    table = target.weights.embedding.dense() * np.float32(target.spec.embedding_scale or 1.0)
    for k in range(1, HEADS + 1):
        head = opened(family, backend, f"hydra-{k}")
        assert head.details["heads"] == HEADS
        features = rng.standard_normal((3, k * 32)).astype(np.float32)
        tokens = [5, 300, 41]
        known = rms(features.reshape(3, k, 32)).reshape(3, -1)
        token = rms(table[tokens])

        def both(name: str, k: int = k, known: Floats = known, token: Floats = token) -> Floats:
            result: Floats = (
                known @ tensors[f"{name}_{k}"].T + token @ tensors[f"{name}_token_{k}"].T
            )
            return result

        y = both("residual") + silu(both("block") + tensors[f"bias_{k}"])
        expected = scores(target, tensors["tokens"], y)
        output = head.step(Tree.chain(tokens), head.new_cache(), features, range(3))
        check(output, expected, tensors["tokens"], TOLERANCE[backend])
        assert output.states == pytest.approx(table[tokens], abs=1e-4)


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_heads_begin_by_saying_what_the_target_says_next(kind: str) -> None:
    """Untrained ones, over all tokens: the same scores as the target's."""
    module: Any = {"medusa": medusa, "hydra": hydra}[kind]
    target = target_of("llama")
    settings = HeadsSettings(2, 320, kind)
    tensors = module.initial_weights(target, settings, np.arange(320, dtype=np.int32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "x.safetensors"
        write_trained(
            file,
            kind=kind,
            target=tiny_checkpoint("llama").source.fingerprint,
            settings={"heads": 2, "vocab_size": 320, "name": kind},
            tensors=tensors,
            card={},
            int8=False,
        )
        manifest = export_checkpoint(
            tiny_checkpoint("llama"), folder / "b", weights="fp32", formats=("reference",),
            trained=[file],
        )  # fmt: skip
        backend = open_backend(folder / "b", manifest, "reference", None).backend
        output = backend.step(Tree.chain([4, 5, 6]), backend.new_cache())
        first = kind if kind == "medusa" else f"{kind}-1"
        head = open_head(folder / "b", manifest, backend, None, first)
        state = output.hidden_states[2][-1:]
        said = head.step(Tree.chain([9]), head.new_cache(), state, [0])
        logits = output.logits[-1]
        best = np.argsort(-logits)[: said.ids.shape[1]]
        assert said.ids[0].tolist() == best.tolist()


Change = Callable[[dict[str, Any], Tensors], None]


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings, tensors: settings.update(heads=0), "heads of heads is 0"),
        (lambda settings, tensors: settings.update(vocab_size="9"), "vocab_size"),
        (lambda settings, tensors: settings.update(more=1), "settings of heads"),
        (lambda settings, tensors: settings.update(name=3), "name of heads is 3"),
        (lambda settings, tensors: tensors.update(bias_1=np.zeros(5, np.float32)), "bias_1"),
        (lambda settings, tensors: tensors.pop("bias_2"), "bias_2"),
        (lambda settings, tensors: tensors.update(tokens=tensors["tokens"][::-1]), "ascend"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, kind: str, change: Change, message: str
) -> None:
    tensors = dict(bundle("llama")[2][kind])
    settings: dict[str, Any] = {"heads": HEADS, "vocab_size": VOCAB, "name": kind}
    change(settings, tensors)
    file = tmp_path / "x.safetensors"
    write_trained(
        file, kind=kind, target="t", settings=settings, tensors=tensors, card={}, int8=False
    )
    attach = {"medusa": medusa.attach_medusa, "hydra": hydra.attach_hydra}[kind]
    with pytest.raises(CheckpointError, match=message):
        attach(read_trained(file), target_of("llama"))
