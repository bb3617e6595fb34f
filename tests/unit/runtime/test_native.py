"""The native library as Python finds it; what the kernels compute is tested elsewhere."""

from __future__ import annotations

import _ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quickdraft.errors import BackendError
from quickdraft.runtime import native


def test_without_a_library_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("QUICKDRAFT_LIBRARY", raising=False)
    monkeypatch.setattr(native.resources, "files", lambda package: tmp_path)
    assert native.library_path() is None
    with pytest.raises(BackendError, match=r"without QUICKDRAFT_PURE.*'onnxruntime'"):
        native.load()
    (tmp_path / native._file_name()).touch()
    assert native.library_path() == tmp_path / native._file_name()


def test_a_wrong_path_is_not_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing.so", tmp_path, Path("")):
        monkeypatch.setenv("QUICKDRAFT_LIBRARY", str(wrong))
        with pytest.raises(BackendError, match=r"QUICKDRAFT_LIBRARY is .* not a file"):
            native.library_path()
    right = tmp_path / "any.so"
    right.touch()
    monkeypatch.setenv("QUICKDRAFT_LIBRARY", str(right))
    assert native.library_path() == right


def test_a_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"\x7fELF and then nothing")
    monkeypatch.setenv("QUICKDRAFT_LIBRARY", str(damaged))
    with pytest.raises(BackendError, match=r"damaged\.so cannot be loaded"):
        native.load()


@pytest.mark.skipif(not hasattr(_ctypes, "__file__"), reason="no extension module to load")
def test_a_library_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKDRAFT_LIBRARY", _ctypes.__file__)
    with pytest.raises(BackendError, match="not a library of quickdraft"):
        native.load()


class FakeHandle(SimpleNamespace):
    """A library of which only the version, the sizes and the instruction set can be asked."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("qd_"):
            raise AttributeError(name)
        function = type("Function", (), {"__call__": lambda self, *arguments: None})()
        setattr(self, name, function)
        return function


def fake(abi: int, cache_bytes: int) -> FakeHandle:
    class Answer:
        def __init__(self, value: int) -> None:
            self.value = value

        def __call__(self, *arguments: object) -> int:
            return self.value

    return FakeHandle(qd_abi_version=Answer(abi), qd_args_bytes=Answer(cache_bytes))


@pytest.mark.parametrize(("abi", "cache_bytes"), [(2, 56), (4, 56), (3, 48)])
def test_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abi: int, cache_bytes: int
) -> None:
    path = tmp_path / "old.so"
    path.touch()
    monkeypatch.setenv("QUICKDRAFT_LIBRARY", str(path))
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: fake(abi, cache_bytes))
    with pytest.raises(
        BackendError, match=f"version {abi} of the interface.* needs {native.ABI_VERSION}"
    ):
        native.load()


@pytest.mark.native
def test_the_library_is_ours_and_loaded_once() -> None:
    library = native.load()
    assert native.load() is library
    assert set(library.runnable()) <= set(library.compiled())
    assert library.compiled()[-1] == "portable"
    assert "portable" in library.runnable()
    assert native.isa() in library.runnable()


@pytest.mark.native
@pytest.mark.parametrize(("name", "works"), [("portable", True), ("mmx", False)])
def test_the_instruction_set_can_be_chosen(name: str, works: bool) -> None:
    script = "from quickdraft.runtime import native; print(native.isa())"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "QUICKDRAFT_ISA": name},
        capture_output=True,
        text=True,
    )
    if works:
        assert result.stdout.strip() == name
    else:
        assert f"BackendError: QUICKDRAFT_ISA is '{name}'" in result.stderr
        assert "portable" in result.stderr


@pytest.mark.native
@pytest.mark.parametrize("kv_type", [0, 1, 2])
def test_move_rows_over_all_layers(kv_type: int) -> None:
    library = native.load()
    form = native.CacheForm(kv_type, capacity=32, head_dim=8, kv_heads=(2, 1))
    head_bytes = library.kv_head_bytes(kv_type, 8)
    before = np.random.default_rng(1).integers(0, 255, 32 * 3 * head_bytes, dtype=np.uint8)
    cache = before.copy()
    native.move_rows(cache, form, [5, 20], [5, 20])
    np.testing.assert_array_equal(cache, before)
    native.move_rows(cache, form, [], [])
    native.move_rows(cache, form, [20, 21], np.array([3, 20]))
    changed = np.flatnonzero(cache != before)
    assert 0 < len(changed) <= 2 * 3 * head_bytes
    again = before.copy()
    native.move_rows(again, form, [20], [3])
    native.move_rows(again, form, [21], [20])
    np.testing.assert_array_equal(again, cache)


@pytest.mark.native
@pytest.mark.parametrize(
    ("source", "target", "capacity", "kv_type"),
    [
        ([3], [4], 32, 0),
        ([32], [0], 32, 0),
        ([3], [-1], 32, 0),
        ([3], [1], 16, 0),
        ([3], [1], 33, 0),
        ([3], [1], 32, 3),
        ([3, 4], [1], 32, 0),
    ],
)
def test_move_rows_refuses(
    source: list[int], target: list[int], capacity: int, kv_type: int
) -> None:
    cache = np.arange(32 * 64, dtype=np.int32).view(np.uint8)[: 32 * 64]
    before = cache.copy()
    form = native.CacheForm(kv_type, capacity, head_dim=8, kv_heads=(1,))
    with pytest.raises(BackendError, match="cannot move"):
        native.move_rows(cache, form, source, target)
    np.testing.assert_array_equal(cache, before)


@pytest.mark.native
def test_move_rows_wants_bytes_it_can_write() -> None:
    form = native.CacheForm(0, capacity=16, head_dim=4, kv_heads=(1,))
    for wrong in (np.zeros(512, np.int8), np.zeros(1024, np.uint8)[::2]):
        with pytest.raises(BackendError, match="contiguous, writable uint8"):
            native.move_rows(wrong, form, [1], [0])
    frozen = np.zeros(512, np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(BackendError, match="contiguous, writable uint8"):
        native.move_rows(frozen, form, [1], [0])
