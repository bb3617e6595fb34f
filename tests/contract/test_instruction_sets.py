"""Every kernel gives the same bits on every instruction set and with any number of threads."""

from __future__ import annotations

import functools

import pytest
from tiny.kernel_calls import record
from tiny.native import isas
from tiny.replay import BUFFERS, Call, differences

pytestmark = pytest.mark.native


@functools.cache
def expected() -> list[Call]:
    return record("portable")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", isas())
def test_same_bits(isa: str, threads: int) -> None:
    found = [call.results for call in record(isa, threads)]
    assert not differences(expected(), found)


def test_every_kernel_is_called() -> None:
    assert {call.name for call in expected()} == set(BUFFERS)
    assert len(expected()) > 150


def test_a_different_bit_is_found() -> None:
    found = [call.results for call in expected()]
    first = bytearray(found[3][0])
    first[9] ^= 1
    found[3] = (bytes(first), *found[3][1:])
    (line,) = differences(expected(), found)
    assert line.startswith(expected()[3].label)
    assert "1 words" in line
