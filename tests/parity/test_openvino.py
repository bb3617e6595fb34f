"""OpenVINO against the reference, both flavours, every family: turns of a prompt and a tree.

Computed in float32 logits are within 1e-3. In float16, as GPUs and NPUs compute, they are within
2e-2 of the largest: every value of the graph is rounded (tiny.half_precision), as the CPU plugin
has float16 on few processors only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import half_precision
from tiny.family_configs import CONFIGS
from tiny.turns import open_model, run

from quickdraft.runtime.backends import openvino_device

pytestmark = pytest.mark.openvino

FLAVOURS = ("openvino", "openvino-static")
FLOAT16 = 2e-2


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
