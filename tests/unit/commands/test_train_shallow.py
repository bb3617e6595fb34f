"""`quickdraft train draft --kind shallow`, from answers of an encoder-decoder model to a draft."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.checkpoint import EOS, tiny_tokenizer_json
from tiny.hf_folder import write_hf_folder
from tiny.process import call
from tiny.random_weights import write_weights
from tiny.seq2seq_checkpoint import tiny_t5
from tiny.seq2seq_configs import SEQ2SEQ_CONFIGS
from tiny.sounds import pcm16, tone

import quickdraft
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.heads.shallow import ShallowSettings, untrained
from quickdraft.export.pipeline import export_model
from quickdraft.export.trained import TargetWithEncoder, read_trained, write_trained
from quickdraft.export.weights import dense_weight
from quickdraft.kvcache.memory import Source

pytestmark = pytest.mark.torch

LAYERS = 3
TEXTS = [f"{n * 37} dogs and {n % 7} cats in the rain" for n in range(100)]


def teller() -> Checkpoint:
    """A random T5 that is sure of what it says, mostly by the first layer of its decoder."""
    made = tiny_t5(num_layers=LAYERS, tie_word_embeddings=False)
    head = np.random.default_rng(6).standard_normal((320, 32)).astype(np.float32)
    weights = {**made.weights, "lm_head.weight": dense_weight("lm_head.weight", head)}
    for name, weight in made.weights.items():
        if re.fullmatch(r"decoder\.block\.[12]\..*\.(o|wo)\.weight", name):
            weights[name] = dense_weight(name, 0.5 * weight.dense())
    return replace(made, weights=WeightMap(weights))


class World(NamedTuple):
    """A target, answers of it, a trained draft, and what training said."""

    checkpoint: Path
    answers: Path
    draft: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    checkpoint, answers, draft = (folder / name for name in ("t5", "a.jsonl", "d.safetensors"))
    write_hf_folder(checkpoint, checkpoint=teller())
    export_model(checkpoint, folder / "plain", weights="fp32", formats=("reference",))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": n, "prompt": t}) + "\n"
                               for n, t in enumerate(TEXTS)))  # fmt: skip
    options = ("-n", "24", "--temperature", "0")
    done = call("train", "generate", folder / "plain", "--prompts", prompts, "-o", answers,
                *options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call(
        *("train", "draft", checkpoint, "--kind", "shallow", "--data", answers, "-o", draft),
        *("--steps", 120, "--rate", 0.01, "-s", "layers=0", "-s", "rows=16", "--json"),
    )
    assert done.returncode == 0, done.stderr
    return World(checkpoint, answers, draft, json.loads(done.stdout))


def test_answers_hold_sources_and_say_what_they_begin_with(world: World) -> None:
    first, *rest = map(json.loads, world.answers.read_text().splitlines())
    assert first["options"]["opening"] == [0]
    with quickdraft.load(world.checkpoint.parent / "plain", drafter="none") as model:
        row = rest[0]
        assert row["prompt"] == model.tokenizer.encode_source(TEXTS[int(row["id"])])
        plain = model.generate(row["prompt"], max_new_tokens=24, temperature=0)
        assert list(plain.token_ids) == row["answer"]


def accepted(world: World, draft: Path, bundle: Path) -> tuple[float, list[Any]]:
    """Tokens a step, and the answers, to sources that were not trained on."""
    export_model(world.checkpoint, bundle, weights="fp32", formats=("reference",), trained=[draft])
    steps, answers = 0, []
    with quickdraft.load(bundle, drafter="shallow") as model:
        for n in range(12):
            text = f"{n * 53 + 7} cats and {n} dogs"
            options = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
            result = model.generate(text, num_draft_tokens=4, **options)
            plain = model.generate(text, num_draft_tokens=0, **options)
            assert result.token_ids == plain.token_ids
            steps += len(result.steps)
            answers.append(result.token_ids)
    return sum(map(len, answers)) / steps, answers


def test_it_drafts_better_than_layers_as_they_are(world: World, tmp_path: Path) -> None:
    target = TargetWithEncoder.of(teller())
    raw = tmp_path / "raw.safetensors"
    write_trained(
        raw,
        kind="shallow",
        target=read_trained(world.draft).target,
        settings={"layers": [0], "name": "shallow"},
        tensors=untrained(target, ShallowSettings((0,))),
        card={},
    )
    before, plain = accepted(world, raw, tmp_path / "raw")
    after, same = accepted(world, world.draft, tmp_path / "trained")
    assert same == plain
    assert after > before + 0.08, (before, after)
    report = json.loads(Path(f"{world.draft}.json").read_text())
    history = [point["figures"] for point in report["history"]["held_out"]]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accepted"] > history[0]["accepted"]


def test_kinds_fit_models(world: World, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    given = ("--data", world.answers, "-o", out, "--steps", 1)
    done = call("train", "draft", world.checkpoint, "--kind", "compact", *given)
    assert done.returncode == 2
    assert "is an encoder-decoder model, for which there is shallow" in done.stderr
    for setting, problem in (
        ("layers=3", "give numbers from 0 to 2"),
        ("layers=x", "give numbers from 0 to 2"),
        ("distil=2", "must be between 0.0 and 1.0"),
    ):
        options = ("--kind", "shallow", *given, "-s", setting)
        done = call("train", "draft", world.checkpoint, *options)
        assert done.returncode == 2
        assert problem in done.stderr
    lines = world.answers.read_text().splitlines(keepends=True)
    older = tmp_path / "older.jsonl"
    header = json.loads(lines[0])
    del header["options"]["opening"]
    older.write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    done = call("train", "draft", world.checkpoint, "--kind", "shallow", "--data", older, "-o",
                out, "--steps", 1)  # fmt: skip
    assert done.returncode == 2
    assert "does not say what they begin with" in done.stderr


def write_whisper(folder: Path) -> None:
    """A tiny Whisper of random weights, with windows of 0.6 s."""
    folder.mkdir()
    config = {**SEQ2SEQ_CONFIGS["whisper"][1], "decoder_layers": 3, "eos_token_id": EOS}
    config |= {"model_type": "whisper", "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer_json())
    write_weights(folder, config)


def test_speech_is_learnt_from_sound_files(tmp_path: Path) -> None:
    checkpoint, answers, out = tmp_path / "w", tmp_path / "a.jsonl", tmp_path / "d.safetensors"
    write_whisper(checkpoint)
    export_model(checkpoint, tmp_path / "plain", weights="fp32", formats=("reference",))
    rows = []
    for n in range(6):
        name = f"{n}.wav"
        (tmp_path / name).write_bytes(pcm16(tone(200 + 90 * n, 1.3, 16_000)))
        rows.append(json.dumps({"file": name, "id": n}) + "\n")
    (tmp_path / "sounds.jsonl").write_text("".join(rows))
    done = call("train", "generate", tmp_path / "plain", "--prompts", tmp_path / "sounds.jsonl",
                "-o", answers, "-n", 12, "--temperature", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in answers.read_text().splitlines()[1:]]
    assert {line["id"] for line in lines} == {f"{n}#{at}" for n in range(6) for at in range(3)}
    assert {line["start"] for line in lines} == {0, 9600, 19200}
    assert all(Path(line["sound"]).is_file() and not line["prompt"] for line in lines)
    done = call("train", "draft", checkpoint, "--kind", "shallow", "--data", answers, "-o", out,
                "--steps", 30, "--rate", 0.01, "--held-out", 0.2, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(Path(f"{out}.json").read_text())
    history = [point["figures"]["loss"] for point in report["history"]["held_out"]]
    assert history[-1] < history[0]
    export_model(checkpoint, tmp_path / "b", weights="fp32", formats=("reference",), trained=[out])
    with quickdraft.load(tmp_path / "b", drafter="shallow") as model:
        source = Source(features=np.random.default_rng(1).normal(size=(60, 16)).astype(np.float32))
        options = {"max_new_tokens": 12, "temperature": 0.0, "ignore_eos": True}
        drafted = model.generate(source, num_draft_tokens=4, **options)
        plain = model.generate(source, num_draft_tokens=0, **options)
    assert drafted.token_ids == plain.token_ids
    assert sum(step.drafted for step in drafted.steps) > 0


def test_text_and_sound_are_not_mixed(world: World, tmp_path: Path) -> None:
    rows = tmp_path / "sounds.jsonl"
    rows.write_text(json.dumps({"file": "x.wav"}) + "\n")
    plain = world.checkpoint.parent / "plain"
    done = call("train", "generate", plain, "--prompts", rows, "-o", tmp_path / "a.jsonl")
    assert done.returncode == 2
    assert "answers about text, rows with a 'prompt'" in done.stderr
