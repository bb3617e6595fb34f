"""Which formats a bundle is made in when nobody says."""

from __future__ import annotations

from quickdraft.device_names import needs_static, split_device
from quickdraft.registry import EMITTERS

WITH_PARTS = ("hotpath", "onnx", "onnx-static", "openvino", "openvino-static", "reference")
"""Emitters that write drafts and predictors beside the target."""
_OPENED_BY = {
    "coreml": "coreml",
    "hotpath": "hotpath",
    "onnxruntime": "onnx",
    "onnxruntime_static": "onnx-static",
    "openvino": "openvino",
    "reference": "reference",
}


def default_formats(backend: str = "auto", flavour: str | None = None) -> tuple[str, ...]:
    """Names of emitters: what `backend` opens; for "auto" (or a backend from elsewhere) `hotpath`
    where our kernels are installed, else `onnx`. flavour: the one that is wanted of the backend,
    taken where there is an emitter for it.

    Looks at the installation only, so that it keeps making the same bundles.

    Raises:
        OptionError: it names a device that such a backend cannot have.
        BackendError: QUICKDRAFT_LIBRARY names no file.
    """
    name, device = split_device(backend)
    if name in _OPENED_BY:
        static = f"{_OPENED_BY[name]}-static"
        wanted = flavour == "static" and static in EMITTERS
        return (static if wanted or needs_static(name, device) else _OPENED_BY[name],)
    from quickdraft.runtime.native import library_path

    return ("hotpath",) if library_path() is not None else ("onnx",)
