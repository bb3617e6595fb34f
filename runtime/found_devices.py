"""The devices that the libraries of this installation find, as backends name them.

Profiles know GPUs and NPUs by the processor they come with; libraries know those that are there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from quickdraft.device_names import Hardware, hardware
from quickdraft.errors import DeviceError, MissingExtra

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A device. backend: with its name, as `--backend` takes it. kind: None where nobody tells.
    title: as its library describes it."""

    backend: str
    kind: Hardware | None
    title: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def found_devices() -> list[Found]:
    """All of them, those of OpenVINO first, then ONNX Runtime's providers, then Core ML's units."""
    return [*_of_openvino(), *_of_onnxruntime(), *_of_core_ml()]


def _found(backend: str, device: str, title: str) -> Found:
    kinds = hardware(backend, device)
    return Found(f"{backend}:{device}", kinds[0] if len(kinds) == 1 else None, title)


def _of_openvino() -> Iterator[Found]:
    from quickdraft.runtime.backends import openvino_device

    try:
        core = openvino_device.core()
        for name in core.available_devices:
            yield _found("openvino", name, str(core.get_property(name, "FULL_DEVICE_NAME")))
    except MissingExtra:
        return
    except RuntimeError as error:  # of OpenVINO, which has no class of its own for it
        _log.warning("OpenVINO cannot list its devices: %s", str(error).splitlines()[-1:])


def _of_onnxruntime() -> Iterator[Found]:
    from quickdraft.runtime.backends import providers

    try:
        for name, provider in providers.PROVIDERS.items():
            if providers.problem(name) is not None:
                continue
            kinds = providers.kinds_of(provider) if name != "CPU" else []
            for device in [f"{name}.{kind}" for kind in kinds] or [name]:
                yield _found("onnxruntime", device, provider.name)
    except (DeviceError, MissingExtra):
        return
    except AttributeError as error:
        _log.warning("onnxruntime is damaged: %s", error)


def _of_core_ml() -> Iterator[Found]:
    from quickdraft.runtime.backends import coreml_engine

    if coreml_engine.problem() is None and find_spec("coremltools") is not None:
        for unit in coreml_engine.UNITS[1:]:  # all of them together are none of their own
            yield _found("coreml", unit, "Core ML")
