"""Sizes, tables and what a terminal is spared."""

from __future__ import annotations

import io

import pytest

from quickdraft.commands import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_human_size(count: int, text: str) -> None:
    assert output.human_size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (1234, "1.2 K"), (134_515_008, "134.5 M"), (1_543_714_304, "1.54 B")],
)
def test_human_count(count: int, text: str) -> None:
    assert output.human_count(count) == text


def test_table_aligns_columns() -> None:
    rows = [("name", "size"), ("a", "1 B"), ("longer", "12 B")]
    assert output.table(rows, right=frozenset({1})) == "name    size\na        1 B\nlonger  12 B"


def test_a_terminal_gets_no_escape_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, file = Terminal(), io.StringIO()
    text = "a\x1b[31mb\x07\x9b\tc\n"
    for stream in (terminal, file):
        monkeypatch.setattr("sys.stdout", stream)
        output.write(text)
    assert terminal.getvalue() == "a␛[31mb␇\N{REPLACEMENT CHARACTER}\tc\n"
    assert file.getvalue() == text


def test_colour_needs_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.wants_colour(Terminal())
    assert not output.wants_colour(io.StringIO())
    assert not output.wants_colour(None)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.wants_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not output.wants_colour(Terminal())


def test_json_keeps_letters_and_refuses_what_is_not_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.print_json({"text": "東京\n"})
    assert capsys.readouterr().out == '{"text": "東京\\n"}\n'
    with pytest.raises(ValueError):
        output.print_json({"rate": float("nan")})


def test_nothing_is_written_to_a_closed_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    output.write("text")
    output.print_json({})
