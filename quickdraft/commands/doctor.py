"""`quickdraft doctor`: what is installed, what this machine has, and whether a model could run."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any

import click

from quickdraft import __version__, registry
from quickdraft.commands.options import common_options
from quickdraft.commands.output import human_size, print_json, table
from quickdraft.device_profiles import machine
from quickdraft.errors import BackendError, MissingExtra

PACKAGES = ("numpy", "tokenizers", "safetensors", "huggingface-hub", "onnxruntime", "onnx-ir")
EXTRAS = {
    "onnx": ("onnxruntime", "onnx_ir", "onnx"),
    "bench": ("matplotlib", "psutil"),
    "train": ("accelerate", "torch"),
}

# y = -x for one float32, opset 13, as a serialized ModelProto.
_NEGATION = (
    b'\x08\x07:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@click.command()
@click.option(
    "--selftest", is_flag=True, help="Run a tiny model with every backend, and compare them."
)
@common_options
@click.pass_context
def doctor(ctx: click.Context, selftest: bool, as_json: bool) -> None:
    """Report on this machine and installation.

    Exits with 0 if models can run with ONNX Runtime, and with 1 otherwise; with --selftest, with 0
    if every backend that is installed computes what it should.
    """
    if selftest:
        ctx.exit(_selftest(as_json))
    report = examine()
    if as_json:
        print_json(report)
    else:
        click.echo(table([(name, value) for name, value in _lines(report)]))
    ctx.exit(0 if report["onnxruntime"]["works"] else 1)


def _selftest(as_json: bool) -> int:
    """Run and report it; the exit code."""
    from quickdraft.commands import selftest

    results = []
    for result in selftest.run():
        results.append(result)
        if not as_json:
            state = {True: "works", False: "FAILS", None: "left out"}[result.passed]
            said = result.problem or f"differs by {result.error:.1e} of the largest logit"
            click.echo(f"{result.name:<32} {state}: {said}")
    if as_json:
        print_json({"selftest": [result.as_json() for result in results]})
    return 1 if any(result.passed is False for result in results) else 0


def examine() -> dict[str, Any]:
    """Everything the command reports, as plain JSON types."""
    total, free = machine.memory()
    return {
        "quickdraft": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": sorted(registry.BACKENDS),
        "missing_extras": _missing_extras(),
        "onnxruntime": _onnxruntime(),
        "devices": _devices(),
        "native": _native(),
        "cpu": {
            "name": machine.cpu_name(),
            "features": machine.cpu_features(),
            "physical_cores": machine.physical_cores(),
            "usable_processors": machine.usable_processors(),
        },
        "memory": {"total": total, "available": free},
        "cache": _cache(),
        "hub": {
            "offline": {
                name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            },
            "endpoint": os.environ.get("HF_ENDPOINT"),
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_extras() -> dict[str, str]:
    """The line that installs each extra of which a package is missing."""
    return {
        extra: f"pip install 'quickdraft[{extra}]'"
        for extra, modules in EXTRAS.items()
        if any(util.find_spec(module) is None for module in modules)
    }


def _onnxruntime() -> dict[str, Any]:
    """Import ONNX Runtime and run the smallest model with it."""
    report: dict[str, Any] = {"works": False, "problem": None, "providers": [], "devices": []}
    try:
        import numpy as np

        ort = importlib.import_module("onnxruntime")
        report["providers"] = list(ort.get_available_providers())
        report["devices"] = [
            f"{device.ep_name} on {device.device.type.name.lower()} ({device.device.vendor})"
            for device in getattr(ort, "get_ep_devices", list)()
        ]
        session = ort.InferenceSession(_NEGATION, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": np.ones(1, np.float32)})
        report["works"] = answer.tolist() == [-1.0]
        if not report["works"]:
            report["problem"] = f"it computes -1 * 1 = {answer.tolist()}"
    except ImportError as error:
        report["problem"] = f"not importable: {error}"
    except (RuntimeError, OSError, ValueError) as error:
        report["problem"] = str(error)
    return report


def _devices() -> list[dict[str, Any]]:
    """Devices that the libraries find, under the names that --backend takes."""
    from quickdraft.runtime.found_devices import found_devices

    return [found.to_dict() for found in found_devices()]


def _native() -> dict[str, Any]:
    """The native library: its file, its instruction sets, and what keeps it from being used."""
    from quickdraft.runtime import native
    from quickdraft.runtime.backends import hotpath

    report: dict[str, Any] = {"library": None, "isa": None, "runnable": [], "problem": None}
    try:
        library = native.load()
        report["library"] = str(library.path)
        report["runnable"] = library.runnable()
        report["isa"] = library.isa()
        hotpath.session_options(None)
    except (BackendError, MissingExtra) as error:
        report["problem"] = str(error)
    return report


def _cache() -> dict[str, Any]:
    from quickdraft.models import store

    folder = store.cache_folder()
    return {
        "folder": str(folder),
        "bytes": sum(entry.size for entry in store.entries()),
        "writable": machine.is_writable(folder),
    }


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The report for people: a name and a sentence per line."""
    yield "quickdraft", f"{report['quickdraft']}, Python {report['python']} ({sys.executable})"
    yield "system", report["system"]
    for name, version in report["packages"].items():
        yield name, version or "not installed"
    yield "backends", ", ".join(report["backends"]) or "none"
    for extra, line in report["missing_extras"].items():
        yield f"extra [{extra}]", f"missing; install with: {line}"
    ort = report["onnxruntime"]
    yield "ONNX Runtime", "works" if ort["works"] else f"does not work: {ort['problem']}"
    yield "providers", ", ".join(ort["providers"]) or "none"
    yield "devices", "; ".join(ort["devices"]) or "unknown"
    for found in report["devices"]:
        kind = "" if found["kind"] is None else f", {found['kind']}"
        yield "device", f"{found['backend']}: {found['title']}{kind}"
    native = report["native"]
    if native["isa"] is not None:
        yield "instruction set", f"{native['isa']}, of {' '.join(native['runnable'])}"
    yield "native library", _native_state(native)
    yield from _machine_lines(report["cpu"], report["memory"])
    cache = report["cache"]
    state = "" if cache["writable"] else ", NOT WRITABLE (set QUICKDRAFT_CACHE to another folder)"
    yield "cache", f"{cache['folder']} ({human_size(cache['bytes'])}){state}"
    offline = [f"{name}={value}" for name, value in report["hub"]["offline"].items() if value]
    yield "hub", ", ".join(offline) or "online"


def _native_state(native: dict[str, Any]) -> str:
    if native["problem"] is not None:
        return f"not used: {native['problem']}"
    return str(native["library"])


def _machine_lines(cpu: dict[str, Any], memory: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "processor", cpu["name"] or "unknown"
    features = cpu["features"]
    yield "features", "unknown" if features is None else " ".join(features) or "none we look for"
    cores, processors = cpu["physical_cores"], cpu["usable_processors"]
    yield "cores", f"{cores or 'unknown'} ({processors or 'unknown'} usable processors)"
    parts = [
        f"{human_size(memory[key])} {word}"
        for key, word in (("total", "in all"), ("available", "available"))
        if memory[key] is not None
    ]
    yield "memory", ", ".join(parts) or "unknown"
