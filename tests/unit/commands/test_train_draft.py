"""`quickdraft train draft`, from answers to a draft that drafts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.hf_folder import write_hf_folder
from tiny.language import language_checkpoint
from tiny.process import PROGRAM, call

import quickdraft
from quickdraft.export.pipeline import export_model
from quickdraft.export.trained import read_trained

pytestmark = pytest.mark.torch

SHAPE = {"width": 64, "head_dim": 32, "mlp_width": 128, "window": 32, "vocab_size": 280}
BATCH = {"rows": 4, "length": 96}
SMALL = [word for key, value in (SHAPE | BATCH).items() for word in ("-s", f"{key}={value}")]


class World(NamedTuple):
    """A target, its bundle, answers of it, and a draft trained on them."""

    checkpoint: Path
    bundle: Path
    answers: Path
    draft: Path
    told: dict[str, Any]


def train(world: Path, answers: Path, out: Path, *options: object) -> dict[str, Any]:
    done = call("train", "draft", world, "--data", answers, "-o", out, *SMALL, *options, "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"code": done.returncode}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    checkpoint, bundle = folder / "checkpoint", folder / "plain"
    write_hf_folder(checkpoint, checkpoint=language_checkpoint())
    export_model(checkpoint, bundle, weights="fp32", formats=("onnx",))
    prompts, answers = folder / "prompts.jsonl", folder / "answers.jsonl"
    rows = [{"id": n, "prompt": f"{n * 37} dogs and {n % 7} cats"} for n in range(160)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("-n", "40", "--raw", "--threads", "1", "--temperature", "0,0.7,1")
    done = call("train", "generate", bundle, "--prompts", prompts, "-o", answers, *options)
    assert done.returncode == 0, done.stderr
    draft = folder / "draft.safetensors"
    told = train(checkpoint, answers, draft, "--steps", 150, "--rate", 0.004)
    assert told["code"] == 0, told
    with_draft = folder / "bundle"
    formats = ("onnx", "reference")
    export_model(checkpoint, with_draft, weights="fp32", formats=formats, trained=[draft])
    return World(checkpoint, with_draft, answers, draft, told)


def test_it_learns_the_language(world: World) -> None:
    held_out = world.told["held_out"]
    assert held_out["accepted"] >= 0.6
    assert held_out["tokens_per_step"] >= 2.0
    assert held_out["covered"] > 0.9
    report = json.loads((world.draft.parent / "draft.safetensors.json").read_text())
    first = report["history"]["held_out"][0]["figures"]
    assert held_out["loss"] < first["loss"] - 0.1
    assert (world.draft.parent / "draft.safetensors.png").read_bytes()[:4] == b"\x89PNG"
    assert not (world.draft.parent / "draft.safetensors.state").exists()


def test_its_card_says_what_it_is(world: World) -> None:
    trained = read_trained(world.draft)
    assert trained.kind == "compact"
    assert trained.settings["vocab_size"] == 280
    assert trained.card["target"] == "checkpoint"
    assert trained.card["answers"] == 160
    assert trained.card["steps"] == 150
    assert trained.card["held_out"] == world.told["held_out"]
    page = world.draft.with_suffix(".md").read_text()
    for fact in ("Data", "Recipe", "Time", "Acceptance", "Licence"):  # as of shipped drafts
        assert f"| {fact} |" in page
    assert "160 answers of checkpoint" in page
    assert "tokens_per_step" in page
    assert trained.card["licence"] is None
    assert "which names none here" in page
    assert world.told["bytes"] == world.draft.stat().st_size < 300_000


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_answers_stay_the_target_s(world: World, backend: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 64, "ignore_eos": True}
    steps = tokens = 0
    with (
        quickdraft.load(world.bundle, backend=backend, drafter="none") as plain,
        quickdraft.load(world.bundle, backend=backend, drafter="compact", store=False) as model,
    ):
        for prompt in ("the old dog", "blue sky and", "one"):
            expected = plain.generate(prompt, **options).token_ids
            result = model.generate(prompt, num_draft_tokens=4, **options)
            assert result.token_ids == expected
            steps += len(result.steps) - 1
            tokens += len(result.token_ids) - 1
            drawn = model.generate(prompt, temperature=1.0, seed=1, num_draft_tokens=4, **options)
            assert drawn.timings.draft_n_accepted
    assert tokens / steps >= 2.0


def test_in_stages_from_text_to_answers(world: World, tmp_path: Path) -> None:
    """FastDraft: people's text, text of another kind besides, answers of the target."""
    kinds = {
        "text.txt": [f"the {n % 9} old dogs and the {n % 7} cats\n" for n in range(800)],
        "code.txt": [f"for i in range({n % 9}): print(i)\n" for n in range(800)],
    }
    for name, lines in kinds.items():
        (tmp_path / name).write_text("".join(lines))

    def stage(out: str, *options: object) -> dict[str, Any]:
        words = ["train", "draft", world.checkpoint, "-o", tmp_path / out, *options]
        batch = [word for key, value in BATCH.items() for word in ("-s", f"{key}={value}")]
        done = call(*words, *batch, "--rate", 0.004, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    shape = [word for key, value in SHAPE.items() for word in ("-s", f"{key}={value}")]
    text, code = ("--text", tmp_path / "text.txt"), ("--text", tmp_path / "code.txt")
    first = stage("first", *text, "--steps", 80, *shape)
    assert first["held_out"]["accepted"] > 0.6
    stage("second", *text, *code, "--steps", 40, "-s", f"start={tmp_path / 'first'}")
    answers = ("--data", world.answers, "-s", f"start={tmp_path / 'second'}")
    third = stage("third", *answers, "--steps", 100)
    assert third["held_out"]["accepted"] >= 0.5
    card = read_trained(tmp_path / "third").card
    assert (card["answers"], card["texts"]) == (160, 0)
    assert "on text, from scratch" in read_trained(tmp_path / "second").card["recipe"]
    assert card["options"]["started"]["file"] == "second"
    assert read_trained(tmp_path / "second").card["texts"] > 1
    bundle = tmp_path / "bundle"
    export_model(
        world.checkpoint, bundle, weights="fp32", formats=("onnx",), trained=[tmp_path / "third"]
    )
    options: dict[str, Any] = {"max_new_tokens": 48, "ignore_eos": True}
    with quickdraft.load(bundle, drafter="none") as plain:
        expected = plain.generate("the old dog", **options).token_ids
    with quickdraft.load(bundle, drafter="compact", store=False) as model:
        result = model.generate("the old dog", num_draft_tokens=4, **options)
    assert result.token_ids == expected
    assert result.timings.draft_n_accepted


def test_something_to_learn_from(world: World, tmp_path: Path) -> None:
    done = call("train", "draft", world.checkpoint, "-o", tmp_path / "a", "--steps", 3)
    assert done.returncode == 2
    assert "give answers of the model (--data FILE), text (--text FILE)" in done.stderr


def test_the_same_seed_gives_the_same_file(world: World, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(world.checkpoint, world.answers, tmp_path / name, "--steps", 6)
    train(world.checkpoint, world.answers, tmp_path / "c", "--steps", 6, "--seed", 1)

    def weights(name: str) -> Any:
        return read_trained(tmp_path / name).weights["0.query"].dense()

    assert (weights("a") == weights("b")).all()
    assert (weights("a") != weights("c")).any()


def test_killed_it_reaches_the_same_end(world: World, tmp_path: Path) -> None:
    options = ("--steps", 30, "--save-minutes", 0)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    train(world.checkpoint, world.answers, whole, *options)
    line = [*PROGRAM, "train", "draft", world.checkpoint, "--data", world.answers, "-o", out]
    command = [*map(str, [*line, *SMALL, *options])]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    state = tmp_path / "killed.state"
    deadline = time.monotonic() + 60
    while not state.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    told = train(world.checkpoint, world.answers, out, *options)
    assert told["finished"]
    first, second = read_trained(whole).weights, read_trained(out).weights
    for name in first:
        assert (first[name].dense() == second[name].dense()).all(), name


def test_an_interrupt_keeps_the_state(world: World, tmp_path: Path) -> None:
    out = tmp_path / "draft"
    line = [*PROGRAM, "train", "draft", world.checkpoint, "--data", world.answers, "-o", out]
    command = [*map(str, [*line, *SMALL, "--budget", 5, "--save-minutes", 0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "draft.state").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in said
    assert not out.exists()
    told = train(world.checkpoint, world.answers, out, "--steps", 3)
    assert told["code"] == 2
    assert "another minutes" in told["error"]["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "either a budget"),
        (("--steps", 3, "--budget", 1), "either a budget"),
        (("--steps", 3, "-s", "wide=3"), "no option 'wide'"),
        (("--steps", 3, "-s", "layers=99"), "must be between"),
        (("--steps", 3, "-s", "layers"), "KEY=VALUE"),
        (("--steps", 3, "--kind", "oracle"), "'oracle' is not one of"),
    ],
)
def test_bad_options(world: World, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    told = train(world.checkpoint, world.answers, tmp_path / "draft", *options)
    assert told["code"] == 2
    assert said in told["error"]["message"]
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(world: World) -> None:
    held = world.draft.read_bytes()
    told = train(world.checkpoint, world.answers, world.draft, "--steps", 3)
    assert "is there already" in told["error"]["message"]
    told = train(world.bundle, world.answers, world.draft.with_name("x"), "--steps", 3)
    assert "is a bundle" in told["error"]["message"]
    assert world.draft.read_bytes() == held
