"""Several files in one command: a bad one costs no other its answer, and nothing found is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import ctranslate2 as tiny
from tiny.models import write_tiny_model
from tiny.process import call
from tiny.sounds import FLOAT, pcm16, tone, wav

from quickdraft.commands import run as run_command
from quickdraft.errors import BackendError, Cancelled
from quickdraft.export.pipeline import export_model
from quickdraft.runtime.audio.transcribe import Segment, Transcriber
from quickdraft.runtime.backends.base import CancelToken


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    export_model(tiny.write_folder(folder / "ctranslate2"), folder / "bundle", weights="fp32")
    return folder / "bundle"


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Good, not finite from its second window on, good."""
    bad = np.zeros(8_000, "<f4")
    bad[4_000:] = np.nan
    data = {
        "a.wav": pcm16(tone(440, 0.3, 16_000)),
        "b.wav": wav(bad.tobytes(), kind=FLOAT, bits=32),
        "c.wav": pcm16(tone(220, 0.3, 16_000)),
    }
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in data]


def transcribe(model: Path, *arguments: object) -> Any:
    return call(
        *("transcribe", "--model", model, "--backend", "onnxruntime", "--no-timestamps"), *arguments
    )


def test_bad_sound_between_good_ones(whisper: Path, sounds: list[Path], tmp_path: Path) -> None:
    done = transcribe(whisper, *sounds, "--json")
    assert done.returncode == 2
    lines = {Path(line["file"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["a.wav", "b.wav", "c.wav"]
    assert lines["b.wav"]["error"]["type"] == "AudioError"
    assert len(lines["b.wav"]["segments"]) == 2, "what was found before the damage"
    assert "error" not in lines["a.wav"]
    assert lines["c.wav"]["segments"]
    assert done.stderr.count("error:") == 1
    assert "b.wav" in done.stderr
    plain = transcribe(whisper, *sounds)
    assert plain.returncode == 2
    assert [f"{sound}:" in plain.stdout.splitlines() for sound in sounds] == [True] * 3
    made = tmp_path / "made"
    done = transcribe(whisper, *sounds, "--output-dir", made, "--format", "json")
    assert done.returncode == 2
    assert sorted(f.name for f in made.iterdir()) == ["a.json", "b.json.part", "c.json"]
    assert len(json.loads((made / "b.json.part").read_text())["segments"]) == 2
    assert "b.json.part" in done.stderr


def test_what_cannot_be_opened_is_said_first_and_the_rest_is_done(
    whisper: Path, sounds: list[Path]
) -> None:
    sounds[0].write_bytes(b"")
    done = transcribe(whisper, *sounds, "--json")
    names = [Path(json.loads(line)["file"]).name for line in done.stdout.splitlines()]
    assert (done.returncode, names) == (2, ["a.wav", "b.wav", "c.wav"])
    assert "is empty (0 bytes)" in done.stderr


def test_no_model_is_loaded_where_no_file_is_left(tmp_path: Path) -> None:
    done = transcribe(tmp_path / "no-model", tmp_path / "one.wav", tmp_path / "two.wav")
    assert done.returncode == 2
    assert "no-model" not in done.stderr
    assert done.stderr.count("No such file") == 2


def window(text: str) -> Any:
    return SimpleNamespace(
        segments=(Segment(0.0, 1.0, text, (0,)),), cut_off=False, to_dict=lambda: {}
    )


def said(at: int, error: Exception) -> Any:
    """Transcriber.windows that fails with `error` in the file at `at`, after one segment."""
    calls = iter(range(9))

    def windows(self: Transcriber, *_: Any) -> Iterator[Any]:
        yield window("words")
        if next(calls) == at:
            raise error

    return windows


@pytest.mark.parametrize(
    ("error", "code", "files"),
    [(BackendError("the engine"), 1, 3), (Cancelled("stopped on request"), 130, 2)],
)
def test_an_interruption_ends_all_and_a_failure_does_not(
    whisper: Path,
    sounds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    files: int,
) -> None:
    monkeypatch.setattr(Transcriber, "windows", said(1, error))
    done = transcribe(whisper, *sounds, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(lines)) == (code, files)
    assert [len(line["segments"]) for line in lines] == [1] * files
    assert [line.get("error", {}).get("type") for line in lines[:2]] == [None, type(error).__name__]
    monkeypatch.setattr(Transcriber, "windows", said(1, error))
    done = transcribe(whisper, *sounds, "--output-dir", tmp_path / "made")
    assert done.returncode == code
    assert (tmp_path / "made" / "b.txt.part").read_text() == "words\n"
    assert not (tmp_path / "made" / "b.txt").exists()
    assert (tmp_path / "made" / "c.txt").exists() == (files == 3)


def test_mixed_failures_are_failures(
    whisper: Path, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds[0].write_bytes(b"")
    monkeypatch.setattr(Transcriber, "windows", said(1, BackendError("the engine")))
    assert transcribe(whisper, *sounds).returncode == 1


def test_a_token_cancelled_between_files_is_an_interruption(
    whisper: Path, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def windows(self: Transcriber, sound: Any, cancel: CancelToken, *_: Any) -> Iterator[Any]:
        yield window("words")
        cancel.cancel()

    monkeypatch.setattr(Transcriber, "windows", windows)
    done = transcribe(whisper, *sounds)
    assert (done.returncode, done.stdout.count("words")) == (130, 1)


def prompts(folder: Path, *texts: str) -> list[object]:
    """--input options for files with these texts."""
    found: list[object] = []
    for number, text in enumerate(texts):
        file = folder / f"{number}.txt"
        file.write_text(text)
        found += ["--input", file]
    return found


def test_a_long_prompt_does_not_end_the_others(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "small", formats=("reference",))
    asked = ("run", tmp_path / "small", "-n", 2, "--json")
    done = call(*asked, *prompts(tmp_path, "a b", "x" * 26_000, "c d", ""))
    assert done.returncode == 2
    lines = {Path(line["file"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["3.txt", "0.txt", "1.txt", "2.txt"]
    assert "512" in lines["1.txt"]["error"]["message"]
    assert lines["2.txt"]["token_ids"]
    assert lines["0.txt"]["token_ids"]
    assert "1.txt: " in done.stderr
    assert "holds no text" in done.stderr


def test_an_option_that_fails_for_all_is_said_once(tiny_bundle: Path, tmp_path: Path) -> None:
    done = call(*("run", tiny_bundle, "--logit-bias", "99999=1"), *prompts(tmp_path, "a b", "c d"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("names token 99999") == 1


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where_a_file_failed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise BackendError("the engine")

    monkeypatch.setattr(run_command, "_stream", broken)
    words = ["run", tiny_bundle, *prompts(tmp_path, "a b", "c d")]
    line = ["--debug", *words] if place == "before" else [*words, "--debug"]
    done = call(*line)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2
    assert "Traceback" not in call(*words).stderr
