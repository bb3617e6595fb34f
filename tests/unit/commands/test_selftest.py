"""`quickdraft doctor --selftest`: it finds what is wrong, and says what was left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny.process import call

from quickdraft.commands import selftest
from quickdraft.commands.selftest import Case
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


@pytest.mark.coreml
@pytest.mark.filterwarnings("ignore")
def test_core_ml_passes() -> None:
    pytest.importorskip("coremltools")
    found = [result for result in selftest.run() if result.name.startswith("coreml")]
    assert len(found) >= 2
    assert all(result.passed for result in found), found
