"""OpenVINO against the reference, both flavours, every family: turns of a prompt and a tree.

Computed in float32 logits are within 1e-3. In float16, as GPUs and NPUs compute, they are within
2e-2 of the largest: every value of the graph is rounded (tiny.half_precision), as the CPU plugin
has float16 on few processors only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import half_precision
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.export.architectures.base import find_family
from quickdraft.export.quantize import FORMATS
from quickdraft.registry import BACKENDS, EMITTERS, lookup
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.openvino import OpenVinoBackend

pytestmark = pytest.mark.openvino

FLAVOURS = ("openvino", "openvino-static")
TREE = Tree(np.array([9, 8, 7, 6, 5, 4, 11]), np.array([-1, 0, 0, 1, 1, 2, 5]))
PROMPT = 150
"""Tokens of the turn of which the last row is wanted: the static flavour reads it with the graph
for prompts."""
FLOAT16 = 2e-2


def open_model(
    emitter: str, name: str, folder: Path, form: str = "fp32", **changes: int
) -> Backend:
    """The tiny model CONFIGS[name], with random weights, in a format of the registry."""
    model_type, config = CONFIGS[name]
    whole = {**config, "model_type": model_type, **changes}
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
    if isinstance(model, OpenVinoBackend) and model.widths and context > PROMPT + 48:
        assert set(model._requests[cache]) == {1, 4, 8, 16, 128}, "a width was never taken"
    return found


def compare(emitter: str, name: str, folder: Path, form: str, half: bool, **changes: int) -> None:
    """The flavour of an emitter beside the reference with the same rounded weights."""
    reference = open_model("reference", name, folder, form, **changes)
    context = reference.spec.context_length
    theirs = run(reference, context)
    assert min(logits.std() for logits in theirs[::2]) > 0.05
    with pytest.MonkeyPatch().context() as patched:
        if half:
            patched.setattr(openvino_device, "compile_graph", half_precision.compile_graph)
        ours = run(open_model(emitter, name, folder, form, **changes), context)
    for mine, other in zip(ours, theirs, strict=True):
        limit = FLOAT16 * max(1.0, float(np.abs(other).max())) if half else 1e-3
        assert np.abs(mine - other).max() <= limit


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("emitter", FLAVOURS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name: str, emitter: str, half: bool, tmp_path: Path) -> None:
    compare(emitter, name, tmp_path, "fp32", half)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("form", ["fp16", "int8", "int4", "int4-g128", "int4-channel"])
@pytest.mark.parametrize("emitter", FLAVOURS)
def test_every_weight_format(emitter: str, form: str, half: bool, tmp_path: Path) -> None:
    """Rows hold two groups of 128, or three of 64."""
    compare(emitter, "llama", tmp_path, form, half, hidden_size=256, intermediate_size=192)


def test_rounding_to_float16_is_what_it_says() -> None:
    """The lane above would pass with any graph if nothing were rounded."""
    import openvino as ov
    from openvino import opset15 as opset

    x = opset.parameter([2000], np.float32)
    model = ov.Model([opset.result(opset.relu(x))], [x])
    assert half_precision.round_values(model) == 2
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    random = np.random.default_rng(1)
    values = random.uniform(0.1, 1, 2000) * 10.0 ** random.integers(-3, 5, 2000)
    given = values.astype(np.float32)
    (found,) = compiled(given).values()
    np.testing.assert_array_equal(found, given.astype(np.float16))
