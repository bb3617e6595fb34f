"""Which formats a bundle is made in when nobody says."""

from __future__ import annotations

WITH_PARTS = ("hotpath", "onnx", "openvino", "openvino-static", "reference")
"""Emitters that write drafts and predictors beside the target."""
_OPENED_BY = {
    "coreml": "coreml",
    "hotpath": "hotpath",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "openvino:NPU": "openvino-static",
    "reference": "reference",
}


def default_formats(backend: str = "auto") -> tuple[str, ...]:
    """Names of emitters: what `backend` opens; for "auto" (or a backend from elsewhere) `hotpath`
    where our kernels are installed, else `onnx`.

    Looks at the installation only, so that it keeps making the same bundles.

    Raises:
        BackendError: QUICKDRAFT_LIBRARY names no file.
    """
    for name in (backend, backend.partition(":")[0]):  # what follows names a device
        if name in _OPENED_BY:
            return (_OPENED_BY[name],)
    from quickdraft.runtime.native import library_path

    return ("hotpath",) if library_path() is not None else ("onnx",)
