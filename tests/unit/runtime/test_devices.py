"""Where a model runs: profiles, providers, and devices that are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny.models import write_tiny_model

import quickdraft
from quickdraft.bundle import open_bundle
from quickdraft.device_profiles import machine
from quickdraft.errors import BackendError, DeviceError, OptionError
from quickdraft.runtime import devices
from quickdraft.runtime.backends import openvino_device
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.calibration import calibrate
from quickdraft.runtime.devices import Here, place
from quickdraft.runtime.found_devices import Found

LUNAR = Here("linux", "x86_64", "Intel(R) Core(TM) Ultra 7 258V", frozenset({"avx2", "fma"}))
PROMPT = [1, 5, 9, 5, 9, 5]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices") / "tiny"
    write_tiny_model(folder, max_position_embeddings=256)
    return folder


@pytest.fixture
def lunar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "look", classmethod(lambda cls: LUNAR))


def test_this_machine_runs_on_its_processor() -> None:
    found = place()
    assert found.backend == "auto"
    assert str(Here.look()) in found.why
    assert found.profile is None or found.profile.kind == "cpu"


@pytest.mark.usefixtures("lunar")
def test_auto_says_what_else_may_be_here() -> None:
    found = place()
    assert found.device == "core-ultra-2-cpu"
    assert found.backend == "auto"
    assert "core-ultra-2-gpu, core-ultra-2-npu may be here too" in found.why


@pytest.mark.usefixtures("lunar")
def test_the_first_backend_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "backend_problem", lambda name: None if "onnx" in name else "no")
    found = place("npu")
    assert (found.device, found.backend) == ("core-ultra-2-npu", "onnxruntime:OpenVINO.NPU")
    assert place("core-ultra-2-gpu", "onnxruntime").backend == "onnxruntime:OpenVINO.GPU"
    with pytest.raises(DeviceError, match="cannot be used with openvino:NPU: no"):
        place("npu", "openvino")
    with pytest.raises(OptionError, match="runs with openvino:NPU, onnxruntime"):
        place("npu", "reference")
    monkeypatch.setattr(devices, "backend_problem", lambda name: f"{name} is missing")
    with pytest.raises(DeviceError, match=r"cannot be used\. openvino:NPU: .*missing\. onnx"):
        place("npu")


@pytest.mark.parametrize(
    ("device", "backend", "error", "message"),
    [
        ("gpu", "auto", DeviceError, "no GPU that quickdraft knows .* leave --device out"),
        ("apple-m4-ane", "auto", DeviceError, "is not this machine.*simulated:apple-m4-ane"),
        ("core-ultra-1-npu", "auto", DeviceError, "is not this machine"),
        ("tpu", "auto", DeviceError, "no device 'tpu'"),
        ("", "auto", DeviceError, "no device ''"),
        ("simulated:", "auto", DeviceError, "no device ''"),
        ("simulated:core-ultra-1-npu", "auto", DeviceError, "cannot be simulated"),
        ("simulated:npu-pim", "hotpath", OptionError, "leave --backend out"),
        ("npu-pim", "simulated:npu-pim", OptionError, "give one of them"),
        ("cpu", "openvino:GPU", OptionError, "is 'cpu' and .* computes on gpu; leave"),
        ("cpu", "openvino:AUTO:GPU,CPU", OptionError, "computes on gpu and cpu; leave"),
        ("cpu", "openvino:AUTO", OptionError, "chooses by itself"),
        ("cpu", "coreml", OptionError, "chooses by itself"),
        ("cpu", "coreml:CPU_AND_NE", OptionError, "computes on npu"),
    ],
)
def test_what_is_not_here_is_refused(
    device: str, backend: str, error: type[Exception], message: str, monkeypatch: Any
) -> None:
    plain = Here("linux", "x86_64", "AMD EPYC", frozenset({"avx2", "fma"}))
    monkeypatch.setattr(Here, "look", classmethod(lambda cls: plain))
    with pytest.raises(error, match=message):
        place(device, backend)


@pytest.mark.usefixtures("lunar")
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("auto", "core-ultra-2-cpu"),
        ("openvino", "core-ultra-2-cpu"),
        ("openvino:CPU", "core-ultra-2-cpu"),
        ("openvino:GPU", "core-ultra-2-gpu"),
        ("openvino:gpu.0", "core-ultra-2-gpu"),
        ("openvino:npu", "core-ultra-2-npu"),
        ("onnxruntime:OpenVINO.GPU", "core-ultra-2-gpu"),
        ("onnxruntime:DirectML", "onnxruntime:DirectML"),
        ("openvino:AUTO", "openvino:AUTO"),
        ("openvino:AUTO:GPU,CPU", "openvino:AUTO:GPU,CPU"),
    ],
)
def test_a_device_of_a_backend_is_the_one_that_is_reported(backend: str, name: str) -> None:
    found = place("auto", backend)
    assert (found.device, found.backend) == (name, backend)
    assert (found.profile is None) == (":" in name)


def test_a_device_that_only_its_library_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of which the processor's name says nothing."""
    plain = Here("linux", "x86_64", "AMD EPYC", frozenset({"avx2", "fma"}))
    monkeypatch.setattr(Here, "look", classmethod(lambda cls: plain))
    there = [
        Found("openvino:CPU", "cpu", "AMD EPYC"),
        Found("openvino:GPU", "gpu", "Intel Arc B580"),
        Found("onnxruntime:WebGPU", "gpu", "WebGpuExecutionProvider"),
    ]
    monkeypatch.setattr(devices, "found_devices", lambda: there)
    found = place("gpu")
    assert (found.device, found.backend, found.profile) == ("openvino:GPU", "openvino:GPU", None)
    assert "Intel Arc B580" in found.why
    assert place("gpu", "onnxruntime").backend == "onnxruntime:WebGPU"
    assert place("gpu", "openvino:GPU.0").backend == "openvino:GPU.0"
    with pytest.raises(OptionError, match="leave one of them out"):
        place("gpu", "openvino:CPU")
    with pytest.raises(DeviceError, match="no library finds one"):
        place("npu")


