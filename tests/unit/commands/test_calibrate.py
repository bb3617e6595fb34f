"""`quickdraft calibrate` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny.process import call

from quickdraft.device_profiles import bandwidth
from quickdraft.device_profiles.curve import Curve
from quickdraft.hashes import cache_root
from quickdraft.runtime import calibration


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = calibration.CalibrationPlan(rows=(1, 2, 4), long_rows=(1, 4), rounds=2)
    monkeypatch.setattr(calibration, "THOROUGH", plan)
    monkeypatch.setattr(calibration, "STEADY", float("inf"))
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda threads: 10.0 * threads)


def test_json(tiny_bundle: Path) -> None:
    done = call("calibrate", tiny_bundle, "--threads", "1", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert list(report) == [
        "model", "device", "bundle", "curve", "bandwidth_gb_s", "draft_ms", "stored",
    ]  # fmt: skip
    assert report["bandwidth_gb_s"] == 10.0
    assert all(spent >= 0 for spent in report["draft_ms"].values())
    curve = Curve(**{name: tuple(values) for name, values in report["curve"].items()})
    assert curve.rows == (1, 2, 4)
    assert report["device"]["threads"] == 1
    assert report["device"]["backend"]
    assert len(report["bundle"]) == 64
    assert report["stored"] is True


def test_the_table_says_where_the_curve_is(tiny_bundle: Path) -> None:
    done = call("calibrate", tiny_bundle)
    head, *rows, _, beside, kept = done.stdout.splitlines()
    assert head.split()[:2] == ["rows", "ms"]
    assert [row.split()[0] for row in rows] == ["1", "2", "4"]
    assert rows[0].split()[2] == "1.00"
    assert beside.startswith("memory ")
    assert "drafting: " in beside
    (file,) = (cache_root() / "curves").iterdir()
    assert kept == f"stored in {file}"


def test_a_busy_machine_is_said(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "STEADY", 0.0)
    done = call("calibrate", tiny_bundle)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "not stored"
    assert not (cache_root() / "curves").exists()


def test_each_number_of_threads_has_its_curve(tiny_bundle: Path) -> None:
    for threads in ("1", "2", "1"):
        call("calibrate", tiny_bundle, "--threads", threads)
    assert len(list((cache_root() / "curves").iterdir())) == 2


def test_a_bad_option_is_named(tiny_bundle: Path) -> None:
    done = call("calibrate", tiny_bundle, "--threads", "0")
    assert done.returncode == 2
    assert "threads is 0" in done.stderr
