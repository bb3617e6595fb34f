"""Tiny models of every family in any format, and turns of a conversation with each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.quantize import FORMATS
from quickdraft.registry import BACKENDS, EMITTERS, lookup
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.rows_backend import RowsBackend

TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))
PROMPT = 150
"""Tokens of the turn of which the last row is wanted: static flavours read it with the graph for
prompts, and then some."""
OPENED_BY = {"onnx": "onnxruntime", "onnx-static": "onnxruntime_static"}
"""Backends by format, where they have other names."""


def open_model(
    emitter: str,
    name: str,
    folder: Path,
    form: str = "fp32",
    weights: WeightMap | None = None,
    **changes: int,
) -> Backend:
    """The tiny model CONFIGS[name], with random weights, in a format of the registry. changes: of
    its config."""
    model_type, config = CONFIGS[name]
    whole = {**config, "model_type": model_type, **changes}
    family = find_family(whole)
    spec = family.read(whole)
    found = RandomWeights() if weights is None else weights
    facts = spec.model_spec()
    (folder / emitter).mkdir(parents=True)
    build: Any = lambda ops: family.build(ops, spec, found)  # noqa: E731
    request = target_request(build, facts, folder / emitter, FORMATS[form], (1,))
    variant = lookup("format", EMITTERS, emitter)(request)[0]
    kind = lookup("backend", BACKENDS, OPENED_BY.get(emitter, emitter.partition("-")[0]))
    backend: Backend = kind(folder / emitter, facts, variant)
    return backend


def turns(context: int) -> Iterator[tuple[Tree, list[int], NDArray[np.int64] | None]]:
    """Prompts and trees, what of them is committed, and the rows that are wanted."""
    random = np.random.default_rng(0)
    for count in (12, 3, 1, min(PROMPT, context - 48)):
        chain = Tree.chain(random.integers(4, 300, count))
        yield chain, list(range(count)), np.array([count - 1]) if count > 12 else None
        yield TREE, [0, 2, 5, 6], None


def run(model: Backend, context: int) -> list[NDArray[np.float32]]:
    """Logits and streams of all turns. context: of the model."""
    cache, found = model.new_cache(), []
    for tree, path, rows in turns(context):
        output = model.step(tree, cache, rows)
        found += [output.logits.copy(), output.hidden_states[1].copy()]
        cache.commit(path)
    if isinstance(model, RowsBackend) and model.widths and context > PROMPT + 48:
        assert set(model._requests[cache]) == set(model.widths), "a width was never taken"
    return found
