"""Memory of the machine, asked of systems that are not this one."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from quickdraft.device_profiles import machine


class Kernel:
    """kernel32 of a Windows with 16 GiB, 5 of them free. answer: what the call gives back."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked = 0

    def GlobalMemoryStatusEx(self, pointer: Any) -> int:
        # The layout that Windows documents: two 32-bit numbers, then seven 64-bit ones.
        raw = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))
        self.asked = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint32))[0]
        raw[1], raw[2] = 16 << 30, 5 << 30
        return self.answer


def on_windows(monkeypatch: pytest.MonkeyPatch, answer: int) -> Kernel:
    kernel = Kernel(answer)
    monkeypatch.setattr(machine.sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    return kernel


def test_windows_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = on_windows(monkeypatch, 1)
    assert machine.memory() == (16 << 30, 5 << 30)
    assert kernel.asked == 64  # bytes of MEMORYSTATUSEX, without which Windows refuses


def test_a_windows_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    on_windows(monkeypatch, 0)
    assert machine.memory() == (None, None)
    monkeypatch.delattr(ctypes, "windll")
    assert machine.memory() == (None, None)
