"""How the library of ops meets its host: hosts and libraries of other versions, twice, at once."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny.kernel_calls import matrix
from tiny.op_models import Session, example, session_options

from quickdraft.runtime.backends.hotpath import THREADS_KEY
from quickdraft.runtime.native import library_path

pytestmark = pytest.mark.native

INVALID_ARGUMENT = 2
BUILD_INFO = b"ORT Build Info: a fake"
CREATE, CODE, MESSAGE, RELEASE, BUILD = 0, 1, 2, 93, 254


class Host:
    """A host that is no ONNX Runtime: its version and the functions we let it have."""

    def __init__(self, version: bytes, code: int = INVALID_ARGUMENT, build: bytes = BUILD_INFO):
        self.asked: list[int] = []
        self.texts: list[ctypes.Array[Any]] = []
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        self._functions = {
            CREATE: ctypes.CFUNCTYPE(pointer, number, text)(self._create),
            CODE: ctypes.CFUNCTYPE(number, pointer)(lambda status: code),
            MESSAGE: ctypes.CFUNCTYPE(pointer, pointer)(lambda status: status),
            RELEASE: ctypes.CFUNCTYPE(None, pointer)(lambda status: None),
            BUILD: ctypes.CFUNCTYPE(pointer)(lambda: ctypes.cast(self._build, pointer).value),
        }
        self._build = ctypes.create_string_buffer(build)
        self._version = ctypes.create_string_buffer(version)
        self._table = (pointer * 300)()
        for slot, function in self._functions.items():
            self._table[slot] = ctypes.cast(function, pointer).value
        self._base = (
            ctypes.CFUNCTYPE(pointer, ctypes.c_uint32)(self._api),
            ctypes.CFUNCTYPE(pointer)(lambda: ctypes.addressof(self._version)),
        )

    def _create(self, code: int, text: bytes) -> int:
        self.texts.append(ctypes.create_string_buffer(text))
        return ctypes.addressof(self.texts[-1])

    def _api(self, version: int) -> int:
        self.asked.append(version)
        return ctypes.addressof(self._table)

    def register(self) -> str:
        """What the library answers to RegisterCustomOps."""
        register = ctypes.CDLL(str(library_path())).RegisterCustomOps
        register.restype, register.argtypes = ctypes.c_char_p, [ctypes.c_void_p] * 2
        pointer = ctypes.c_void_p
        base = (pointer * 2)(*(ctypes.cast(function, pointer).value for function in self._base))
        answer = register(None, ctypes.addressof(base))
        return (answer or b"accepted").decode()


@pytest.mark.parametrize(
    "version", [b"1.16.3", b"1.23.2", b"1.9.0", b"0.24.1", b"2.0.0", b"1.", b"", b"main"]
)
def test_a_host_too_old_or_unknown(version: bytes) -> None:
    host = Host(version)
    found = host.register()
    expected = f"quickdraft needs ONNX Runtime 1.24 or later, this is {version.decode()}"
    assert found == expected
    assert host.asked == [1], "no function that this host might lack"


@pytest.mark.parametrize(
    "host",
    [Host(b"1.24.1", code=3), Host(b"1.99.0", build=b"something else"), Host(b"1.24.1", build=b"")],
)
def test_a_host_with_other_functions(host: Host) -> None:
    assert host.register() == "quickdraft: this ONNX Runtime does not behave as its version should"


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    damaged = tmp_path / "libquickdraft.so"
    damaged.write_text("no library", encoding="utf-8")
    for path in (damaged, tmp_path / "missing.so"):
        with pytest.raises(Exception, match=path.name):
            onnxruntime.SessionOptions().register_custom_ops_library(str(path))


@pytest.mark.skipif(not hasattr(_ctypes, "__file__"), reason="no extension module to load")
def test_a_library_without_ops() -> None:
    with pytest.raises(Exception, match="RegisterCustomOps"):
        onnxruntime.SessionOptions().register_custom_ops_library(_ctypes.__file__)


def test_registered_twice() -> None:
    options = session_options()
    options.register_custom_ops_library(str(library_path()))
    with pytest.raises(Exception, match="Domain already set"):
        Session(example("Embed").model(), options)
    assert example("Embed").run()


def test_registered_by_several_threads() -> None:
    node = example("Embed")
    expected = node.run()
    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(node.run) for _ in range(20)]]
    assert all(np.array_equal(result[0], expected[0]) for result in found)


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "two", "2 ", "", "1" * 40])
def test_threads_that_are_no_number_of_threads(threads: str) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(THREADS_KEY, threads)
    with pytest.raises(Exception, match=r"quickdraft\.threads must be .* from 1 to 1024"):
        options.register_custom_ops_library(str(library_path()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_does_without_the_threads_of_its_parent() -> None:
    stored = matrix(np.random.default_rng(2), "w8", 2048, 64)  # enough to be shared out
    x = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    node = example("QLinear").but(x=x, weights=stored.data, bias=None, residual=None)
    node = node.but(format="w8", n=2048)
    session = node.session(4)
    expected = node.run(session)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(map(np.array_equal, node.run(session), expected)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_an_instruction_set_that_does_not_run_here() -> None:
    code = f"""
import onnxruntime
onnxruntime.SessionOptions().register_custom_ops_library({str(library_path())!r})
"""
    done = run_python(code, QUICKDRAFT_ISA="sse9")
    assert done.returncode == 1
    assert "QUICKDRAFT_ISA names no instruction set that runs here; there are" in done.stderr
    assert "portable" in done.stderr
    assert run_python(code, QUICKDRAFT_ISA="portable").returncode == 0
