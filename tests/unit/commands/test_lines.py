"""Reading turns without a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from quickdraft.commands.lines import LineReader, history
from quickdraft.commands.options import decode_input, read_input
from quickdraft.errors import InputError


def turns(monkeypatch: pytest.MonkeyPatch, data: bytes) -> list[tuple[str, bool]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader = LineReader()
    assert not reader.interactive
    found = []
    while True:
        try:
            found.append(reader.turn())
        except EOFError:
            return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one\ntwo", [("one", False), ("two", False)]),
        (b"one\r\n\n", [("one", False), ("", False)]),
        (b'"""one\n  two"""\nthree\n', [("one\n  two", True), ("three", False)]),
        (b'"""\none\n"""\n', [("one", True)]),
        (b'"""one"""\n', [("one", True)]),
        (b'"""/bye"""\n', [("/bye", True)]),
        (b'"""never closed\nat all', [("never closed\nat all", True)]),
        ("\ufeffnaïve 東京\n".encode(), [("naïve 東京", False)]),
    ],
)
def test_turns(
    data: bytes, expected: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert turns(monkeypatch, data) == expected


def test_a_line_that_is_not_utf8_is_refused_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\nb\n")))
    reader = LineReader()
    with pytest.raises(InputError, match="byte 0xff at offset 1"):
        reader.turn()
    assert reader.turn() == ("b", False)


def test_closed_standard_input_has_no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(EOFError):
        LineReader().turn()
    assert read_input() == ""


def test_whole_input_loses_one_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\n")))
    assert read_input() == "one\n"


def test_decode_input_names_the_place() -> None:
    with pytest.raises(InputError, match="byte 0x80 at offset 3"):
        decode_input(b"abc\x80")


def test_history_is_left_alone_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with history(tmp_path / "history"):
        pass
    assert not (tmp_path / "history").exists()
