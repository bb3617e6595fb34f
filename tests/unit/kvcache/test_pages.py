"""A cache that grows holds little more than its larger size, and loses nothing."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from quickdraft.kvcache.blocked import BlockedCache
from quickdraft.kvcache.pages import ALIGNMENT, MAPPED_FROM, Pages
from quickdraft.types import ModelSpec


@pytest.mark.parametrize("size", [1, 1000, MAPPED_FROM, MAPPED_FROM + 4097])
def test_zeros_of_the_size_and_alignment(size: int) -> None:
    buffer = Pages(size).buffer
    assert buffer.shape == (size,)
    assert buffer.dtype == np.uint8
    assert buffer.ctypes.data % ALIGNMENT == 0
    assert buffer.flags.writeable
    assert not buffer.any()


def test_buffer_outlives_its_pages() -> None:
    buffer = Pages(MAPPED_FROM).buffer
    buffer[:] = 7
    assert int(buffer.sum(dtype=np.int64)) == 7 * MAPPED_FROM


def test_release_gives_back_whole_pages_only() -> None:
    pages = Pages(4 * MAPPED_FROM)
    pages.buffer[:] = 1
    pages.release(100, 3 * mmap.PAGESIZE + 50)
    assert pages.buffer[: mmap.PAGESIZE].all()
    assert pages.buffer[3 * mmap.PAGESIZE :].all()
    if sys.platform == "linux":  # elsewhere pages may keep what they held
        assert not pages.buffer[mmap.PAGESIZE : 3 * mmap.PAGESIZE].any()


def test_release_of_a_small_buffer_keeps_it() -> None:
    pages = Pages(1000)
    pages.buffer[:] = 3
    pages.release(0, 1000)
    assert (pages.buffer == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
def test_growing_never_holds_both_copies() -> None:
    spec = ModelSpec(
        family="llama",
        num_layers=16,
        hidden_size=64,
        num_heads=(4,) * 16,
        num_kv_heads=(4,) * 16,
        head_dim=64,
        vocab_size=32,
        context_length=8192,
        windows=(None,) * 16,
    )
    cache = BlockedCache(spec, "f32", capacity=4096)
    cache.buffer[:] = 1  # 128 MiB
    cache.stage(4096)
    cache.commit(range(4096))
    held = cache.nbytes
    before = _peak_reset()
    cache.stage(1)
    assert cache.capacity == 8192
    grown = _peak() - before
    # Both copies whole would be as much again; a layer is a sixteenth of it.
    assert grown < held / 4


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _peak() -> int:
    return _status("VmHWM")


def _peak_reset() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of this process cannot be reset")
    return _status("VmRSS")
