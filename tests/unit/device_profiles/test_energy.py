"""Meters of energy: counters that wrap around, and power over time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quickdraft.device_profiles import energy


def zone(root: Path, name: str, microjoules: int, span: int = 999) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


@pytest.mark.skipif(sys.platform == "darwin", reason="RAPL is for Linux")
def test_packages_are_added_and_wrap_around(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 900)
    zone(tmp_path, "intel-rapl:1", 0)
    zone(tmp_path, "intel-rapl:0:0", 0)  # a part of a package counts once
    meter, name = energy.open_meter(tmp_path)
    assert meter is not None
    assert name == meter.name
    zone(tmp_path, "intel-rapl:0", 100)
    zone(tmp_path, "intel-rapl:1", 50)
    zone(tmp_path, "intel-rapl:0:0", 500)
    assert meter.joules() == pytest.approx((200 + 50) / 1e6)
    meter.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="RAPL is for Linux")
def test_why_there_is_no_meter(tmp_path: Path) -> None:
    assert energy.open_meter(tmp_path / "none")[0] is None
    assert "no RAPL" in energy.open_meter(tmp_path)[1]
    (zone(tmp_path, "intel-rapl:0", 0) / "energy_uj").write_text("?")
    meter, reason = energy.open_meter(tmp_path)
    assert meter is None
    assert "cannot be read" in reason


def test_power_is_summed_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    meter = energy.Powermetrics(FakeProcess())  # type: ignore[arg-type]
    for at, line in ((1.0, "Combined Power (CPU + GPU + ANE): 2000 mW\n"), (3.0, "CPU Power: 9\n")):
        now[0] = at
        meter._read([line])  # type: ignore[arg-type]
    assert meter.joules() == pytest.approx(4.0)
    meter.close()


class FakeProcess:
    stdout = None

    def terminate(self) -> None:
        pass

    def wait(self, timeout: float) -> None:
        pass
