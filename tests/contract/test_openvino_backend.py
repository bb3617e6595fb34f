"""What is OpenVINO's own: devices, options, fixed shapes. The rest is in test_rows_backends.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny.rows_bundles import answer, load, write_bundle

from quickdraft.bundle import open_bundle
from quickdraft.drafters.tree import Tree
from quickdraft.errors import DeviceError, OptionError
from quickdraft.runtime.backends.base import Backend
from quickdraft.runtime.backends.openvino import OpenVinoBackend

pytestmark = pytest.mark.openvino


@pytest.fixture(scope="module", params=["openvino", "openvino-static"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(request.param, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Backend:
    return load("openvino", folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[int]:
    return answer(folder, "openvino", "none")


@pytest.mark.parametrize("device", ["TPU", "GPU.77", "NPU.9", "AUTO:GPU.77,CPU", "cpu;rm"])
def test_devices_that_are_not_here(folder: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=r"no device"):
        load("openvino", folder, device)


def test_options_that_a_device_does_not_take(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    variant = manifest.roles["target"][0]
    with pytest.raises(OptionError, match="threads is 2, and only OpenVINO's CPU"):
        OpenVinoBackend(folder, manifest.model, variant, threads=2, device="AUTO")
    with pytest.raises(OptionError, match="f32 only"):
        OpenVinoBackend(folder, manifest.model, variant, kv_cache="int8")


def test_a_device_chosen_by_openvino(folder: Path, model: Backend) -> None:
    manifest = open_bundle(folder).manifest
    chosen = OpenVinoBackend(folder, manifest.model, manifest.roles["target"][0], device="AUTO")
    tree = Tree.chain([1, 2, 3])
    ours = chosen.step(tree, chosen.new_cache()).logits
    np.testing.assert_allclose(ours, model.step(tree, model.new_cache()).logits, atol=1e-2)
    assert chosen.device == "AUTO (CPU)"


@pytest.mark.parametrize("backend", ["openvino", "openvino:AUTO", "openvino:cpu"])
def test_a_draft_model_changes_no_answer(folder: Path, plain: list[int], backend: str) -> None:
    options = {"small_model": {"model": str(folder), "backend": backend}}
    assert answer(folder, "openvino", "small_model", options) == plain


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_devices_by_name(folder: Path, device: str) -> None:
    assert load("openvino", folder, device).device == "CPU"


def test_static_graphs_have_no_dynamic_dimension(folder: Path) -> None:
    import openvino

    variant = open_bundle(folder).manifest.roles["target"][0]
    if variant.flavour != "static":
        pytest.skip("the other flavour")
    (weights,) = (name for name in variant.files if name.endswith(".bin"))
    assert sorted(variant.widths) == [1, 4, 8, 16, 128]
    for rows, name in variant.widths.items():
        graph = openvino.Core().read_model(str(folder / name), str(folder / weights))
        for node in graph.get_ordered_ops():
            assert all(output.partial_shape.is_static for output in node.outputs()), node
        assert graph.input("input_ids").shape == [rows]
        assert graph.input("past_key_values.0.key").shape[1] == variant.capacity
