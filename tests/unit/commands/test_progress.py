"""Bars where a terminal watches, and nothing anywhere else."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from quickdraft.commands.progress import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def draw(bars: Bars) -> None:
    with bars:
        for done in (0, 512, 1024):
            bars("download", done, 1024)
        bars("read", 0, 1)
        bars("read", 1, 1)
        bars("wait", 0, 0)


def test_a_terminal_sees_stages_with_sizes_and_percentages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    draw(Bars())
    shown = sys.stderr.getvalue()
    assert "download" in shown
    assert "1.0 KiB of 1.0 KiB" in shown
    assert "100 %" in shown
    assert "wait" in shown


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_nobody_else_sees_anything(
    stream: io.StringIO, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    draw(Bars(quiet=quiet))
    assert stream.getvalue() == ""


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    draw(Bars())


def test_rich_is_imported_when_something_is_drawn() -> None:
    script = (
        "import sys\n"
        "from quickdraft.commands.progress import Bars\n"
        "with Bars() as bars: bars('read', 0, 1)\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
