"""The real models in kernel layout: every value as in the file, to the last bit."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from models_fixture import gguf_path
from tiny.hotpath_graph import attributes, load

from quickdraft.export.checkpoints.gguf import read_gguf
from quickdraft.export.packing import pack
from quickdraft.export.pipeline import export_model
from quickdraft.hotpath_ops import Matrix
from quickdraft.weight_layout import unpack

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]

SMALL, LARGE = "smollm2-135m", "qwen2.5-coder-1.5b"


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize(("alias", "formats"), [(SMALL, {"w4m", "w8"}), (LARGE, {"w4k", "w6k"})])
def test_packed_values_are_those_of_the_file(alias: str, formats: set[str]) -> None:
    """All tensors of the small model; of the large one some, with every format."""
    found = set()
    for name, weight in read_gguf(gguf_path(alias)).weights.items():
        part = re.search(r"layers\.[0-2]\.|lm_head|embed", name)
        if len(weight.shape) == 1 or (alias == LARGE and not part):
            continue
        if math.prod(weight.shape) > 1 << 26:
            weight = weight.take_rows(slice(1000, 9000), name)
        packed = pack(weight.load())
        found.add(packed.format)
        values = unpack(packed.data, packed.format, packed.n, packed.k)
        assert same_bits(values, weight.dense()), name
    assert found == formats


def test_a_whole_bundle_holds_the_values_of_its_file(tmp_path: Path) -> None:
    """Joined, gated and shared as the graph has them."""
    export_model(gguf_path(SMALL), tmp_path / "bundle", formats=("hotpath",))
    weights = read_gguf(gguf_path(SMALL)).weights
    graph = load(tmp_path / "bundle/onnx-hotpath/model.onnx")
    stored = {i.name: i for i in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        found = attributes(node)
        if "format" not in found:
            continue
        at = {"QLinear": 1, "Embed": 1, "HeadTopK": 3}[node.op_type]
        name = node.input[at]
        data = np.frombuffer(stored[name].raw_data, np.uint8).reshape(tuple(stored[name].dims))
        gated = bool(found.get("gated", 0))
        values = Matrix(data, found["format"], found["n"], found["k"], gated).values()
        names = name.split("+")
        assert same_bits(values, np.concatenate([weights[part].dense() for part in names]))
        seen.update(names)
    assert seen == {name for name, weight in weights.items() if len(weight.shape) == 2}
