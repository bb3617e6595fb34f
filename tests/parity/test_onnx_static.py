"""Static ONNX graphs against the reference, every family: logits within 1e-3, in turns of which one
is longer than the graph for prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
