"""What the backends over OpenVINO share: the device, its properties, compiled models, requests."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickdraft.device_names import hardware
from quickdraft.errors import (
    BackendError,
    BundleError,
    Cancelled,
    DeviceError,
    MissingExtra,
    OptionError,
)
from quickdraft.hashes import cache_root
from quickdraft.runtime.backends.base import CancelToken
from quickdraft.runtime.backends.openvino_ir import check_ir
from quickdraft.types import WIDE_FAMILIES

try:
    import openvino as ov
except ImportError:  # reported when a backend is opened, with the extra to install
    ov = None

DEFAULT_DEVICE = "CPU"
_KINDS = ("CPU", "GPU", "NPU", "AUTO")


@functools.cache
def core() -> Any:
    """The one openvino.Core of the process, which knows the devices.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    if ov is None:
        raise MissingExtra("openvino", "openvino")
    return ov.Core()


def check_device(device: str | None) -> str:
    """The name of a device of this machine, for OpenVINO; None is the CPU.

    Names are OpenVINO's: `CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO`, `AUTO:GPU,CPU`, in any case.

    Raises:
        DeviceError: there is no such device here, or no such name.
        MissingExtra: OpenVINO is not installed.
    """
    name = DEFAULT_DEVICE if device is None else device.upper()
    if not re.fullmatch(r"(CPU|GPU|NPU)(\.\d+)?|AUTO(:[A-Z0-9.,-]+)?", name):
        raise DeviceError(
            f"OpenVINO has no device {device!r}; name one of {', '.join(_KINDS)}, such as "
            "openvino:GPU"
        )
    here = list(core().available_devices)
    known = {*here, *(each.split(".")[0] for each in here)}
    wanted = [] if name == "AUTO" else name.removeprefix("AUTO:").split(",")
    for each in wanted:
        if each.removeprefix("-") not in known:
            raise DeviceError(
                f"OpenVINO finds no device {each!r} here (it finds: {', '.join(here)}); install "
                "its driver, or choose one of these"
            )
    return name


def properties(
    device: str, threads: int | None, apart: bool = False, family: str = ""
) -> dict[str, Any]:
    """Properties to compile with. threads: of one step, on the CPU; None leaves it to OpenVINO.
    apart: for graphs of fixed dimensions, and those that read sources. family: of the model.

    Float32 throughout where the device can: else the CPU rounds activations to bfloat16 wherever
    it has instructions for that, and answers depend on the machine.

    Raises:
        OptionError: threads are asked for of another device.
        DeviceError: what the family computes does not fit the device.
    """
    found: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        found["NUM_STREAMS"] = "1"
        found["INFERENCE_PRECISION_HINT"] = "f32"
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        # Threads of other engines work beside, and must not inherit one core.
        found["ENABLE_CPU_PINNING"] = False
        if apart:
            # OpenVINO 2026.4.1 crashes while it joins small ops of some graphs of 4 or 8 rows. Of
            # attention that is joined, the result is wrong once its keys were one row.
            found["SNIPPETS_MODE"] = "DISABLE"
        if threads is not None:
            found["INFERENCE_NUM_THREADS"] = threads
    elif family in WIDE_FAMILIES and "npu" in hardware("openvino", device):
        raise DeviceError(
            f"what models of the family {family} compute does not fit float16, and {device} "
            "computes in that; use openvino:CPU or openvino:GPU"
        )
    elif device.startswith("AUTO") or family in WIDE_FAMILIES:
        # It may begin on the CPU and go on elsewhere: both must compute in the same precision.
        found["EXECUTION_MODE_HINT"] = "ACCURACY"
    if device != "CPU" and threads is not None:
        raise OptionError(
            f"threads is {threads}, and only OpenVINO's CPU has threads to set; leave the option "
            f"out for {device}"
        )
    folder = cache_root() / "openvino"
    folder.mkdir(parents=True, exist_ok=True)
    if device != "CPU":  # a graph is read and compiled for the CPU as fast as found in a cache
        found["CACHE_DIR"] = str(folder)
    return found


def compile_graph(xml: Path, weights: Path, device: str, how: Mapping[str, Any]) -> Any:
    """An openvino.CompiledModel.

    Raises:
        BundleError: the files are damaged. BackendError: the device cannot compile the graph.
    """
    check_ir(xml, weights)
    try:
        model = core().read_model(str(xml), str(weights))
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot read {xml.name}: {_first(error)}") from error
    try:
        return core().compile_model(model, device, dict(how))
    except RuntimeError as error:
        raise BackendError(
            f"OpenVINO {ov.__version__} cannot compile {xml.name} for {device}: {_first(error)}"
        ) from error


def placed(device: str, compiled: Any) -> str:
    """A device as people read it: of `AUTO`, with what computes now in brackets. compiled: None
    where nothing runs any more."""
    if not device.startswith("AUTO") or compiled is None:
        return device
    return f"{device} ({', '.join(compiled.get_property('EXECUTION_DEVICES'))})"


def kv_type(compiled: Any) -> str:
    """How a compiled graph stores keys and values in states, in our words; what devices other than
    the CPU compute in, where they do not tell."""
    if "KV_CACHE_PRECISION" not in compiled.get_property("SUPPORTED_PROPERTIES"):
        return "f16"
    name = compiled.get_property("KV_CACHE_PRECISION").to_string()
    return {"f32": "f32", "u8": "int8", "i8": "int8"}.get(name, "f16")


def tensor(array: Any) -> Any:
    """The memory of an array as an openvino.Tensor, not copied."""
    return ov.Tensor(array, shared_memory=True)


def run(request: Any, cancel: CancelToken | None) -> None:
    """One inference of what is set.

    Raises:
        Cancelled: on request; the inference is over. BackendError: OpenVINO failed.
    """
    try:
        request.start_async()
        if cancel is not None:
            cancel.attach(request.cancel)
        try:
            request.wait()
        finally:
            if cancel is not None:
                cancel.attach(None)
    except RuntimeError as error:
        if cancel is not None and cancel.cancelled:
            raise Cancelled("stopped on request") from None
        raise BackendError(f"OpenVINO failed in a step: {_first(error)}") from error


def check_names(model: str, compiled: Any, inputs: set[str], outputs: set[str]) -> None:
    """Compare a graph with what its manifest promises.

    Raises:
        BundleError: an input or output is missing, or one too many.
    """
    for kind, promised, found in (
        ("input", inputs, compiled.inputs),
        ("output", outputs, compiled.outputs),
    ):
        differing = sorted(promised ^ {name for port in found for name in port.get_names()})
        if differing:
            raise BundleError(
                f"{model}: manifest and graph disagree about the {kind} {differing[0]!r}; "
                "export the model again"
            )


def _first(error: RuntimeError) -> str:
    """The last line of OpenVINO's message says what is wrong; those before say where in its own
    sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason"