@pytest.mark.usefixtures("lunar")
def test_a_bundle_for_another_device_settles_where_it_runs() -> None:
    """What `auto` opened in the end is what reports name."""
    planned = place()
    for name, device in (("hotpath", "CPU"), ("onnxruntime_adapted", "CPU"), ("openvino", "CPU")):
        assert planned.settled(opened(name, device)) is planned
    assert planned.settled(opened("coreml", "ALL")).device == "coreml:ALL"
    assert planned.settled(opened("openvino", "GPU")).device == "core-ultra-2-gpu"
    named = place("auto", "openvino:AUTO")
    assert named.settled(opened("openvino", "AUTO (CPU)")) is named


def opened(name: str, device: str) -> Any:
    return SimpleNamespace(name=name, device=device)


@pytest.mark.openvino
def test_what_openvino_finds_is_listed() -> None:
    found = {each.backend: each for each in devices.found_devices()}
    assert found["openvino:CPU"].kind == found["onnxruntime:CPU"].kind == "cpu"
    assert found["openvino:CPU"].title


@pytest.mark.parametrize("backend", ["coreml:CPU_ONLY", "openvino", "openvino:cpu", "onnxruntime"])
def test_every_backend_may_compute_on_the_processor(backend: str) -> None:
    assert place("cpu", backend).backend == backend


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("core-ultra-2-gpu", "openvino:CPU"),
        ("core-ultra-2-gpu", "openvino:NPU"),
        ("core-ultra-2-gpu", "coreml:CPU_AND_NE"),
        ("core-ultra-2-npu", "openvino:AUTO:NPU,CPU"),
        ("npu", "onnxruntime:CPU"),
        ("core-ultra-2-cpu", "openvino:GPU"),
    ],
)
@pytest.mark.usefixtures("lunar")
def test_devices_that_contradict_their_backend(
    device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "backend_problem", lambda name: None)
    with pytest.raises(OptionError, match=r"leave one of them out"):
        place(device, backend)
    assert place("core-ultra-2-gpu", "openvino:GPU.1").backend == "openvino:GPU.1"
    assert place("core-ultra-2-cpu", "openvino:CPU").device == "core-ultra-2-cpu"


def test_a_model_that_cannot_fit_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (200_000, None))
    with pytest.raises(DeviceError, match=r"does not fit on .*: weights .* MiB \+ keys and values"):
        quickdraft.load(bundle, drafter="none")
    monkeypatch.setattr(machine, "memory", lambda: (None, None))
    quickdraft.load(bundle, drafter="none").close()


def test_simulated_time_and_real_tokens(bundle: Path) -> None:
    with quickdraft.load(bundle, drafter="none", backend="onnxruntime") as real:
        expected = real.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    assert expected.simulated is None
    name = "simulated:npu-pim"
    with quickdraft.load(bundle, device=name, drafter="prompt_lookup", store=False) as model:
        result = model.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
        curve = model.curve
    assert result.token_ids == expected.token_ids
    assert result.simulated == result.to_dict()["simulated"] == name
    assert curve is not None
    assert curve.at(2) == curve.at(4)  # compiled widths
    for step in result.steps[1:]:
        # The curve, and nothing of this machine but a call's worth.
        assert step.verify_s == pytest.approx(curve.at(step.rows, len(PROMPT)), abs=2e-3)
    assert any(step.decision is not None for step in result.steps)


def test_a_simulated_device_is_neither_calibrated_nor_predicted_for(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    backend = open_backend(bundle, manifest, "simulated:npu-pim", 1).backend
    with pytest.raises(OptionError, match="none to measure"):
        calibrate(backend, manifest)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.step(quickdraft_tree(), backend.new_cache())
    with pytest.raises(OptionError, match="nothing is predicted on simulated:npu-pim"):
        quickdraft.load(bundle, device="simulated:npu-pim", drafter="none", prefill="predicted")


def quickdraft_tree() -> Any:
    from quickdraft.drafters.tree import Tree

    return Tree.chain([1])


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("", None),
        ("gpu", None),
        ("AUTO", None),
        ("AUTO:GPU,CPU", None),
        ("NPU", "finds no device 'NPU' here (it finds: CPU, GPU)"),
        ("AUTO:NPU,CPU", "finds no device 'NPU' here"),
    ],
)
def test_devices_of_openvino(
    device: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = SimpleNamespace(available_devices=["CPU", "GPU"])
    monkeypatch.setattr(openvino_device, "core", lambda: core)
    found = devices.backend_problem(f"openvino:{device}" if device else "openvino")
    assert (found is None) if problem is None else (problem in str(found))


def test_only_decoders_are_simulated(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    roles = {**manifest.roles, "encoder": manifest.roles["target"]}
    with pytest.raises(DeviceError, match="only decoder-only models are simulated"):
        open_backend(bundle, replace(manifest, roles=roles), "simulated:npu-pim", 1)


def test_beams_say_that_they_are_simulated(bundle: Path) -> None:
    with quickdraft.load(bundle, device="simulated:npu-pim", drafter="none") as model:
        result = model.generate(PROMPT, max_new_tokens=3, num_beams=2)
    assert result.simulated == "simulated:npu-pim"
