"""What `backend:device` names."""

from __future__ import annotations

import pytest

from quickdraft.device_names import hardware, needs_static, split_device
from quickdraft.errors import OptionError
from quickdraft.models.formats import default_formats


@pytest.mark.parametrize("name", ["hotpath:x", "auto:x", "reference:cpu", "onnxruntime:"])
def test_backends_without_devices(name: str) -> None:
    with pytest.raises(OptionError, match="backend is"):
        split_device(name)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("auto", "cpu"),
        ("hotpath", "cpu"),
        ("openvino", "cpu"),
        ("openvino:gpu.1", "gpu"),
        ("openvino:NPU", "npu"),
        ("openvino:npu", "npu"),
        ("openvino:NPU.0", "npu"),
        ("openvino:AUTO:NPU,CPU", "npu cpu"),
        ("openvino:auto:-npu,gpu", "gpu"),
        ("openvino:AUTO", ""),
        ("coreml", ""),
        ("coreml:ALL", ""),
        ("coreml:cpu_only", "cpu"),
        ("coreml:CPU_AND_NE", "npu"),
        ("coreml:CPU_AND_GPU", "gpu"),
        ("coreml:EVALUATOR", "cpu"),
        ("onnxruntime", "cpu"),
        ("onnxruntime:OpenVINO", ""),
        ("onnxruntime:OpenVINO.NPU", "npu"),
        ("onnxruntime:DirectML", "gpu"),
        ("elsewhere:GPU", ""),
    ],
)
def test_hardware(name: str, kinds: str) -> None:
    assert hardware(*split_device(name)) == tuple(kinds.split())


@pytest.mark.parametrize(
    ("backend", "form"),
    [
        ("openvino:NPU", "openvino-static"),
        ("openvino:npu", "openvino-static"),
        ("openvino:NPU.0", "openvino-static"),
        ("openvino:AUTO:NPU,CPU", "openvino-static"),
        ("openvino:AUTO:GPU,CPU", "openvino"),
        ("openvino:AUTO:-NPU", "openvino"),
        ("openvino:CPU", "openvino"),
        ("onnxruntime:QNN", "onnx-static"),
        ("onnxruntime:QNN,fallback=no", "onnx-static"),
        ("onnxruntime:VitisAI", "onnx-static"),
        ("onnxruntime:OpenVINO.NPU", "onnx-static"),
        ("onnxruntime:OpenVINO.GPU", "onnx"),
        ("onnxruntime:CoreML", "onnx"),
        ("onnxruntime", "onnx"),
        ("coreml:CPU_AND_NE", "coreml"),
    ],
)
def test_an_npu_gets_fixed_shapes_however_it_is_written(backend: str, form: str) -> None:
    assert default_formats(backend) == (form,)
    assert needs_static(*split_device(backend)) == form.endswith("-static")
