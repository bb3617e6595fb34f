"""Weight formats with long groups: who holds them, and with which values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny.models import write_tiny_model

from quickdraft.drafters.tree import Tree
from quickdraft.errors import OptionError
from quickdraft.runtime.backends.opening import open_backend

SIZES = {"hidden_size": 256, "intermediate_size": 384}


def test_onnx_multiplies_groups_of_128(tmp_path: Path) -> None:
    """The reference has the same rounded weights; MatMulNBits also rounds what they multiply."""
    manifest = write_tiny_model(tmp_path / "m", weights="int4-g128", **SIZES)
    onnx, reference = (each for each in manifest.roles["target"])
    assert onnx.weight_format == reference.weight_format == "int4-g128"
    found = []
    for name in ("onnxruntime", "reference"):
        backend = open_backend(tmp_path / "m", manifest, name, None).backend
        found.append(backend.step(Tree.chain([5, 9, 7]), backend.new_cache()).logits.copy())
        backend.close()
    mine, other = found
    assert np.abs(mine - other).max() < 0.1 * other.std()
    plain = write_tiny_model(tmp_path / "plain", weights="int4", **SIZES)
    backend = open_backend(tmp_path / "plain", plain, "reference", None).backend
    third = backend.step(Tree.chain([5, 9, 7]), backend.new_cache()).logits
    assert np.abs(third - other).max() > np.abs(mine - other).max()  # other groups, other values
    backend.close()
    program = json.loads((tmp_path / "m" / reference.model).read_text())
    forms = {(each["bits"], each["group"]) for each in program["blocks"].values()}
    assert forms == {(4, 64), (4, 128), (8, 128)}  # what has a row for every token keeps 8 bits


@pytest.mark.parametrize(
    ("form", "weights", "message"),
    [
        ("hotpath", "int4-g128", "the hotpath flavour cannot hold int4-g128 .* 32 values"),
        ("hotpath", "int4-channel", "the hotpath flavour cannot hold int4-channel"),
        ("onnx", "int4-channel", "an ONNX graph cannot hold int4-channel .*--weights int4"),
        ("genai", "int4-channel", "an ONNX graph cannot hold int4-channel"),
    ],
)
def test_what_cannot_hold_them_says_so(
    form: str, weights: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        write_tiny_model(tmp_path / "m", formats=(form,), weights=weights, **SIZES)
    assert not (tmp_path / "m").exists()
