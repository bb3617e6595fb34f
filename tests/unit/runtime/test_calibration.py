"""Calibration: what is timed, how rounds are combined, when a curve is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny.models import write_tiny_model
from tiny.toy_backend import ToyBackend, hashed, toy_spec

from quickdraft.bundle import read_manifest
from quickdraft.device_profiles.curve_store import load_curve
from quickdraft.errors import BackendError
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.calibration import (
    FEW_ROWS,
    SHORT,
    CalibrationPlan,
    calibrate,
    curve_for,
    device_of,
    files_key,
    measure_curve_of,
)

PLAN = CalibrationPlan(rows=(1, 2, 4, 8), long_rows=(1, 4), context=256, rounds=3, seconds=1e9)


class Timed(ToyBackend):
    """A backend whose steps cost what `cost(step, rows, context)` says, by its own clock."""

    def __init__(self, cost: Callable[[int, int, int], float], context_length: int = 1024) -> None:
        super().__init__(hashed(16), toy_spec(16, context_length))
        self.cost = cost
        self.now = 0.0
        self.taken: list[tuple[int, int]] = []

    def step(self, tree: Any, cache: Any, *args: Any, **options: Any) -> Any:
        self.taken.append((cache.length, len(tree)))
        self.now += self.cost(len(self.taken), len(tree), cache.length)
        assert options == {"full_logits": False}
        cache.stage(len(tree))


def measure(backend: Timed, plan: CalibrationPlan = PLAN) -> Any:
    return measure_curve_of(backend, plan, clock=lambda: backend.now)


def test_another_device_has_another_curve() -> None:
    """That of OpenVINO's CPU says nothing of its GPU."""
    found = []
    for device in ("CPU", "GPU", "GPU.1"):
        backend = Timed(lambda step, rows, context: 1.0)
        backend.device = device
        found.append(device_of(backend, None))
    assert len(set(found)) == 3
    assert found[0].backend == "toy"


def test_rows_and_context_are_told_apart() -> None:
    backend = Timed(lambda step, rows, context: 1.0 + 0.1 * rows + 1e-3 * context * (1 + rows))
    measured = measure(backend)
    assert measured.steady
    assert measured.curve.rows == (1, 2, 4, 8)
    assert measured.curve.seconds == pytest.approx((1.1, 1.2, 1.4, 1.8))
    assert measured.curve.growth == pytest.approx((2e-3, 3e-3, 5e-3, 9e-3))


def test_points_take_turns() -> None:
    backend = Timed(lambda *_: 1.0)
    measure(backend)
    once = [(0, 1), (256, 1), (0, 2), (0, 4), (256, 4), (0, 8)]
    assert backend.taken == once * 3


def test_a_disturbance_of_one_round_does_not_count() -> None:
    backend = Timed(lambda step, rows, context: 1.0 + 0.1 * rows + 5.0 * (6 < step <= 12))
    measured = measure(backend)
    assert measured.steady
    assert measured.curve.seconds == pytest.approx((1.1, 1.2, 1.4, 1.8))


def test_a_busy_machine_is_noticed() -> None:
    backend = Timed(lambda step, rows, context: rows * (1.0 + step * 0.7 % 1.0 + step // 6))
    assert not measure(backend).steady


def test_one_point_that_is_always_disturbed_is_noticed() -> None:
    """All rounds agree, and two rows cost more than four."""
    backend = Timed(lambda step, rows, context: 1.6 if rows == 2 else 1.0 + 0.05 * rows)
    measured = measure(backend)
    assert not measured.steady
    assert measured.curve.at(2) == pytest.approx(measured.curve.at(4))


def test_rounds_that_disagree_are_followed_by_more() -> None:
    """Busy for three rounds, quiet then."""
    backend = Timed(lambda step, rows, context: 1.0 + 0.1 * rows + max(0, 19 - step))
    measured = measure(backend)
    assert measured.steady
    assert measured.curve.seconds == pytest.approx((1.1, 1.2, 1.4, 1.8))
    assert len(backend.taken) == 5 * 6


def test_a_short_context_has_no_growth() -> None:
    backend = Timed(lambda step, rows, context: 1.0 + context, context_length=16)
    assert measure(backend).curve.growth == (0.0,) * 4
    tiny = Timed(lambda step, rows, context: 1.0, context_length=3)
    assert measure(tiny).curve.rows == (1, 2)


def test_time_is_limited() -> None:
    """A slow model gets two rounds of few rows, whatever the plan says."""
    backend = Timed(lambda step, rows, context: 0.4)
    measured = measure(backend, SHORT)
    rows = {rows for _, rows in backend.taken}
    assert max(rows) == FEW_ROWS
    assert len(backend.taken) == 2 * len(set(backend.taken))
    assert measured.curve.at(16) >= measured.curve.at(8)


def test_the_progress_is_reported() -> None:
    backend = Timed(lambda *_: 1.0)
    seen: list[tuple[str, int, int]] = []
    measure_curve_of(backend, PLAN, clock=lambda: backend.now, progress=lambda *p: seen.append(p))
    assert seen == [("calibrate", done, 18) for done in range(1, 19)]


def test_a_failing_engine_is_not_hidden() -> None:
    backend = ToyBackend(hashed(16), toy_spec(16, 1024))
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        measure_curve_of(backend, PLAN)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_model(folder, max_position_embeddings=512)
    return folder


def test_a_real_backend_is_measured_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(bundle)
    monkeypatch.setattr("quickdraft.runtime.calibration.STEADY", float("inf"))
    backend = open_backend(bundle, manifest, "auto", 1).backend
    first = curve_for(backend, manifest, 1)
    assert first.rows == SHORT.rows
    monkeypatch.setattr("quickdraft.runtime.calibration.measure_curve_of", None)
    assert curve_for(backend, manifest, 1).rows == first.rows
    backend.close()


def test_a_busy_machine_leaves_no_curve_behind(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = read_manifest(bundle)
    monkeypatch.setattr("quickdraft.runtime.calibration.STEADY", 0.0)
    backend = open_backend(bundle, manifest, "auto", 1).backend
    with caplog.at_level(logging.INFO):
        done = calibrate(backend, manifest, 1)
    assert done.path is None
    assert "busy" in caplog.text
    assert load_curve(device_of(backend, 1), files_key(manifest, backend)) is None
    backend.close()
