"""`quickdraft doctor --selftest`: it finds what is wrong, and says what was left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny.process import call

from quickdraft.commands import selftest
from quickdraft.commands.selftest import Case
from quickdraft.runtime import found_devices
from quickdraft.runtime.backends import reference
from quickdraft.runtime.backends.base import StepOutput

ONE = Case("onnxruntime", "onnx", "fp32", "onnxruntime")
MISSING = Case("onnxruntime", "onnx", "fp32", "not_a_package_of_anyone")


def only(monkeypatch: pytest.MonkeyPatch, *cases: Case) -> None:
    monkeypatch.setattr(selftest, "cases", lambda: list(cases))


def test_a_sound_backend_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, ONE, MISSING)
    done = call("doctor", "--selftest", "--json")
    assert done.returncode == 0
    sound, missing = json.loads(done.stdout)["selftest"]
    assert (sound["name"], sound["passed"]) == ("onnxruntime fp32", True)
    assert sound["error"] < 1e-5
    assert missing["passed"] is None
    assert "not installed" in missing["problem"]


def test_a_wrong_backend_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = reference.ReferenceBackend.step

    def step(*arguments: object, **options: object) -> StepOutput:
        output = genuine(*arguments, **options)
        return StepOutput(output.logits * np.float32(1.01))

    monkeypatch.setattr(reference.ReferenceBackend, "step", step)
    only(monkeypatch, ONE)
    done = call("doctor", "--selftest")
    assert done.returncode == 1
    assert "FAILS: differs by 9.9e-03" in done.stdout


def test_a_backend_that_refuses_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, Case("reference", "reference", "fp32", "numpy", device="TPU"))
    monkeypatch.setattr(
        selftest,
        "_check",
        lambda case, folder: (_ for _ in ()).throw(selftest.QuickdraftError("no")),
    )
    done = call("doctor", "--selftest")
    assert done.returncode == 1
    assert "FAILS: no" in done.stdout


def test_every_device_that_is_found_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all its forms: an NPU with fixed shapes only."""
    there = ("openvino:CPU", "openvino:GPU.1", "openvino:NPU", "onnxruntime:CPU", "onnxruntime:QNN")
    found = [found_devices.Found(name, None, "") for name in there]
    monkeypatch.setattr(found_devices, "found_devices", lambda: found)
    names = [case.name for case in selftest.cases()]
    assert len(set(names)) == len(names)
    kinds = ["fp32", "int8", "int4", "fp32 mistral", "fp32 gemma2", "fp32 bart"]
    for where in (
        *("hotpath", "onnxruntime", "openvino", "openvino static", "openvino:GPU.1"),
        *("openvino:GPU.1 static", "openvino:NPU static"),
    ):
        assert {f"{where} {kind}" for kind in kinds} <= set(names)
    for where in ("onnxruntime static", "onnxruntime:QNN static"):
        assert {f"{where} {kind}" for kind in kinds[:-1]} <= set(names)
    npus = ("openvino:NPU ", "onnxruntime:QNN ")
    assert not [name for name in names if name.startswith(npus) and "static" not in name]
    assert {"coreml:EVALUATOR fp32", "coreml:EVALUATOR int4", "coreml:EVALUATOR fp16 bart"} <= set(
        names
    )


def test_what_runs_here_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, soft caps and an encoder among them."""
    wanted = [case for case in selftest.cases() if case.backend == "onnxruntime"]
    assert {case.model for case in wanted} == {"llama", "mistral", "gemma2", "bart"}
    only(monkeypatch, *wanted)
    found = list(selftest.run())
    assert len(found) >= 6
    assert all(result.passed for result in found), found


@pytest.mark.native
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_our_kernels_pass(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *(c for c in selftest.cases() if c.name == f"hotpath {weights}"))
    (found,) = selftest.run()
    assert found.passed, found


@pytest.mark.openvino
def test_a_device_of_openvino_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [found_devices.Found("openvino:AUTO", None, "")]
    monkeypatch.setattr(found_devices, "found_devices", lambda: here)
    wanted = [c for c in selftest.cases() if c.device == "AUTO" and c.weights == "fp32"]
    assert {case.format for case in wanted} == {"openvino", "openvino-static"}
    only(monkeypatch, *wanted)
    found = list(selftest.run())
    assert all(result.passed for result in found), found


@pytest.mark.coreml
@pytest.mark.filterwarnings("ignore")
def test_core_ml_passes() -> None:
    pytest.importorskip("coremltools")
    found = [result for result in selftest.run() if result.name.startswith("coreml")]
    assert len(found) >= 2
    assert all(result.passed for result in found), found
