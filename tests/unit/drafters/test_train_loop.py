"""The training loop: what is interrupted ends as what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quickdraft.drafters.train.history import MOST_POINTS, History, Point  # noqa: E402
from quickdraft.drafters.train.loop import LoopOptions, Outcome, pick_device, train  # noqa: E402
from quickdraft.drafters.train.report import write_report  # noqa: E402
from quickdraft.errors import CheckpointError, OptionError, QuickdraftError  # noqa: E402

pytestmark = pytest.mark.torch
OPTIONS = LoopOptions(steps=40, rate=0.05, device="cpu", seed=3, evaluations=4)


class Noisy(torch.nn.Module):
    """A line through points, with noise, and a parameter that is not trained."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 4))
        self.bias = torch.nn.Parameter(torch.zeros(4))
        self.fixed = torch.nn.Parameter(torch.eye(4), requires_grad=False)
        self.bad = bad

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        x = batch["x"] @ self.fixed + 0.1 * torch.randn(batch["x"].shape)
        loss = ((x @ self.weight + self.bias - batch["y"]) ** 2).mean()
        return loss * (float("nan") if self.bad else 1.0), {"size": x.abs().mean()}


class Line:
    """Learns y = 2 x + 1."""

    def __init__(self, bad: bool = False) -> None:
        self.module = Noisy(bad)

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(np.random.default_rng(number).normal(size=(8, 4)).astype(np.float32))
        return {"x": x, "y": 2 * x + 1}

    def evaluate(self) -> Mapping[str, float]:
        assert not self.module.training
        assert not torch.is_grad_enabled()
        return {"error": float((self.module.weight - 2 * torch.eye(4)).abs().mean())}


def after(count: int) -> Callable[[], bool]:
    """Says stop when it is asked the next time after `count` times."""
    left = iter([False] * count)
    return lambda: next(left, True)


def trained(file: Path | None, options: LoopOptions = OPTIONS, **rest: object) -> tuple:
    line = Line()
    outcome: Outcome = train(line, options, file=file, identity={"kind": "line"}, **rest)
    return line.module, outcome


def test_it_learns(tmp_path: Path) -> None:
    module, outcome = trained(None, replace(OPTIONS, steps=400))
    held = [point.figures["error"] for point in outcome.history.held_out]
    assert len(held) == 5
    assert held[0] == 0.5
    assert held[-1] < 0.1
    assert outcome.finished
    assert outcome.steps == 400
    assert module.fixed.equal(torch.eye(4))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_interrupted_anywhere_it_ends_with_the_same_weights(
    tmp_path: Path, accumulate: int
) -> None:
    options = replace(OPTIONS, accumulate=accumulate)
    whole, outcome = trained(None, options)
    file = tmp_path / "state"
    for stops in (1, 7, 10, 3):  # stopped four times, each time in a new process's state
        torch.manual_seed(stops)
        _, partly = trained(file, options, stop=after(stops))
        assert not partly.finished
    resumed, last = trained(file, options)
    assert last.finished
    assert (last.steps, partly.steps) == (40, 21)
    assert whole.weight.equal(resumed.weight)
    assert whole.bias.equal(resumed.bias)
    assert last.history.held_out[-1].figures == outcome.history.held_out[-1].figures
    again, done = trained(file, options)
    assert done.steps == 40
    assert again.weight.equal(whole.weight)


def test_a_state_written_in_time_survives_a_kill(tmp_path: Path) -> None:
    options = replace(OPTIONS, save_seconds=0.0)
    whole, _ = trained(None)

    class Killed(Exception):
        pass

    def kill() -> bool:
        if next(calls) == 13:
            raise Killed
        return False

    calls = iter(range(100))
    with pytest.raises(Killed):
        trained(tmp_path / "state", options, stop=kill)
    resumed, outcome = trained(tmp_path / "state", options)
    assert outcome.steps == 40
    assert resumed.weight.equal(whole.weight)


def test_the_seed_decides() -> None:
    first, second = trained(None)[0], trained(None)[0]
    other = trained(None, replace(OPTIONS, seed=4))[0]
    assert first.weight.equal(second.weight)
    assert not first.weight.equal(other.weight)


def test_a_budget_of_time_is_kept(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=None, minutes=0.02)
    _, half = trained(tmp_path / "state", options, stop=after(5))
    _, outcome = trained(tmp_path / "state", options)
    assert half.seconds < 1.2 <= outcome.seconds < 2.0
    assert outcome.finished
    rates = [options.rate_at(share) for share in (0.0, 0.015, 0.03, 0.5, 1.0)]
    assert rates[:3] == [0.0, pytest.approx(0.025), 0.05]
    assert rates[4] == pytest.approx(0.05 * 0.05)


def test_another_run_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "state", stop=after(3))
    with pytest.raises(OptionError, match="another rate"):
        trained(tmp_path / "state", replace(OPTIONS, rate=0.01))
    with pytest.raises(OptionError, match="another kind"):
        train(Line(), OPTIONS, file=tmp_path / "state", identity={"kind": "circle"})
    (tmp_path / "state").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="delete it"):
        trained(tmp_path / "state")


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    with pytest.raises(QuickdraftError, match="lower rate"):
        train(Line(bad=True), OPTIONS, file=tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "bad",
    [{"steps": None}, {"minutes": 1.0}, {"steps": 0}, {"rate": 0.0}, {"accumulate": 0}],
)
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        replace(OPTIONS, **bad)


def test_bad_devices() -> None:
    with pytest.raises(OptionError, match="available: auto, cpu, cuda"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="sees no such GPU"):
            pick_device("cuda")


def test_a_history_stays_short() -> None:
    history = History()
    for step in range(1, 3 * MOST_POINTS):
        if step % history.every == 0 or history.every == 10:
            history.add(Point(step, float(step), {"loss": float(step)}))
    assert len(history.training) < MOST_POINTS
    assert history.every > 10
    assert History.from_dict(history.to_dict()) == history


def test_a_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, outcome = trained(None)
    write_report(tmp_path / "a.json", outcome.history, {"title": "a"}, tmp_path / "a.png")
    assert '"held_out"' in (tmp_path / "a.json").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
