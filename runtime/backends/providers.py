"""Execution providers of ONNX Runtime by name, and what installs them.

Providers come in two ways: built into a package of onnxruntime, or as a plug-in (a wheel of its own
whose library is registered with a stock onnxruntime, 1.24 or newer). Both are found through the
devices that onnxruntime lists, and through its list of built-in providers.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from typing import Any

from quickdraft.errors import DeviceError, OptionError
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


@dataclass(frozen=True)
class Choice:
    """What a device of ONNX Runtime names, such as `OpenVINO.GPU,cache_dir=folder,fallback=no`.

    hardware: which of a provider's, None for the best. options: the provider's own. fallback:
    whether nodes that it does not take may run on the processor; None: if it can be told which.
    """

    provider: Provider
    hardware: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    fallback: bool | None = None

    @property
    def on_processor(self) -> bool:
        """Whether it is ONNX Runtime's own provider, which takes every node."""
        return self.provider.name == PROVIDERS["CPU"].name


def parse_device(device: str) -> Choice:
    """What a device names: a provider, if need be its hardware, and options after commas.

    Raises:
        DeviceError: there can be no such provider or hardware.
        OptionError: an option is not written as KEY=VALUE, comes twice, or has a bad value.
    """
    place, *settings = device.split(",")
    name, dot, hardware = place.partition(".")
    if name not in PROVIDERS or (dot and hardware not in HARDWARE):
        raise DeviceError(
            f"the backend 'onnxruntime' has no device {device!r}; write a provider "
            f"({', '.join(PROVIDERS)}), and if need be its hardware ({', '.join(HARDWARE)}), such "
            "as onnxruntime:OpenVINO.GPU"
        )
    options: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals) or key in options:
            raise OptionError(
                f"device is {device!r}: {setting!r} must be KEY=VALUE, an option of {name} or "
                "fallback=yes or fallback=no, each once"
            )
        options[key] = value
    fallback = options.pop("fallback", None)
    if fallback not in (None, "yes", "no") or (fallback is not None and name == "CPU"):
        raise OptionError(
            f"device is {device!r}: fallback is yes or no, and the provider CPU has none"
        )
    return Choice(
        PROVIDERS[name], hardware or None, options, None if fallback is None else fallback == "yes"
    )


def problem(device: str) -> str | None:
    """Why a device of ONNX Runtime cannot be used here, and what to do; None if it can.

    Raises:
        DeviceError: there can be none of that name. MissingExtra: there is no ONNX Runtime.
    """
    choice = parse_device(device)
    provider, hardware = choice.provider, choice.hardware
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


def kinds_of(provider: Provider) -> list[str]:
    """The hardware that a provider lists here, as HARDWARE names it; none where it lists nothing.

    Raises:
        MissingExtra: there is no ONNX Runtime.
    """
    found = {_hardware(entry) for entry in _devices(ort_session.require(), provider, None)}
    return [kind for kind in HARDWARE if kind in found]


def use(session_options: Any, device: str) -> list[Any] | None:
    """Have a session run on a device; returns the providers to open it with, None where the options
    hold all. `fallen_back` says afterwards what did not run there.

    Raises:
        DeviceError: it cannot be used here; the message has what installs it.
        OptionError: see parse_device.
    """
    found = problem(device)
    if found is not None:
        raise DeviceError(found)
    choice = parse_device(device)
    ort = ort_session.require()
    name, options = choice.provider.name, dict(choice.options)
    named: list[Any] = [(name, options) if options else name]
    if choice.on_processor:
        return named
    if choice.fallback is False or (choice.fallback is None and not _counts(ort)):
        session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    devices = _devices(ort, choice.provider, choice.hardware)
    if not devices:
        return named
    # One device: a provider lists a CPU beside what it was made for.
    best = max(devices, key=lambda entry: HARDWARE.index(_hardware(entry)))
    session_options.add_provider_for_devices([best], options)
    return None


def fallen_back(sessions: Iterable[Any], device: str) -> str | None:
    """What of opened sessions runs on the processor instead of the device; None if nothing does.

    Raises:
        DeviceError: nothing of one runs on the device.
    """
    choice = parse_device(device)
    if choice.on_processor:
        return None
    if not _counts(ort_session.require()):  # then `use` forbade it, unless it was asked for
        unknown = f"this onnxruntime does not tell what {device} leaves to the processor"
        return unknown if choice.fallback else None
    taken, left = 0, Counter[str]()
    for session in sessions:
        taken_here, left_here = _assigned(session, choice.provider)
        if not taken_here:
            raise DeviceError(
                f"{choice.provider.name} takes none of the {left_here.total()} nodes of the graph, "
                "which would all run on the processor; leave the device out to run them there"
            )
        taken, left = taken + taken_here, left + left_here
    if not left:
        return None
    most = ", ".join(f"{count} {op}" for op, count in left.most_common(4))
    return (
        f"{device} runs {taken} of {taken + left.total()} nodes, and the processor runs the others "
        f"({most}{', ...' if len(left) > 4 else ''}); fallback=no refuses that"
    )


def _counts(ort: Any) -> bool:
    """Whether this onnxruntime tells which provider runs which node."""
    return hasattr(getattr(ort, "InferenceSession", None), "get_provider_graph_assignment_info")


def _assigned(session: Any, provider: Provider) -> tuple[int, Counter[str]]:
    """Nodes that a provider runs, and the kinds of those that it does not."""
    taken, left = 0, Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        if part.ep_name == provider.name:
            taken += len(nodes)
        else:
            left.update(node.op_type for node in nodes)
    return taken, left


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
