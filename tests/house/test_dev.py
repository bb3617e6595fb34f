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


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py as a module, its environment in a folder of the test."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp.json")
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


def test_torch_comes_before_what_would_ask_for_any_torch(
    dev: ModuleType, commands: list[list[str]]
) -> None:
    assert dev.main(["setup", "--all"]) == 0
    last = [command[-1] for command in commands]
    assert last.index("torch==2.13.0") < last.index(".[onnx,dev,parity]")
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
    assert [command[2:4] for command in seen] == [
        ["ruff", "check"],
        ["ruff", "format"],
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
