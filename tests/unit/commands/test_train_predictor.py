"""`quickdraft train predictor`, from text to a first token over predicted rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.hf_folder import write_hf_folder  # noqa: E402
from tiny.language import language_checkpoint  # noqa: E402
from tiny.process import PROGRAM, call  # noqa: E402

import quickdraft  # noqa: E402
from quickdraft.drafters.train.large_tokens import enlarging_layers  # noqa: E402
from quickdraft.export.pipeline import export_model  # noqa: E402
from quickdraft.export.trained import read_trained  # noqa: E402

pytestmark = pytest.mark.torch

LAYERS = 4
FIT = ("--tokens", 3200, "--length", 32, "--held-out", 16, "--first", 2, "--keep", "0,2")
TRAINING = ("--method", "ridge-distil", "--steps", 12, "--rate", 0.003)


class World(NamedTuple):
    """A target, text, and what a closed-form fit on it made."""

    checkpoint: Path
    text: Path
    ridge: Path
    told: dict[str, Any]


def line(world: World | tuple[Path, Path], out: Path, *options: object) -> tuple[object, ...]:
    return ("train", "predictor", world[0], "--data", world[1], "-o", out, *FIT, *options)


def fit(world: World | tuple[Path, Path], out: Path, *options: object) -> dict[str, Any]:
    done = call(*line(world, out, *options), "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"code": done.returncode}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    checkpoint, text = folder / "checkpoint", folder / "text.txt"
    write_hf_folder(checkpoint, checkpoint=language_checkpoint(num_hidden_layers=LAYERS))
    words = [f"{n * 37 % 1009} dogs and {n % 7} cats in the {n % 5} house\n" for n in range(900)]
    text.write_text("".join(words))
    out = folder / "ridge.safetensors"
    told = fit((checkpoint, text), out)
    assert told["code"] == 0, told
    return World(checkpoint, text, out, told)


def test_its_card_and_report(world: World) -> None:
    trained = read_trained(world.ridge)
    assert trained.kind == "predictor"
    assert trained.card == world.told["card"]
    assert trained.card["options"]["keep"] == [0, 2]
    assert trained.card["text"]["tokens"] == 3200
    found = trained.card["continuations"]
    assert found["exact"] < found["predicted"]
    assert found["divergence"] > 0
    report = json.loads(world.ridge.with_name("ridge.safetensors.json").read_text())
    assert report["continuations"] == found
    assert not report["history"]["held_out"]
    page = world.ridge.with_suffix(".md").read_text()
    for fact in ("Data", "Recipe", "Time", "Quality", "Licence"):
        assert f"| {fact} |" in page
    assert not world.ridge.with_name("ridge.safetensors.png").exists()
    assert not world.ridge.with_name("ridge.safetensors.work").exists()


def test_what_it_shows(world: World, tmp_path: Path) -> None:
    done = call(*line(world, tmp_path / "out"))
    assert done.returncode == 0
    assert "ridge, hidden features, layers [0, 2]" in done.stdout
    assert "the model after the predicted cache" in done.stdout


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_answers_over_what_it_predicts(world: World, tmp_path: Path, backend: str) -> None:
    bundle = tmp_path / "bundle"
    formats = ("onnx",) if backend == "onnxruntime" else ("reference",)
    export_model(world.checkpoint, bundle, weights="fp32", formats=formats, trained=[world.ridge])
    prompt = "37 dogs and 5 cats in the 4 house"
    with quickdraft.load(bundle, backend=backend, store=False) as model:
        exact = model.generate(prompt, max_new_tokens=8, ignore_eos=True)
        early = model.generate(prompt, max_new_tokens=8, ignore_eos=True, prefill="predicted")
    assert exact.guarantee != early.guarantee == "lossy"
    assert early.prediction is not None
    assert early.prediction.predictor == "predictor-2of4-hidden-ridge"
    assert early.prediction.rows > 4
    assert len(early.token_ids) == 8


def test_training_after_the_fit_is_nearer(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = (*TRAINING[:3], 40, *TRAINING[4:])
    told = fit(world, out, *steps, "--loss", "answer=0", "--loss", "auxiliary=0.1")
    assert told["code"] == 0, told
    before, after = world.told["card"], told["card"]
    assert after["continuations"]["divergence"] < before["continuations"]["divergence"]
    assert after["options"]["losses"] == {
        "answer": 0.0,
        "auxiliary": 0.1,
        "cache": 1.0,
        "divergence": 1.0,
    }
    report = json.loads(out.with_name("out.json").read_text())
    first, *_, last = (point["figures"] for point in report["history"]["held_out"])
    assert last["divergence"] < first["divergence"]
    assert out.with_name("out.png").read_bytes()[:4] == b"\x89PNG"


def test_keys_to_keys_by_gradient_alone(world: World, tmp_path: Path) -> None:
    """The paper's form: no fit, keys from keys and values from values, its three losses."""
    out = tmp_path / "out"
    losses = ("--loss", "divergence=0", "--loss", "cache=50", "--train-layers")
    training = ("--method", "distil", "--features", "kv", "--steps", 40, "--rate", 0.003)
    told = fit(world, out, *training, *losses)
    assert told["code"] == 0, told
    report = json.loads(out.with_name("out.json").read_text())
    first, *_, last = (point["figures"] for point in report["history"]["held_out"])
    assert last["cache"] < 0.7 * first["cache"]
    assert last["answer"] + last["auxiliary"] < first["answer"] + first["auxiliary"]
    shapes = {name: weight.shape for name, weight in read_trained(out).weights.items()}
    width = 2 * 16  # heads of keys, and their width
    assert shapes["map.3.1.key"] == shapes["map.3.1.value"] == (width, width)
    assert "auxiliary.1.query.weight" in shapes


