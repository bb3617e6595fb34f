"""OpenVINO graphs that compute in float16, whatever the processor has: every value is rounded.

GPUs and NPUs compute so. The CPU plugin takes the hint `f16` only where the processor has
instructions for it, and bfloat16 in its place elsewhere, which keeps three bits less.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float16).max)
SPLIT = 2.0**13 + 1
"""float32 has 13 bits more than float16: x * SPLIT - (x * SPLIT - x) rounds them away."""


def round_values(model: Any) -> int:
    """Round what every op of an openvino.Model gives, and what it is given; how many there are.
    Beyond the largest number of float16 values stay there."""
    import openvino as ov
    from openvino import opset15 as opset

    rounded = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Result":
            continue
        for output in node.outputs():
            targets = output.get_target_inputs()
            if output.get_element_type() != ov.Type.f32 or not targets:
                continue
            kept = opset.clamp(output, -LARGEST, LARGEST)
            large = opset.multiply(kept, opset.constant(np.float32(SPLIT)))
            value = opset.subtract(large, opset.subtract(large, kept))
            for target in targets:
                target.replace_source_output(value.output(0))
            rounded += 1
    model.validate_nodes_and_infer_types()
    return rounded


def compile_graph(xml: Path, weights: Path, device: str, how: Mapping[str, Any]) -> Any:
    """As openvino_device.compile_graph, rounded."""
    from quickdraft.runtime.backends import openvino_device

    model = openvino_device.core().read_model(str(xml), str(weights))
    assert round_values(model) > 10
    return openvino_device.core().compile_model(model, device, dict(how))
