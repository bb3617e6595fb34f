"""The sanitized build finds what it should; runs under `python dev.py test --sanitize`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.native import isas

TESTS = Path(__file__).resolve().parents[1]
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not SANITIZED, reason="not run under `python dev.py test --sanitize`"),
]

BEGIN = """
import numpy as np
from tiny.native import Kernels, Matrix, record_bytes

x = np.ones((64, 512), np.float32)
data = np.zeros((4, record_bytes("w8", 512)), np.uint8)
matrix = Matrix("w8", data, 64, 512)
ids = np.zeros(1, np.int64)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", BEGIN + script]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("isa", isas())
def test_a_matrix_that_is_shorter_than_it_says(isa: str) -> None:
    result = run(f"matrix.n = 80; Kernels({isa!r}).linear(x, matrix)")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "runtime/csrc/kernels" in result.stderr, "the report should say where"


def test_a_row_beyond_the_end() -> None:
    result = run("matrix.n, ids[0] = 80, 70; Kernels().embed(matrix, ids)")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


def test_sound_calls_do_not() -> None:
    result = run("Kernels().linear(x, matrix); Kernels().embed(matrix, ids)")
    assert result.returncode == 0, result.stderr