def test_the_same_command_gives_the_same_bits(world: World, tmp_path: Path) -> None:
    fit(world, tmp_path / "a", *TRAINING)
    fit(world, tmp_path / "b", *TRAINING)
    fit(world, tmp_path / "c", *TRAINING, "--seed", 1)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def same(first: Path, second: Path) -> bool:
    one, other = read_trained(first).weights, read_trained(second).weights
    assert set(one) == set(other)
    return all((one[name].dense() == other[name].dense()).all() for name in one)


@pytest.mark.parametrize("when", ["stage-1.safetensors", "training.safetensors"])
def test_killed_it_reaches_the_same_end(world: World, tmp_path: Path, when: str) -> None:
    options = (*TRAINING, "--save-minutes", 0)
    assert fit(world, tmp_path / "whole", *options)["code"] == 0
    out = tmp_path / "killed"
    command = [*map(str, [*PROGRAM, *line(world, out, *options)])]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(tmp_path / "killed.work" / when, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert fit(world, out, *options)["code"] == 0
    assert same(tmp_path / "whole", out)
    assert not (tmp_path / "killed.work").exists()


def wait_for(file: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 90
    while not file.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)


def test_another_model_does_not_go_on_from_there(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    method = ("--method", "distil", "--save-minutes", 0)
    command = [*map(str, [*PROGRAM, *line(world, out, *method, "--budget", 60)])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out.work" / "training.safetensors", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on where it was" in said
    other = tmp_path / "other"
    write_hf_folder(other, checkpoint=language_checkpoint(num_hidden_layers=LAYERS, seed=1))
    told = fit((other, world.text), out, *method, "--budget", 60)
    assert told["code"] == 2
    assert "another target" in told["error"]["message"]
    told = fit(world, out, *method, "--budget", 60, "--loss", "cache=2")
    assert "another losses" in told["error"]["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "distil"), "give it --budget or --steps"),
        (("--method", "distil", "--budget", 5, "--steps", 10), "give it --budget or --steps"),
        (("--method", "distil", "--budget", -1), "--budget -1 must be above 0"),
        (("--method", "distil", "--steps", 0), "--steps 0 must be above 0"),
        (("--method", "distil", "--steps", 3, "--rate", 0), "--rate 0 must be above 0"),
        (("--method", "distil", "--steps", 3, "--loss", "cache"), "is not NAME=WEIGHT"),
        (("--method", "distil", "--steps", 3, "--loss", "kl=1"), "--loss kl"),
        (("--method", "distil", "--steps", 3, "--loss", "cache=-1"), "0 or more"),
        (("--steps", 3), "--steps would say nothing"),
        (("--budget", 3), "--budget would say nothing"),
        (("--rate", 0.1), "--rate would say nothing"),
        (("--loss", "cache=1"), "--loss would say nothing"),
        (("--method", "none", "--train-layers"), "--train-layers would say nothing"),
        (("--save-minutes", 1), "--save-minutes would say nothing"),
        (("--layout", "first"), "--keep names the layers"),
        (("--keep", 0.3), "is none of"),
        (("--keep", "2,0"), "ascending"),
        (("--keep", "0,9"), "of the 4 that the model has"),
        (("--keep", 0.25), "too few"),
        (("--keep", "some"), "neither a share"),
        (("--method", "none", "--features", "kv"), "--features hidden"),
        (("--name", "a/b"), "names are up to 64"),
        (("--first", 8), "below a quarter of --length"),
        (("--tokens", 20), "--length at least"),
        (("--measure", 17), "1 to --held-out"),
        (("--seed", -1), "0 or more"),
        (("--held-out", 900), "are needed"),
        (("--device", "tpu"), "'tpu' is not one of"),
    ],
)
def test_bad_options(world: World, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    told = fit(world, tmp_path / "out", *options)
    assert told["code"] == 2
    assert said in told["error"]["message"]
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(world: World) -> None:
    held = world.ridge.read_bytes()
    assert "is already there" in fit(world, world.ridge)["error"]["message"]
    assert world.ridge.read_bytes() == held


def test_answers_of_another_model_are_no_text(world: World, tmp_path: Path) -> None:
    """They are tokens, which mean something else to another model."""
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(f'{{"id": {n}, "prompt": "{n} dogs"}}\n' for n in range(90)))
    bundle = tmp_path / "bundle"
    export_model(world.checkpoint, bundle, weights="fp32", formats=("onnx",))
    asked = ("train", "generate", bundle, "--prompts", prompts, "-o", answers, "-n", 24, "--raw")
    assert call(*asked).returncode == 0
    options = ("--tokens", 640)
    assert fit((world.checkpoint, answers), tmp_path / "own", *options)["code"] == 0
    other = tmp_path / "other"
    write_hf_folder(other, checkpoint=language_checkpoint(num_hidden_layers=LAYERS, seed=1))
    told = fit((other, answers), tmp_path / "foreign", *options)
    assert told["code"] == 2
    assert "answers of checkpoint" in told["error"]["message"]


def test_one_for_drafting_says_so(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fit(world, out, "--for-drafting")["code"] == 0
    assert read_trained(out).settings["whole"]
    assert not read_trained(world.ridge).settings["whole"]
    assert same(out, world.ridge)
    bundle = tmp_path / "bundle"
    export_model(world.checkpoint, bundle, weights="fp32", formats=("onnx",), trained=[out])
    drafting: dict[str, Any] = {"drafter": "auxiliary", "store": False, "prefill": "predicted"}
    with quickdraft.load(bundle, backend="onnxruntime", **drafting) as model:
        prompt = "37 dogs and 5 cats in the 4 house"
        result = model.generate(prompt, max_new_tokens=8, ignore_eos=True, num_draft_tokens=3)
    assert sum(step.drafted for step in result.steps)


class Runner:
    """A model of five layers that do what a table says to the first token and the others."""

    class spec:
        layers = range(5)

    def __init__(self, factors: list[tuple[float, float]]) -> None:
        self._factors = factors

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        return np.ones((*tokens.shape, 8), np.float32)

    def layer(self, index: int, x: np.ndarray) -> np.ndarray:
        first, others = self._factors[index]
        return x * np.where(np.arange(x.shape[1]) == 0, first, others)[None, :, None]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([(1, 1)] * 5, ()),
        ([(1, 1), (100, 1), (1, 1), (0.001, 1), (1, 1)], (1,)),
        ([(100, 100), (1, 1), (1, 1), (1, 1), (1, 1)], ()),  # all grow alike
        ([(4, 1), (4, 1), (4, 1), (4, 1), (4, 1)], ()),  # not suddenly
        ([(1, 1), (1, 1), (50, 1), (1, 1), (50, 1)], (2, 4)),
    ],
)
def test_layers_that_enlarge_the_first_token(
    factors: list[tuple[float, float]], expected: tuple[int, ...]
) -> None:
    assert enlarging_layers(Runner(factors), np.zeros((3, 12), np.int32)) == expected


def test_a_graded_share_keeps_layers_that_enlarge_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, text = tmp_path / "checkpoint", tmp_path / "text.txt"
    write_hf_folder(checkpoint, checkpoint=language_checkpoint(num_hidden_layers=16))
    text.write_text("the dog and the cat\n" * 1600)
    options = ("--tokens", 64, "--length", 16, "--held-out", 2, "--measure", 1, "--first", 1)
    line = ("train", "predictor", checkpoint, "--data", text, *options, "--method", "none")
    kept = []
    for wanted in ((), (8,)):
        found = "quickdraft.drafters.train.predictor_file.enlarging_layers"
        monkeypatch.setattr(found, lambda runner, tokens, it=wanted: it)
        out = tmp_path / f"out-{len(wanted)}"
        done = call(*line, "-o", out, "--json")
        assert done.returncode == 0, done.stderr
        kept.append(json.loads(done.stdout)["card"]["options"]["keep"])
    assert kept == [[0, 1, 2, 9], [0, 1, 2, 8]]
