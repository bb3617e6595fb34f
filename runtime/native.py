"""The native library: where it is, whether it fits, and the part of it that Python calls.

Its ops are registered with ONNX Runtime by path, `library_path()`. Nothing is compiled here: the
library comes with the installation, or not at all (`QUICKDRAFT_PURE=1`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quickdraft.errors import BackendError

ABI_VERSION = 3
FILE_NAMES = {"win32": "quickdraft.dll", "darwin": "libquickdraft.dylib"}
REINSTALL = "reinstall quickdraft with a C++ compiler at hand and without QUICKDRAFT_PURE"


class _Cache(ctypes.Structure):
    """QdCache of capi.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("capacity", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("kv_heads", ctypes.c_void_p),
    )


SIGNATURES = {
    "qd_abi_version": (ctypes.c_int, ()),
    "qd_isa": (ctypes.c_char_p, ()),
    "qd_isa_compiled": (ctypes.c_char_p, (ctypes.c_int,)),
    "qd_isa_runnable": (ctypes.c_int, (ctypes.c_char_p,)),
    "qd_record_bytes": (ctypes.c_int64, (ctypes.c_int32, ctypes.c_int64)),
    "qd_kv_head_bytes": (ctypes.c_int64, (ctypes.c_int32, ctypes.c_int64)),
    "qd_args_bytes": (ctypes.c_int64, (ctypes.c_char_p,)),
    "qd_move_rows": (
        ctypes.c_int,
        (ctypes.POINTER(_Cache), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
    ),
}
"""Functions of capi.h used from Python: result, then arguments."""


@dataclass(frozen=True)
class CacheForm:
    """What a flat KV buffer holds: `capacity` slots of every layer, layer after layer.

    kv_type: 0 float32, 1 float16, 2 int8 with scales. kv_heads: one count per layer.
    """

    kv_type: int
    capacity: int
    head_dim: int
    kv_heads: tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """A loaded library of the version we know."""

    path: Path
    handle: ctypes.CDLL

    def isa(self) -> str:
        """The instruction set in use; QUICKDRAFT_ISA chooses another, once per process.

        Raises:
            BackendError: QUICKDRAFT_ISA names one that is unknown or that this machine lacks.
        """
        name: bytes | None = self.handle.qd_isa()
        if name is None:
            raise BackendError(
                f"QUICKDRAFT_ISA is {os.environ.get('QUICKDRAFT_ISA')!r}, which is not among the "
                f"instruction sets that run here: {', '.join(self.runnable())}; set one of these, "
                "or none"
            )
        return name.decode()

    def compiled(self) -> list[str]:
        """Instruction sets in the library, best first, whether they run here or not."""
        names: list[str] = []
        while (name := self.handle.qd_isa_compiled(len(names))) is not None:
            names.append(name.decode())
        return names

    def runnable(self) -> list[str]:
        """Those of `compiled` that run on this machine."""
        return [name for name in self.compiled() if self.handle.qd_isa_runnable(name.encode())]

    def kv_head_bytes(self, kv_type: int, head_dim: int) -> int:
        """Bytes of one slot of one KV head, key and value; 0 for a type or size that is unknown."""
        return int(self.handle.qd_kv_head_bytes(kv_type, head_dim))

    def record_bytes(self, weight_format: int, columns: int) -> int:
        """Bytes of 16 rows of a matrix in kernel layout; 0 where the columns do not suit it."""
        return int(self.handle.qd_record_bytes(weight_format, columns))

    def move_rows(
        self,
        cache: NDArray[np.uint8],
        form: CacheForm,
        source: Sequence[int] | NDArray[np.int64],
        target: Sequence[int] | NDArray[np.int64],
    ) -> None:
        """Move slot source[i] to slot target[i] in every layer, for i = 0, 1, ... in order.

        cache: [bytes], contiguous, changed in place. target[i] <= source[i] < form.capacity.

        Raises:
            BackendError: form and buffer do not fit, or a slot is out of range; nothing was moved.
        """
        if not (cache.dtype == np.uint8 and cache.flags.c_contiguous and cache.flags.writeable):
            raise BackendError("the KV buffer must be contiguous, writable uint8")
        if len(source) != len(target):
            raise BackendError(f"{len(source)} slots cannot move to {len(target)} slots")
        # Held until the call returns: the structure has only their addresses.
        heads = np.asarray(form.kv_heads, dtype=np.int64)
        from_ = np.ascontiguousarray(source, dtype=np.int64)
        to = np.ascontiguousarray(target, dtype=np.int64)
        described = _Cache(
            cache.ctypes.data,
            cache.nbytes,
            form.kv_type,
            form.capacity,
            form.head_dim,
            len(heads),
            heads.ctypes.data,
        )
        status = self.handle.qd_move_rows(
            ctypes.byref(described), from_.ctypes.data, to.ctypes.data, len(from_)
        )
        if status != 0:
            raise BackendError(
                f"cannot move slots {from_.tolist()} to {to.tolist()} in {cache.nbytes} bytes of "
                f"{form} (status {status})"
            )


def library_path() -> Path | None:
    """The library's file, or None where quickdraft was installed without native code.

    QUICKDRAFT_LIBRARY, a path, replaces the one that came with the installation.

    Raises:
        BackendError: QUICKDRAFT_LIBRARY names no file.
    """
    chosen = os.environ.get("QUICKDRAFT_LIBRARY")
    if chosen is not None:
        path = Path(chosen)
        if not path.is_file():
            raise BackendError(
                f"QUICKDRAFT_LIBRARY is {chosen!r}, which is not a file; set it to the path of a "
                f"{_file_name()}, or unset it to use the installed one"
            )
        return path.absolute()
    # Not beside this file: an editable installation keeps the library elsewhere.
    found = resources.files("quickdraft.runtime") / _file_name()
    return Path(str(found)) if found.is_file() else None


def load() -> Library:
    """The native library, loaded and checked; the same object for the same file.

    Raises:
        BackendError: there is none, it cannot be loaded, or it is of another version.
    """
    path = library_path()
    if path is None:
        raise BackendError(
            f"this installation has no native library ({_file_name()}); {REINSTALL}, or use the "
            "backend 'onnxruntime'"
        )
    return _open(path)


def isa() -> str:
    """The instruction set in use, by its name in `runtime/csrc/kernels/`; see `Library.isa`."""
    return load().isa()


def move_rows(
    cache: NDArray[np.uint8],
    form: CacheForm,
    source: Sequence[int] | NDArray[np.int64],
    target: Sequence[int] | NDArray[np.int64],
) -> None:
    """`Library.move_rows` of the library in use."""
    load().move_rows(cache, form, source, target)


def _file_name() -> str:
    return FILE_NAMES.get(sys.platform, "libquickdraft.so")


@functools.cache
def _open(path: Path) -> Library:
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"{path} cannot be loaded: {error}; it was built for another system or is damaged; "
            f"{REINSTALL}"
        ) from error
    try:
        # First the version: other signatures are only known to hold for ours.
        found = handle.qd_abi_version()
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise BackendError(f"{path} is not a library of quickdraft: {error}") from error
    stated = handle.qd_args_bytes(b"cache") if found == ABI_VERSION else 0
    if found != ABI_VERSION or stated != ctypes.sizeof(_Cache):
        raise BackendError(
            f"{path} has version {found} of the interface and this quickdraft needs {ABI_VERSION}; "
            f"{REINSTALL}"
        )
    return Library(path, handle)
