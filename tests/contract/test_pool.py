"""The threads that loops run on, by themselves and under the thread sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "runtime" / "csrc"
COMPILER = shutil.which("c++")
CI = "CI" in os.environ  # nothing is left out there

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="no compiler named c++"),
]


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=" ".join)
@pytest.mark.parametrize("name", ["pool", "parts"])
def test_every_index_is_run_once(name: str, flags: list[str], tmp_path: Path) -> None:
    program = tmp_path / name
    sources = [CSRC / "tests" / f"{name}.cpp"]
    sources += [CSRC / "kernels" / "pool.cpp"] if name == "pool" else []
    command = [COMPILER, "-std=c++17", *flags, "-pthread", f"-I{CSRC}", *sources, "-o", program]
    built = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if "tsan" in built.stderr and not CI:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=clean, timeout=120)
    if "unexpected memory mapping" in done.stderr and not CI:
        pytest.skip("the thread sanitizer does not start on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr
