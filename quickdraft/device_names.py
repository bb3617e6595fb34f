"""Names such as `openvino:GPU.1`: a backend, and the device of its own that it shall run on."""

from __future__ import annotations

import re
from typing import Literal

from quickdraft.errors import OptionError

Hardware = Literal["cpu", "gpu", "npu"]
DEVICELESS = ("hotpath", "reference")
"""Backends that run on the processor, and on nothing else."""
CHOOSING = ("coreml", "onnxruntime", "openvino")
"""Those that have devices to choose from."""
_STATIC = ("onnxruntime", "openvino")
"""Those that have static graphs beside others."""
_CORE_ML: dict[str, tuple[Hardware, ...]] = {
    "CPU_ONLY": ("cpu",),
    "CPU_AND_GPU": ("gpu",),
    "CPU_AND_NE": ("npu",),
    "EVALUATOR": ("cpu",),
}
_PROVIDERS: dict[str, tuple[Hardware, ...]] = {
    "CPU": ("cpu",),
    "DirectML": ("gpu",),
    "QNN": ("npu",),
    "VitisAI": ("npu",),
    "WebGPU": ("gpu",),
}


def split_device(name: str) -> tuple[str, str]:
    """`backend:device` as its two parts; "" where no device is named.

    Raises:
        OptionError: the backend has none to choose from, or its name is there without one.
    """
    backend, colon, device = name.partition(":")
    if colon and (not device or backend in ("auto", *DEVICELESS)):
        raise OptionError(
            f"backend is {name!r}; "
            + ("name a device after the colon" if not device else f"{backend!r} has no devices")
        )
    return backend, device


def base(backend: str) -> str:
    """The backend that one for other tools' exports, or for static graphs, stands in for."""
    return backend.removesuffix("_adapted").removesuffix("_static")


def hardware(backend: str, device: str) -> tuple[Hardware, ...]:
    """What a backend computes on with a device of its own ("": the one it takes by itself), in
    order of preference; () where it chooses by itself, or where nobody knows.

    Core ML's Neural Engine and GPU may always hand work to the processor; they are named alone.
    """
    backend = base(backend)
    if backend in ("auto", *DEVICELESS):
        return ("cpu",)
    if backend == "openvino":
        return _of_openvino(device.upper() or "CPU")
    if backend == "coreml":
        return _CORE_ML.get(device.upper(), ())
    if backend == "onnxruntime":
        provider, _, kind = device.partition(",")[0].partition(".")
        return _kinds([kind]) or _PROVIDERS.get(provider or "CPU", ())
    return ()


def needs_static(backend: str, device: str) -> bool:
    """Whether a device takes graphs of fixed shapes only."""
    return backend in _STATIC and "npu" in hardware(backend, device)


def _of_openvino(device: str) -> tuple[Hardware, ...]:
    listed = device.removeprefix("AUTO").removeprefix(":").split(",")
    return _kinds([each.partition(".")[0] for each in listed])  # `-NPU` leaves one out


def _kinds(names: list[str]) -> tuple[Hardware, ...]:
    found: list[Hardware] = []
    known: tuple[Hardware, ...] = ("cpu", "gpu", "npu")
    for name in names:
        found += [kind for kind in known if re.fullmatch(kind, name, re.IGNORECASE)]
    return tuple(dict.fromkeys(found))
