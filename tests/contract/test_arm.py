"""The kernels of 64-bit Arm, cross-compiled and emulated: the same bits as on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.kernel_calls import record
from tiny.replay import Call, differences, read_results, write_calls

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.arm,
    pytest.mark.native,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def tool(name: str) -> str:
    """A program of this environment, or of the machine."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed"
    return found


@pytest.fixture(scope="module")
def replay() -> Path:
    """The program that runs recorded calls, built for Arm; kept, so that it is built again fast."""
    folder = ROOT / "build" / "arm"
    options = {
        "QD_TESTS": "ON",
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
    }
    defined = [f"-D{name}={value}" for name, value in options.items()]
    source = ["-S", str(ROOT / "runtime" / "csrc"), "-B", str(folder), "-G", "Ninja"]
    for command in ([*source, *defined], ["--build", str(folder), "--target", "replay"]):
        result = subprocess.run([tool("cmake"), *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "replay"


def emulate(cpu: str, *command: str | Path) -> str:
    """Run a program on an emulated processor; what it prints."""
    line = [EMULATOR, "-L", str(SYSROOT), "-cpu", cpu, *map(str, command)]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path]:
    """Every kernel call as this machine's portable kernels answer it, and its file."""
    found, path = record("portable"), tmp_path_factory.mktemp("arm") / "calls"
    write_calls(path, found)
    return found, path


@pytest.mark.parametrize(
    ("cpu", "runnable"),
    [
        ("max", ["i8mm", "i8mm", "dotprod", "portable"]),
        ("cortex-a76", ["dotprod", "dotprod", "portable"]),
        ("cortex-a57", ["portable", "portable"]),
    ],
)
def test_the_best_instruction_set_is_chosen(replay: Path, cpu: str, runnable: list[str]) -> None:
    assert emulate(cpu, replay).split() == runnable


@pytest.mark.parametrize(("isa", "threads"), [("i8mm", 2), ("dotprod", 1), ("portable", 1)])
def test_same_bits_as_here(
    replay: Path, calls: tuple[list[Call], Path], tmp_path: Path, isa: str, threads: int
) -> None:
    recorded, path = calls
    results = tmp_path / "results"
    emulate("max", replay, path, results, isa, str(threads))
    assert not differences(recorded, read_results(results, recorded))
