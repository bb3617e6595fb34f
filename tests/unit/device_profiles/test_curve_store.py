"""Stored curves: found again on the same device only, and never believed blindly."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraft.device_profiles.curve import Curve
from quickdraft.device_profiles.curve_store import (
    MAX_BYTES,
    Device,
    curve_path,
    load_curve,
    save_curve,
)

DEVICE = Device("Some Processor", 4, 0, "hotpath", "avx2", "f16", "quickdraft 1")
CURVE = Curve((1, 2, 8), (0.01, 0.011, 0.02), (1e-6, 1.5e-6, 3e-6))


def saved() -> Path:
    path = save_curve(DEVICE, "bundle", CURVE)
    assert path is not None
    return path


def test_a_curve_is_found_again() -> None:
    path = saved()
    assert path == curve_path(DEVICE, "bundle")
    found = load_curve(DEVICE, "bundle")
    assert found is not None
    assert found.rows == CURVE.rows
    assert found.seconds == pytest.approx(CURVE.seconds, abs=1e-9)
    assert found.growth == pytest.approx(CURVE.growth, abs=1e-12)


@given(st.dictionaries(st.integers(2, 40), st.floats(1e-9, 10), max_size=9), st.floats(1e-9, 10))
def test_any_curve_is_found_again(times: dict[int, float], single: float) -> None:
    save_curve(DEVICE, "any", Curve.smoothed({1: single, **times}))
    assert load_curve(DEVICE, "any") is not None


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "Another"},
        {"processors": 8},
        {"threads": 2},
        {"backend": "onnxruntime"},
        {"isa": "avx512vnni"},
        {"kv_type": "int8"},
        {"versions": "quickdraft 2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_device_has_another_curve(change: dict[str, Any]) -> None:
    saved()
    assert load_curve(dataclasses.replace(DEVICE, **change), "bundle") is None
    assert load_curve(DEVICE, "another bundle") is None


def edited(**fields: Any) -> bytes:
    document = json.loads(saved().read_bytes())
    document.update(fields)
    return json.dumps({k: v for k, v in document.items() if v is not ...}).encode()


BAD = {
    "empty": lambda: b"",
    "truncated": lambda: saved().read_bytes()[:-20],
    "not JSON": lambda: b"\x00" * 64,
    "not UTF-8": lambda: saved().read_bytes().replace(b"Some", b"\xff\xff"),
    "a list": lambda: b"[]",
    "a number": lambda: b"1",
    "too large": lambda: saved().read_bytes() + b" " * MAX_BYTES,
    "too deep": lambda: b"[" * 9 + b"]" * 9,
    "NaN": lambda: saved().read_bytes().replace(b"10000000", b"NaN", 1),
    "another schema": lambda: edited(schema_version=2),
    "no schema": lambda: edited(schema_version=...),
    "an unknown key": lambda: edited(colour="blue"),
    "a missing key": lambda: edited(rows=...),
    "text for a number": lambda: edited(rows=["1", 2, 8]),
    "a fraction": lambda: edited(nanoseconds=[1.5, 2, 3]),
    "a negative time": lambda: edited(nanoseconds=[-1, 2, 3]),
    "a time of zero": lambda: edited(nanoseconds=[0, 2, 3]),
    "falling times": lambda: edited(nanoseconds=[3, 2, 1]),
    "rows that do not rise": lambda: edited(rows=[1, 8, 2]),
    "too few times": lambda: edited(nanoseconds=[1, 2]),
    "a huge time": lambda: edited(nanoseconds=[1, 2, 10**40]),
    "another device": lambda: edited(device=dataclasses.asdict(DEVICE) | {"threads": 9}),
    "another bundle": lambda: edited(bundle="other"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_and_not_used(case: str, caplog: pytest.LogCaptureFixture) -> None:
    path = saved()
    path.write_bytes(BAD[case]())
    with caplog.at_level(logging.WARNING):
        assert load_curve(DEVICE, "bundle") is None
    assert path.name in caplog.text
    assert "measuring again" in caplog.text
    saved()
    assert load_curve(DEVICE, "bundle") is not None


def test_a_folder_in_the_place_of_the_file(caplog: pytest.LogCaptureFixture) -> None:
    curve_path(DEVICE, "bundle").mkdir(parents=True)
    assert load_curve(DEVICE, "bundle") is None
    assert save_curve(DEVICE, "bundle", CURVE) is None
    assert "cannot be read" in caplog.text
    assert "cannot be kept" in caplog.text


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "file"))
    assert save_curve(DEVICE, "bundle", CURVE) is None
    assert load_curve(DEVICE, "bundle") is None
    assert "cannot be kept" in caplog.text


def test_a_broken_write_leaves_the_old_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved()
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert save_curve(DEVICE, "bundle", Curve((1,), (9.0,))) is None
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
