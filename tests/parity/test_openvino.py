"""OpenVINO against the reference, both flavours, every family: logits within 1e-3, three turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.quantize import FORMATS
from quickdraft.registry import BACKENDS, EMITTERS, lookup
from quickdraft.runtime.backends.base import Backend

pytestmark = pytest.mark.openvino

FLAVOURS = ("openvino", "openvino-static")
TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))
TURNS: list[tuple[Tree, list[int]]] = []
RANDOM = np.random.default_rng(0)
for _count in (12, 3, 1):
    TURNS.append((Tree.chain(RANDOM.integers(4, 300, _count)), list(range(_count))))
    TURNS.append((TREE, [0, 2, 5, 6]))


def open_model(emitter: str, name: str, folder: Path, form: str = "fp32") -> Backend:
    """The tiny model CONFIGS[name], with random weights, in a format of the registry."""
    model_type, config = CONFIGS[name]
    whole = {**config, "model_type": model_type}
    family = find_family(whole)
    spec = family.read(whole)
    weights = RandomWeights()
    facts = spec.model_spec()
    (folder / emitter).mkdir()
    build: Any = lambda ops: family.build(ops, spec, weights)  # noqa: E731
    request = target_request(build, facts, folder / emitter, FORMATS[form], (1,))
    variant = lookup("format", EMITTERS, emitter)(request)[0]
    backend: Backend = lookup("backend", BACKENDS, emitter.partition("-")[0])(
        folder / emitter, facts, variant
    )
    return backend


def run(model: Backend) -> list[NDArray[np.float32]]:
    """Logits and streams of three turns, each with a tree of which a path is committed."""
    cache, found = model.new_cache(), []
    for tree, path in TURNS:
        output = model.step(tree, cache)
        found += [output.logits.copy(), output.hidden_states[1].copy()]
        cache.commit(path)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name: str, tmp_path: Path) -> None:
    theirs = run(open_model("reference", name, tmp_path))
    assert min(logits.std() for logits in theirs[::2]) > 0.05
    for emitter in FLAVOURS:
        ours = run(open_model(emitter, name, tmp_path))
        for mine, other in zip(ours, theirs, strict=True):
            assert np.abs(mine - other).max() <= 1e-3


@pytest.mark.parametrize("form", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("emitter", FLAVOURS)
def test_every_weight_format(emitter: str, form: str, tmp_path: Path) -> None:
    """The same rounded weights, computed with in float32."""
    theirs = run(open_model("reference", "llama", tmp_path, form))
    for mine, other in zip(run(open_model(emitter, "llama", tmp_path, form)), theirs, strict=True):
        assert np.abs(mine - other).max() <= 1e-3
