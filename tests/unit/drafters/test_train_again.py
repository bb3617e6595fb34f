"""Every kind of draft: the same seed gives the same draft, also where training was killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny.trained_heads import SIZES, prepared  # noqa: E402

from quickdraft.drafters.train.kinds import KINDS, DraftTraining  # noqa: E402
from quickdraft.drafters.train.loop import train  # noqa: E402

pytestmark = pytest.mark.torch

STEPS = 6


def run(kind: str, file: Path | None = None, until: int = STEPS) -> DraftTraining:
    """A training, stopped after so many steps."""
    training = prepared(kind)
    asked = training.loop(steps=STEPS, rate=0.02, device="cpu", evaluations=1)
    taken = iter(range(STEPS + 1))
    outcome = train(training.trainee, asked, file=file, stop=lambda: next(taken) >= until)
    assert outcome.finished == (outcome.steps == STEPS)
    return training


def test_every_kind_is_here() -> None:
    assert set(SIZES) == set(KINDS)


@pytest.mark.parametrize("kind", SIZES)
def test_the_same_seed_gives_the_same_draft(kind: str, tmp_path: Path) -> None:
    """Two runs, and one that was stopped in the middle and started again from its state."""
    first, second = run(kind).tensors(), run(kind).tensors()
    state = tmp_path / "draft.state"
    half = run(kind, state, until=3).tensors()
    third = run(kind, state).tensors()
    assert first.keys() == second.keys() == third.keys()
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name
        assert np.array_equal(values, third[name]), name
    assert any(not np.array_equal(half[name], values) for name, values in first.items())
