"""GGUF tensors of random bits, whose scales are finite and include extreme ones."""

from __future__ import annotations

import numpy as np

from quickdraft.export.checkpoints.gguf_header import TENSOR_TYPES, TensorInfo

KINDS = {name: (number, values, nbytes) for number, (name, values, nbytes) in TENSOR_TYPES.items()}
SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
EXTREME = (6e-8, -6e4, 0, -0.0, 6.1e-5, -1.2e-7, 65504)
"""Float16: subnormals, the largest, both zeros."""


def random_tensor(name: str, rows: int = 5, seed: int = 0) -> tuple[bytes, TensorInfo]:
    """Random bits with finite scales, subnormal and negative ones among them."""
    _, values, nbytes = KINDS[name]
    rng = np.random.default_rng(seed)
    columns = 3 * values if values > 1 else 64
    raw = rng.integers(0, 256, (rows * columns // values, nbytes), np.uint8)
    for at in SCALES_AT.get(name, ()):
        halves = rng.standard_normal(len(raw)).astype("<f2")
        halves[: len(EXTREME)] = EXTREME[: len(raw)]
        raw[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    if values == 1:
        raw = rng.standard_normal(rows * columns).astype("<f4").view(np.uint8).reshape(-1, 4)
        raw = raw if nbytes == 4 else np.ascontiguousarray(raw[:, 2:])
        if name == "F16":
            raw = rng.standard_normal(rows * columns).astype("<f2").view(np.uint8).reshape(-1, 2)
    data = raw.tobytes()
    return data, TensorInfo("t", (rows, columns), name, 0, len(data))
