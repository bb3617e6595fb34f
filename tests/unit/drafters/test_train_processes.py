"""Training by several processes, as a launcher starts them for several GPUs; here on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.hf_folder import write_hf_folder
from tiny.language import language_checkpoint
from tiny.process import PROGRAM

from quickdraft.export.trained import read_trained

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
PREDICTOR = (
    *("--tokens", 1600, "--length", 32, "--held-out", 8, "--measure", 8, "--first", 2),
    *("--keep", "0,2", "--method", "ridge-distil", "--rate", 0.003),
)


class World(NamedTuple):
    """A target and text."""

    checkpoint: Path
    text: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(folder / "checkpoint", folder / "text.txt")
    write_hf_folder(made.checkpoint, checkpoint=language_checkpoint(num_hidden_layers=4))
    words = [f"{n * 37 % 1009} dogs and {n % 7} cats in the {n % 5} house\n" for n in range(900)]
    made.text.write_text("".join(words))
    return made


def run(world: World, kind: str, out: Path, *options: object, processes: int = 2) -> Any:
    """The command by so many processes; what was printed."""
    started = (*LAUNCHER, "-m", "quickdraft") if processes > 1 else PROGRAM
    given = ("train", kind, world.checkpoint, "-o", out, "--device", "cpu", "--json")
    done = subprocess.run(
        [*map(str, [*started, *given, *options])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # one object: the first process alone says something


def same(first: Path, second: Path) -> bool:
    one, other = read_trained(first).weights, read_trained(second).weights
    return all((one[name].dense() == other[name].dense()).all() for name in one)


SHAPE = {"width": 64, "head_dim": 32, "mlp_width": 128, "window": 32, "vocab_size": 280}
BATCH = {"length": 64}
SMALL = tuple(word for key, value in (SHAPE | BATCH).items() for word in ("-s", f"{key}={value}"))


def test_two_processes_take_the_steps_of_one_with_twice_the_batches(
    world: World, tmp_path: Path
) -> None:
    draft = ("--text", world.text, *SMALL, "--steps", 12)
    # Two processes see batches 2k and 2k + 1 of a step, one that accumulates two the same.
    both = run(world, "draft", tmp_path / "two", *draft, "-s", "rows=4")
    one = run(
        world, "draft", tmp_path / "one", *draft, "-s", "rows=4", "--accumulate", 2, processes=1
    )
    assert both["finished"]
    assert both["steps"] == one["steps"] == 12
    first, last = both["held_out"], one["held_out"]
    assert first["loss"] == pytest.approx(last["loss"], rel=0.02)
    assert first["accepted"] == pytest.approx(last["accepted"], abs=0.05)
    again = run(world, "draft", tmp_path / "again", *draft, "-s", "rows=4")
    assert again["held_out"] == first
    assert same(tmp_path / "two", tmp_path / "again")


def test_stopped_and_started_again_both_go_on(world: World, tmp_path: Path) -> None:
    draft = ("--text", world.text, *SMALL, "-s", "rows=4", "--steps", 20, "--save-minutes", 0)
    run(world, "draft", tmp_path / "whole", *draft)
    given = ("train", "draft", world.checkpoint, "-o", tmp_path / "killed", "--device", "cpu")
    process = subprocess.Popen(
        [*map(str, [*LAUNCHER, "-m", "quickdraft", *given, *draft])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (tmp_path / "killed.state").exists():
        assert process.poll() is None
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in everyone:
        each.kill()
    psutil.wait_procs(everyone)
    process.wait()
    assert not (tmp_path / "killed").exists()
    run(world, "draft", tmp_path / "killed", *draft)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_a_predictor_is_fitted_once_and_trained_by_both(world: World, tmp_path: Path) -> None:
    given = ("--data", world.text, *PREDICTOR, "--steps", 10)
    told = run(world, "predictor", tmp_path / "two", *given)
    training = told["card"]["errors"]["training"]
    assert training["steps"] == 10
    assert sum(training["losses"][-1].values()) < sum(training["losses"][0].values())
    one = run(world, "predictor", tmp_path / "one", *given, processes=1)
    # The fit is that of one process; the training after it sees twice the rows.
    assert one["card"]["errors"]["maps"] == told["card"]["errors"]["maps"]
    assert not same(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two.work").exists()
    assert (tmp_path / "two.json").exists()


def test_all_end_where_the_first_process_cannot_go_on(world: World, tmp_path: Path) -> None:
    given = ("train", "predictor", world.checkpoint, "-o", tmp_path / "out", "--device", "cpu")
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "identity.json").write_text("of another fit")
    rest = ("--data", world.text, *PREDICTOR, "--steps", 10)
    done = subprocess.run(
        [*map(str, [*LAUNCHER, "-m", "quickdraft", *given, *rest])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stderr.count("holds an unfinished fit of another model") == 1
    assert not (tmp_path / "out").exists()
