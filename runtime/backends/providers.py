"""Execution providers of ONNX Runtime by name, and what installs them.

Providers come in two ways: built into a package of onnxruntime, or as a plug-in (a wheel of its own
whose library is registered with a stock onnxruntime, 1.24 or newer). Both are found through the
devices that onnxruntime lists, and through its list of built-in providers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any

from quickdraft.errors import DeviceError
from quickdraft.runtime.backends import ort_session


@dataclass(frozen=True)
class Provider:
    """name: what ONNX Runtime calls it. install: what makes it available. plugin: the module that
    knows the library of a plug-in, "" where there is none."""

    name: str
    install: str
    plugin: str = ""


PROVIDERS = {
    "CPU": Provider("CPUExecutionProvider", "pip install 'quickdraft[onnx]'"),
    "CoreML": Provider(
        "CoreMLExecutionProvider", "on macOS: pip install 'quickdraft[onnx]', which has it built in"
    ),
    "DirectML": Provider(
        "DmlExecutionProvider",
        "on Windows: pip uninstall onnxruntime, then pip install onnxruntime-directml",
    ),
    "OpenVINO": Provider(
        "OpenVINOExecutionProvider",
        "pip install onnxruntime-ep-openvino",
        "onnxruntime_ep_openvino",
    ),
    "QNN": Provider("QNNExecutionProvider", "pip install onnxruntime-qnn", "onnxruntime_qnn"),
    "VitisAI": Provider(
        "VitisAIExecutionProvider", "on Windows: install AMD's Ryzen AI Software, which has it"
    ),
    "WebGPU": Provider(
        "WebGpuExecutionProvider", "pip install onnxruntime-ep-webgpu", "onnxruntime_ep_webgpu"
    ),
}
HARDWARE = ("CPU", "GPU", "NPU")

_registered: set[str] = set()
_lock = Lock()


def parse_device(device: str) -> tuple[Provider, str | None]:
    """A provider, and which of its hardware: `OpenVINO` or `OpenVINO.NPU`.

    Raises:
        DeviceError: it is neither.
    """
    name, dot, hardware = device.partition(".")
    if name not in PROVIDERS or (dot and hardware not in HARDWARE):
        raise DeviceError(
            f"the backend 'onnxruntime' has no device {device!r}; write a provider "
            f"({', '.join(PROVIDERS)}), and if need be its hardware ({', '.join(HARDWARE)}), such "
            "as onnxruntime:OpenVINO.GPU"
        )
    return PROVIDERS[name], hardware or None


def problem(device: str) -> str | None:
    """Why a device of ONNX Runtime cannot be used here, and what to do; None if it can.

    Raises:
        DeviceError: there can be none of that name. MissingExtra: there is no ONNX Runtime.
    """
    provider, hardware = parse_device(device)
    ort = ort_session.require()
    failure = None
    try:
        _register(ort, provider)
    except DeviceError as error:
        failure = str(error)
    offered = _devices(ort, provider, None)
    if offered and hardware is not None and not _devices(ort, provider, hardware):
        kinds = sorted({_hardware(found) for found in offered})
        return f"{provider.name} finds no {hardware} here; it finds: {', '.join(kinds)}"
    if offered or (hardware is None and provider.name in ort.get_available_providers()):
        return None
    has = ", ".join(sorted({*ort.get_available_providers(), *_names(ort)}))
    reason = f" ({failure})" if failure else ""
    if find_spec(provider.plugin or "-") is not None and not failure:
        return f"{provider.name} is installed and finds no device of its own here"
    return (
        f"onnxruntime {ort.__version__} has no {provider.name} here{reason}; it has {has}. "
        f"Install it with: {provider.install}"
    )


def use(session_options: Any, device: str) -> list[str] | None:
    """Have a session run on a device; returns the names of providers to open it with, None where
    the options hold all.

    Raises:
        DeviceError: it cannot be used here; the message has what installs it.
    """
    found = problem(device)
    if found is not None:
        raise DeviceError(found)
    provider, hardware = parse_device(device)
    ort = ort_session.require()
    devices = _devices(ort, provider, hardware)
    if devices and provider.name != PROVIDERS["CPU"].name:
        # One device: a provider lists a CPU beside what it was made for.
        best = max(devices, key=lambda entry: HARDWARE.index(_hardware(entry)))
        session_options.add_provider_for_devices([best], {})
        return None
    names = [provider.name]
    return names if provider.name == "CPUExecutionProvider" else [*names, "CPUExecutionProvider"]


def _register(ort: Any, provider: Provider) -> None:
    """Make a plug-in known, once, if there is one.

    Raises:
        DeviceError: it cannot be loaded.
    """
    with _lock:
        wanted = provider.plugin and provider.name not in _registered
        if not wanted or provider.name in _names(ort) or find_spec(provider.plugin) is None:
            return
        if not hasattr(ort, "register_execution_provider_library"):
            raise DeviceError(f"plug-ins need onnxruntime 1.24, and this is {ort.__version__}")
        library = importlib.import_module(provider.plugin).get_library_path()
        try:
            ort.register_execution_provider_library(provider.name, library)
        except Exception as error:  # onnxruntime has no class of its own for it
            reason = (str(error).splitlines() or ["it said nothing"])[0]
            raise DeviceError(f"its plug-in cannot be loaded: {reason}") from error
        _registered.add(provider.name)


def _entries(ort: Any) -> list[Any]:
    return list(ort.get_ep_devices()) if hasattr(ort, "get_ep_devices") else []


def _names(ort: Any) -> set[str]:
    return {entry.ep_name for entry in _entries(ort)}


def _devices(ort: Any, provider: Provider, hardware: str | None) -> list[Any]:
    return [
        entry
        for entry in _entries(ort)
        if entry.ep_name == provider.name and hardware in (None, _hardware(entry))
    ]


def _hardware(entry: Any) -> str:
    return str(entry.device.type.name)
