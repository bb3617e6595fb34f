"""dev.py: the one file that must work before anything is installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from house.repo import ROOT


def load() -> ModuleType:
    """dev.py as a module."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py as a module, its environment in a folder of the test."""
    module = load()
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(module, "has_compiler", lambda: True)
    monkeypatch.setenv("QUICKDRAFT_PURE", "")
    return module


@pytest.fixture
def commands(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What dev.py would have run; creating the environment only makes an empty one."""
    seen: list[list[str]] = []

    def fake(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(list(command))
        if "venv" in command:
            Path(dev.tool("python")).parent.mkdir(parents=True)
            Path(dev.tool("python")).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(dev.subprocess, "run", fake)
    return seen


def test_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"))
    names = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_old_python_is_refused(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "OLDEST_PYTHON", (99, 0))
    assert dev.main(["setup"]) == 2
    assert "needs 99.0 or newer" in capsys.readouterr().err


def test_programs_on_windows(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.os, "name", "nt")
    assert dev.tool("python").endswith("python.exe")
    assert "Scripts" in dev.tool("python")


def test_setup_runs_again_only_when_the_project_changed(
    dev: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dev.main(["setup"]) == 0
    assert [c for c in commands if ".[onnx,dev]" in c]
    commands.clear()
    assert dev.main(["setup"]) == 0
    assert not commands
    monkeypatch.setattr(dev, "fingerprint", lambda: "changed")
    assert dev.main(["setup"]) == 0
    assert [c for c in commands if ".[onnx,dev]" in c]
    assert not [c for c in commands if "venv" in c], "the environment itself is kept"


def test_changed_kernels_are_built_again_and_nothing_else_is_done(
    dev: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dev, "NATIVE", tmp_path / "csrc")
    for name in ("kernels/a.cpp", "CMakeLists.txt", "tests/replay.cpp"):
        (dev.NATIVE / name).parent.mkdir(parents=True, exist_ok=True)
        (dev.NATIVE / name).write_text("1")
    assert dev.main(["setup"]) == 0
    for name, rebuilds in (("kernels/a.cpp", 1), ("CMakeLists.txt", 1), ("tests/replay.cpp", 0)):
        commands.clear()
        (dev.NATIVE / name).write_text("2")
        assert dev.main(["setup"]) == 0
        assert [c[-3:] for c in commands] == [["--no-deps", "--editable", "."]] * rebuilds, name
    commands.clear()
    (dev.NATIVE / "kernels/a.cpp").rename(dev.NATIVE / "kernels/b.cpp")
    assert dev.main(["setup"]) == 0
    assert len(commands) == 1


def test_asking_for_an_installation_without_native_code_and_back(
    dev: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dev.main(["setup"]) == 0
    for wish in ("1", "0"):
        commands.clear()
        monkeypatch.setenv("QUICKDRAFT_PURE", wish)
        assert dev.main(["setup"]) == 0
        assert [c[-3:] for c in commands] == [["--no-deps", "--editable", "."]]


def test_without_a_compiler_native_code_is_left_out_loudly(
    dev: ModuleType,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dev, "has_compiler", lambda: False)
    assert dev.main(["setup"]) == 0
    assert "WITHOUT the native library" in capsys.readouterr().err
    assert dev.os.environ["QUICKDRAFT_PURE"] == "1"
    assert json.loads(dev.STAMP.read_text())["native"] == "pure"


@pytest.mark.parametrize(
    ("compiler", "found"), [("no-such-compiler -O2", False), ("python3", True)]
)
def test_the_compiler_of_the_environment_counts(
    monkeypatch: pytest.MonkeyPatch, compiler: str, found: bool
) -> None:
    module = load()
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(module.os, "name", "posix")
    monkeypatch.setattr(module.shutil, "which", lambda name: name if name == "python3" else None)
    assert module.has_compiler() == found


def test_sanitizers_are_loaded_before_python(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], dict[str, str]]] = []

    def fake(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append((list(command), options["env"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dev, "setup", lambda everything=False: None)
    monkeypatch.setattr(dev.sys, "platform", "linux")
    monkeypatch.setattr(dev.shutil, "which", lambda name: name)
    monkeypatch.setattr(dev.subprocess, "run", fake)
    monkeypatch.setattr(dev.subprocess, "check_output", lambda command, **_: f"/x/{command[-1]}\n")
    assert dev.main(["test", "--sanitize", "-x"]) == 0
    assert "-DQD_SANITIZE=address,undefined" in seen[0][0]
    command, env = seen[-1]
    assert command[1:3] == ["-m", "pytest"]
    assert command[-1] == "-x"
    assert env["LD_PRELOAD"].split()[0].endswith("libasan.so")
    assert env["QUICKDRAFT_LIBRARY"].endswith("libquickdraft.so")
    monkeypatch.setattr(dev.shutil, "which", lambda name: None)
    assert dev.main(["test", "--sanitize"]) == 2
    with pytest.raises(SystemExit, match="2"):
        dev.main(["test", "--sanitize", "--all"])


def test_torch_comes_before_what_would_ask_for_any_torch(
    dev: ModuleType, commands: list[list[str]]
) -> None:
    assert dev.main(["setup", "--all"]) == 0
    last = [command[-1] for command in commands]
    assert last.index("torch==2.13.0") < last.index(".[onnx,dev,train,parity,openvino,coreml]")
    assert json.loads(dev.STAMP.read_text())["parity"] == dev.fingerprint()


@pytest.fixture
def failing(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[str]]]:
    """Make the first `times` commands exit with 7."""

    def install(times: int) -> list[list[str]]:
        seen: list[list[str]] = []

        def fake(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
            seen.append(list(command))
            return subprocess.CompletedProcess(command, 7 if len(seen) <= times else 0)

        monkeypatch.setattr(dev.subprocess, "run", fake)
        return seen

    return install


def test_pip_is_tried_twice(dev: ModuleType, failing: Callable[[int], list[list[str]]]) -> None:
    seen = failing(1)
    dev.pip_install("something")
    assert len(seen) == 2
    seen = failing(2)
    with pytest.raises(dev.Failed, match="exit code 7"):
        dev.pip_install("something")
    assert len(seen) == 2


def test_another_torch_where_the_exact_one_is_missing(
    dev: ModuleType, failing: Callable[[int], list[list[str]]]
) -> None:
    seen = failing(1)
    dev.install_torch()
    assert [command[-1] for command in seen] == list(dev.TORCH)


def test_exit_codes_and_arguments_pass_through(
    dev: ModuleType, failing: Callable[[int], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "setup", lambda everything=False: None)
    seen = failing(1)
    assert dev.main(["test", "--all", "-x", "-k", "tree"]) == 7
    assert seen[0][-5:] == ["-m", "", "-x", "-k", "tree"]
    with pytest.raises(SystemExit, match="2"):
        dev.main(["check", "--fast"])


@pytest.mark.parametrize(("checked", "code"), [(2, 1), (10_000, 0)])
def test_mypy_must_see_every_file(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, checked: int, code: int
) -> None:
    said = f"Success: no issues found in {checked} source files"
    monkeypatch.setattr(dev, "setup", lambda: None)
    monkeypatch.setattr(dev, "run", lambda *command, **_: None)
    monkeypatch.setattr(
        dev.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 0, said, "")
    )
    assert dev.main(["check"]) == code


def test_check_runs_every_step_and_writes_nothing(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def fake(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(list(command))
        return subprocess.CompletedProcess(command, 3, "", "")

    monkeypatch.setattr(dev, "setup", lambda: None)
    monkeypatch.setattr(dev.subprocess, "run", fake)
    assert dev.main(["check"]) == 3
    assert [command[2:4] if "-m" in command else command[1:3] for command in seen] == [
        ["ruff", "check"],
        ["ruff", "format"],
        ["--dry-run", "--Werror"],
        ["mypy", "--cache-dir"],
        ["pytest", "-p"],
    ]
    assert "--check" in seen[1]
    assert not {"--fix", "--fix-only"} & set(seen[0])


def test_its_own_environment_is_not_removed(
    dev: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev.sys, "prefix", str(dev.VENV))
    assert dev.main(["clean"]) == 2
    assert dev.main(["setup"]) == 2
    assert not commands
