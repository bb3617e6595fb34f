"""The form of a model: the user first, then the profile, then what holds everywhere; all told."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.models import write_tiny_model

import quickdraft
from quickdraft import api
from quickdraft.bundle import open_bundle
from quickdraft.device_profiles import machine
from quickdraft.device_profiles.profile import profile_named, profiles
from quickdraft.errors import DeviceError, OptionError
from quickdraft.models import placed
from quickdraft.models import resolve as resolving
from quickdraft.models.resolve import Preferred
from quickdraft.runtime import devices
from quickdraft.runtime.device_plan import memory_budget
from quickdraft.runtime.devices import Here, Placement, place
from quickdraft.runtime.forms import form_of
from quickdraft.static_shapes import EMITTERS_OWN, StaticShapes

LUNAR = Here("linux", "x86_64", "Intel(R) Core(TM) Ultra 7 258V", frozenset({"avx2", "fma"}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "tiny"
    write_tiny_model(folder, max_position_embeddings=256)
    return folder


@pytest.fixture
def asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `resolve` is asked for, on a machine whose NPU and GPU can be used."""
    calls: list[dict[str, Any]] = []

    def resolve(name: str, **options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(folder=bundle, manifest=open_bundle(bundle).manifest)

    monkeypatch.setattr(Here, "look", classmethod(lambda cls: LUNAR))
    monkeypatch.setattr(devices, "backend_problem", lambda name: None)
    monkeypatch.setattr(placed, "resolve", resolve)
    monkeypatch.setattr(Placement, "check_memory", lambda *_: None)
    monkeypatch.setattr(Placement, "kv_to_open", lambda *_: None)
    return calls


def test_the_npu_gets_what_its_profile_says(asked: list[dict[str, Any]]) -> None:
    found, _ = placed.bundle_on(place("npu"), "m")
    assert asked[0]["weights"] is None
    assert asked[0]["formats"] == ("openvino-static",)
    shapes = StaticShapes((1, 4, 8, 16), 128, longest_cache=4064)
    assert asked[0]["preferred"] == Preferred("int4-g128", shapes)
    assert found.form is not None
    assert found.form.to_dict()["weights"] == {
        "value": "int4-g128", "why": "by the profile core-ultra-2-npu",
    }  # fmt: skip


def test_what_the_user_asks_for_wins(asked: list[dict[str, Any]]) -> None:
    found, _ = placed.bundle_on(place("npu"), "m", "int8", "f32")
    assert asked[0]["weights"] == asked[0]["preferred"].weights == "int8"
    assert found.form is not None
    form = found.form.to_dict()
    assert form["weights"] == {"value": "int8", "why": "asked for"}
    assert form["kv_cache"] == {"value": "f32", "why": "asked for"}


def test_other_devices_get_their_own(asked: list[dict[str, Any]]) -> None:
    placed.bundle_on(place("gpu"), "m")
    placed.bundle_on(place("auto", "openvino"), "m")
    gpu, other = asked
    assert (gpu["formats"], gpu["preferred"]) == (("openvino",), Preferred())
    # The profile of the processor does not speak of OpenVINO.
    assert (other["formats"], other["preferred"]) == (("openvino",), Preferred())
    why = form_of(profile_named("x86-avx2"), "openvino", ["openvino"]).weights.why
    assert why == "the profile x86-avx2 says nothing of the backend 'openvino'"


def test_a_draft_beside_the_target_has_the_same_form(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "resolve", placed.resolve)
    npu = place("npu")
    api._find(npu, None, True, "draft", "openvino:NPU")
    api._find(npu, None, True, "draft", "hotpath")
    beside, apart = asked
    assert (beside["formats"], beside["preferred"].weights) == (("openvino-static",), "int4-g128")
    assert (apart["formats"], apart["preferred"]) == (("hotpath",), None)


def test_every_profile_makes_a_form() -> None:
    for profile in profiles().values():
        form = form_of(profile, profile.run.backends[0], ["openvino-static"])
        assert form.weights.value == profile.run.weights
        static = profile.static
        assert form.shapes == (EMITTERS_OWN if static is None else static.shapes)
        assert form_of(profile, profile.run.backends[0], ["onnx"]).shapes == EMITTERS_OWN


def test_the_result_says_what_was_opened(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with quickdraft.load(bundle, drafter="none", backend="onnxruntime") as model:
        assert model.placement is not None
        assert model.placement.form is not None
        form = model.placement.form.to_dict()
    assert form["weights"] == {"value": "fp32", "why": "as the bundle has them"}
    assert form["kv_cache"]["value"] == "f32"
    assert form["flavour"] == "onnx portable"
    assert not caplog.records
    wanted = form_of(profile_named("core-ultra-2-npu"), "openvino:NPU", ["openvino-static"])
    variant = open_bundle(bundle).manifest.roles["target"][0]
    with caplog.at_level(logging.WARNING):
        real = wanted.opened("openvino", "f32", variant)
    assert real.weights.value == "fp32"
    assert real.weights.why.endswith("by the profile core-ultra-2-npu they would be int4-g128")
    assert "the bundle has fp32 weights" in caplog.text
    with pytest.raises(OptionError, match="has fp32 weights, not int4"):
        quickdraft.load(bundle, drafter="none", weights="int4")


PROFILE = """
schema_version = 1
name = "mine"
title = "Mine"
kind = "cpu"
[detect]
[run]
backends = ["hotpath", "onnxruntime", "reference"]
flavour = "hotpath"
weights = "int4"
kv_cache = "int8"
[memory]
size_gib = { value = 2, source = "a shop" }
bandwidth_gb_s = { value = 1, source = "a page" }
[simulation]
tops = { value = 1, source = "a page" }
"""


@pytest.mark.native
def test_the_profile_chooses_keys_and_values(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(PROFILE, encoding="utf-8")
    write_tiny_model(tmp_path / "m", formats=("hotpath", "onnx"))
    device = str(tmp_path / "mine.toml")
    with quickdraft.load(tmp_path / "m", device=device, drafter="none") as model:
        assert model.backend.kv_type == "int8"
        assert model.placement is not None
        assert model.placement.form is not None
        assert model.placement.form.kv_cache.why == "by the profile mine"
    with quickdraft.load(tmp_path / "m", device=device, drafter="none", kv_cache="f32") as model:
        assert model.backend.kv_type == "f32"
    # ONNX Runtime has no choice, which is no error where only a profile asks.
    with quickdraft.load(
        tmp_path / "m", device=device, backend="onnxruntime", drafter="none"
    ) as model:
        assert model.backend.kv_type == "f32"


def test_a_simulated_device_has_memory_of_its_own(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(PROFILE, encoding="utf-8")
    profile = profile_named(str(tmp_path / "mine.toml"))
    monkeypatch.setattr(machine, "memory", lambda: (1 << 40, None))
    assert memory_budget(profile) == int(0.9 * (1 << 40))
    assert memory_budget(profile, simulated=True) == int(0.9 * (2 << 30))
    plan = Placement("simulated:mine", "", profile, simulated=True).plan(
        open_bundle(bundle).manifest, None, 64
    )
    assert (plan.budget, plan.kv_type) == (int(0.9 * (2 << 30)), "int8")
    parameters = open_bundle(bundle).manifest.model.num_parameters
    assert plan.weights == int(5 * parameters / 8)  # int4 and its scales, not the file's float32
    small = PROFILE.replace("value = 2,", "value = 0.0001,")
    (tmp_path / "small.toml").write_text(small, encoding="utf-8")
    with pytest.raises(DeviceError, match="does not fit on simulated:mine"):
        quickdraft.load(bundle, device=f"simulated:{tmp_path / 'small.toml'}", drafter="none")
