"""`quickdraft transcribe` on a tiny model whose windows are 0.12 s long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import ctranslate2 as tiny
from tiny.process import call
from tiny.sounds import FLOAT, pcm16, tone, wav

from quickdraft.commands import transcribe as command
from quickdraft.export.pipeline import export_model
from quickdraft.runtime.audio.transcribe import Segment, Transcriber


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    export_model(tiny.write_folder(folder / "ctranslate2"), folder / "bundle", weights="fp32")
    return folder / "bundle"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    file = tmp_path / "talk.wav"
    file.write_bytes(pcm16(tone(440, 0.5, 16_000)))
    return file


def transcribe(model: Path, *arguments: object) -> tuple[str, str]:
    """Standard output and error of a run that ends well."""
    done = call("transcribe", "--model", model, "--backend", "onnxruntime", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_every_window_is_written_down(model: Path, sound: Path) -> None:
    stdout, _ = transcribe(model, sound, "--no-timestamps", "--json")
    file = json.loads(stdout)
    assert file["model"] == str(model)
    assert file["file"] == str(sound)
    times = [(each["start"], each["end"]) for each in file["segments"]]
    assert len(times) > 1
    for start, end in times:
        assert end == pytest.approx(min(start + 0.12, 0.5))
    lines, _ = transcribe(model, sound, "--no-timestamps")
    assert lines.splitlines() == [each["text"] for each in file["segments"]]


def test_several_files_have_titles_or_files_of_their_own(
    model: Path, sound: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(sound.read_bytes())
    stdout, _ = transcribe(model, sound, other, "--no-timestamps")
    first, second = stdout.removeprefix(f"{sound}:\n").split(f"{other}:\n")
    assert first == second != ""
    folder = tmp_path / "made" / "here"
    stdout, _ = transcribe(
        model, sound, other, "--no-timestamps", "--format", "srt", "--output-dir", folder
    )
    assert stdout == ""
    assert sorted(file.name for file in folder.iterdir()) == ["other.srt", "talk.srt"]
    assert (folder / "talk.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:00,120\n")


def test_segments_are_printed_as_they_are_found(
    model: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def windows(*_: Any) -> Iterator[Any]:
        for number in range(3):
            events.append(f"found {number}")
            segment = Segment(number, number + 1, f"words {number}", (0,))
            yield SimpleNamespace(segments=(segment,), cut_off=False, to_dict=lambda: {})

    monkeypatch.setattr(Transcriber, "windows", windows)
    monkeypatch.setattr(command, "write", lambda text: events.append(text.strip()))
    transcribe(model, sound)
    assert events == [f"{kind} {n}" for n in range(3) for kind in ("found", "words")]


BAD: dict[str, tuple[bytes, str]] = {
    "empty.wav": (b"", "is empty (0 bytes)"),
    "silent.wav": (wav(b""), "no samples"),
    "text.wav": (b"Dear reader, this is no sound at all.", "is not a WAV file"),
    "nan.wav": (
        wav(np.full(99, np.nan, "<f4").tobytes(), kind=FLOAT, bits=32),
        "not finite numbers, the first at 0.000 s",
    ),
    "cut.wav": (wav(bytes(100), claimed=5000), "is cut off"),
    "adpcm.wav": (wav(bytes(100), kind=17), "IMA ADPCM"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sound_is_bad_input(model: Path, tmp_path: Path, name: str) -> None:
    data, says = BAD[name]
    (tmp_path / name).write_bytes(data)
    done = call("transcribe", "--model", model, "--backend", "onnxruntime", tmp_path / name)
    assert done.returncode == 2
    assert says in done.stderr
    assert name in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("samples", [tone(440, 1 / 16_000, 16_000), np.zeros((800, 10), "f4")])
def test_short_and_wide_sound_is_read(model: Path, tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "odd.wav"
    file.write_bytes(pcm16(samples))
    stdout, _ = transcribe(model, file, "--no-timestamps", "--json")
    assert len(json.loads(stdout)["segments"]) <= 1


def test_bad_options_are_bad_use(model: Path, sound: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / sound.name
    again.parent.mkdir()
    again.write_bytes(sound.read_bytes())
    for arguments, says in [
        ((sound, "--json", "--format", "srt"), "leave out --format"),
        ((sound, again, "--output-dir", tmp_path), "have one name"),
        ((sound, "--language", "de"), "knows English only"),
        ((sound, "--task", "translate"), "nothing to translate"),
        ((tmp_path / "none.wav",), "No such file"),
    ]:
        done = call("transcribe", "--model", model, "--backend", "onnxruntime", *arguments)
        assert (done.returncode, says in done.stderr) == (2, True), (arguments, done.stderr)


def test_a_model_of_text_hears_nothing(tiny_bundle: Path, sound: Path) -> None:
    done = call("transcribe", "--model", tiny_bundle, "--backend", "onnxruntime", sound)
    assert done.returncode == 2
    assert "reads text, not sound" in done.stderr
