"""Sound files: all kinds that are read, and everything that is wrong with others."""

from __future__ import annotations

import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny.sounds import FLOAT, PCM, pcm16, tone, wav

from quickdraft.errors import AudioError, MissingExtra
from quickdraft.runtime.audio.sound import open_sound

SAMPLES = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 0.25], np.float32)


def read(path: Path) -> NDArray[np.float32]:
    with open_sound(path) as sound:
        return sound.read(0, len(sound))


@pytest.mark.parametrize(
    ("kind", "bits", "data", "error"),
    [
        (PCM, 8, np.round(SAMPLES * 127 + 128).astype(np.uint8).tobytes(), 1 / 127),
        (PCM, 16, np.round(SAMPLES * 32767).astype("<i2").tobytes(), 1e-4),
        (
            PCM,
            24,
            b"".join(int(s * 8388607).to_bytes(3, "little", signed=True) for s in SAMPLES),
            1e-6,
        ),
        (PCM, 32, np.round(SAMPLES.astype(float) * (2**31 - 1)).astype("<i4").tobytes(), 1e-6),
        (FLOAT, 32, SAMPLES.astype("<f4").tobytes(), 0),
        (FLOAT, 64, SAMPLES.astype("<f8").tobytes(), 0),
    ],
)
def test_every_kind_of_sample(
    tmp_path: Path, kind: int, bits: int, data: bytes, error: float
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(data, kind=kind, bits=bits))
    np.testing.assert_allclose(read(path), SAMPLES, atol=error, rtol=0)


def test_ten_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.linspace(-0.5, 0.7, 10, dtype=np.float32)
    path = tmp_path / "ten.wav"
    path.write_bytes(pcm16(np.tile(channels, (50, 1))))
    np.testing.assert_allclose(read(path), np.full(50, channels.mean()), atol=1e-4)


def test_one_sample_is_a_sound(tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    path.write_bytes(pcm16(np.array([0.5], np.float32)))
    with open_sound(path) as sound:
        assert len(sound) == 1
        assert sound.seconds == 1 / 16_000


def test_a_length_unknown_when_written_reaches_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    path.write_bytes(wav(b"\0\x40" * 100 + b"\0", claimed=0xFFFFFFFF))
    assert read(path).tolist() == [0.5] * 100


GOOD = pcm16(SAMPLES)
BAD = {
    "no bytes": (b"", "is empty"),
    "no samples": (wav(b""), "no samples"),
    "text": (b"Dear reader, this is a letter.", "is not a WAV file"),
    "only a start": (GOOD[:20], "damaged|without samples"),
    "cut off": (GOOD[:-4], "is cut off"),
    "no format": (GOOD[:12] + GOOD[36:], "before it says"),
    "a part too long": (GOOD[:16] + b"\xff\xff\xff\x7f" + GOOD[20:], "claims 2147483647 bytes"),
    "no channels": (wav(b"\0\0", channels=0), "0 channels"),
    "too many channels": (wav(bytes(130), channels=65), "65 channels"),
    "7 bits": (wav(b"\0\0", bits=7), "7 bits"),
    "A-law": (wav(b"\0\0", kind=6, bits=8), "A-law"),
    "rate of 0": (wav(b"\0\0", rate=0), "0 samples a second"),
    "rate of a billion": (wav(b"\0\0", rate=10**9), "1000000000 samples a second"),
    "not a number": (
        wav(np.array([0, np.nan], "<f4").tobytes(), kind=FLOAT, bits=32),
        "not finite",
    ),
    "infinite": (wav(np.array([1e300], "<f8").tobytes(), kind=FLOAT, bits=64), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.wav"):
        with pytest.raises(AudioError, match="cannot be read"):
            open_sound(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "a.wav"
    path.write_bytes(bytes(changed))
    with suppress(AudioError):
        assert np.isfinite(read(path)).all()


def test_three_hours_are_read_in_little_memory(tmp_path: Path) -> None:
    seconds = 3 * 3600
    path = tmp_path / "long.wav"
    path.write_bytes(wav(b"", rate=8000, claimed=seconds * 16_000))
    with path.open("r+b") as file:  # a hole, so no disk is used
        file.truncate(44 + seconds * 16_000)
        file.seek(44 + 2 * (seconds - 1) * 8000)
        file.write(np.full(8000, 8192, "<i2").tobytes())
    tracemalloc.start()
    with open_sound(path) as sound:
        assert sound.seconds == seconds
        last = sound.read(len(sound) - 480_000, 480_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(last[-8000] - 0.25) < 1e-3
    assert last[0] == 0
    assert peak < 20e6


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 12_345])
def test_resampling_keeps_a_tone_in_tune(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(pcm16(tone(440, 0.3, rate), rate=rate))
    heard, wanted = read(path), tone(440, 0.3, 16_000)
    assert abs(len(heard) - len(wanted)) <= 1
    middle = slice(400, len(wanted) - 400)
    np.testing.assert_allclose(heard[middle], wanted[middle], atol=2e-3)


def test_resampling_leaves_out_what_is_too_high(tmp_path: Path) -> None:
    path = tmp_path / "high.wav"
    path.write_bytes(pcm16(tone(12_000, 0.2, 48_000), rate=48_000))
    assert np.abs(read(path)[400:-400]).max() < 1e-3


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_windows_of_any_size_give_the_same_bits(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, rate // 2).astype(np.float32)
    path = tmp_path / "noise.wav"
    path.write_bytes(pcm16(noise, rate=rate))
    with open_sound(path) as sound:
        whole = sound.read(0, len(sound))
        pieces = [sound.read(at, 1234) for at in range(0, len(sound), 1234)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_other_kinds_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.delitem(sys.modules, "quickdraft.runtime.audio.libsndfile", raising=False)
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC" + bytes(40))
    with pytest.raises(MissingExtra, match=r"quickdraft\[audio\]"):
        open_sound(path)


def test_flac_is_read(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(300, 0.1, 16_000), 16_000)
    np.testing.assert_allclose(read(path), tone(300, 0.1, 16_000), atol=1e-4)
    path.write_bytes(b"fLaC" + bytes(40))
    with pytest.raises(AudioError, match="is not sound"):
        open_sound(path)
