"""Static ONNX graphs against the reference, every family: logits within 1e-3, in turns of which one
is longer than the graph for prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import half_precision
from tiny.family_configs import CONFIGS
from tiny.random_weights import RandomWeights
from tiny.turns import open_model, run

from quickdraft.export.checkpoints.base import WeightMap
from quickdraft.export.emitters import rows
from quickdraft.export.quantize import quantize
from quickdraft.export.weights import Weight, dense_weight


@pytest.fixture(autouse=True)
def _two_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer graphs than are written for users: each costs these tests a fifth of their time."""
    monkeypatch.setattr(rows, "WIDTHS", (1, 8))


def compare(name: str, folder: Path, form: str, like: WeightMap | None = None) -> None:
    """Against the reference: with the same rounded weights, or with weights that are those."""
    kept = form if like is None else "fp32"
    reference = open_model("reference", name, folder, kept, like)
    context = reference.spec.context_length
    theirs = run(reference, context)
    assert min(values.std() for values in theirs) > 0.05
    ours = run(open_model("onnx-static", name, folder, form), context)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() <= 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path, "fp32")


@pytest.mark.parametrize("form", ["fp16", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen3-biases-tied-layer-types"])
def test_weight_formats_of_all_flavours(name: str, form: str, tmp_path: Path) -> None:
    compare(name, tmp_path, form)


@pytest.mark.openvino
@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "stablelm-parallel-normed"])
def test_another_engine_reads_the_same_files(
    name: str, form: str, half: bool, tmp_path: Path
) -> None:
    """OpenVINO, as its provider does on an NPU: every output of every graph; and in float16."""
    import onnxruntime
    import openvino

    from quickdraft.runtime.backends import openvino_device

    open_model("onnx-static", name, tmp_path, form)
    how = openvino_device.properties("CPU", 1, apart=True)
    for file in sorted((tmp_path / "onnx-static" / "onnx").glob("*.onnx")):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        random, feeds = np.random.default_rng(2), {}
        for value in session.get_inputs():
            if value.name == "output_rows":
                feeds[value.name] = np.arange(value.shape[0])
            elif value.name.endswith("_ids"):
                feeds[value.name] = random.integers(0, 200, value.shape)
            else:
                feeds[value.name] = random.standard_normal(value.shape).astype(np.float32)
        core = openvino.Core()
        model = core.read_model(str(file))
        assert not half or half_precision.round_values(model) > 10
        theirs = core.compile_model(model, "CPU", how)(feeds)
        for output, ours in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            limit = 2e-2 * max(1.0, float(np.abs(ours).max())) if half else 1e-3
            assert np.abs(ours - theirs[output.name]).max() <= limit


class RoundedByRow(RandomWeights):
    """Matrices as int8 with a scale for each row has them."""

    def expect(self, name: str, shape: tuple[int, ...]) -> Weight:
        """Rounded where it is a matrix."""
        weight = super().expect(name, shape)
        if len(shape) == 1:
            return weight
        return dense_weight(name, quantize(weight.dense(), 8, shape[1]).to_dense())


@pytest.mark.parametrize("name", ["llama", "llama-biases-tied-llama3"])
def test_int8_has_a_scale_for_each_row(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path, "int8", RoundedByRow())
