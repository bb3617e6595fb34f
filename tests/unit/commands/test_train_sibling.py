"""`quickdraft train predictor --sibling`: a smaller model reads the prompt, from fit to answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tiny.hf_folder import write_hf_folder  # noqa: E402
from tiny.language import language_checkpoint  # noqa: E402
from tiny.process import call  # noqa: E402

import quickdraft  # noqa: E402
from quickdraft.export.pipeline import export_model  # noqa: E402
from quickdraft.export.trained import read_trained  # noqa: E402

pytestmark = pytest.mark.torch
FIT = ("--tokens", 3200, "--length", 32, "--held-out", 16, "--first", 2)
LAYERS = 4
SMALLER = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
PROMPT = "37 dogs and 5 cats in the 4 house"


class World(NamedTuple):
    """A target, a smaller model of its language, another tokenizer's model, and text."""

    target: Path
    smaller: Path
    stranger: Path
    text: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    made = World(*(folder / name for name in ("target", "smaller", "stranger", "text.txt")))
    target = language_checkpoint(num_hidden_layers=LAYERS)
    write_hf_folder(made.target, checkpoint=target)
    write_hf_folder(made.smaller, checkpoint=language_checkpoint(seed=3, **SMALLER))
    json_of = json.loads(target.tokenizer.tokenizer_json)
    vocab = json_of["model"]["vocab"]
    vocab["e"], vocab["o"] = vocab["o"], vocab["e"]
    files = replace(target.tokenizer, tokenizer_json=json.dumps(json_of).encode())
    write_hf_folder(made.stranger, checkpoint=replace(target, tokenizer=files))
    words = [f"{n * 37 % 1009} dogs and {n % 7} cats in the {n % 5} house\n" for n in range(900)]
    made.text.write_text("".join(words))
    return made


def fit(world: World, sibling: Path, out: Path, *options: object) -> dict[str, Any]:
    line = ("train", "predictor", world.target, "--data", world.text, "-o", out, *FIT)
    done = call(*line, "--sibling", sibling, *options, "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"code": done.returncode}


def answers(bundle: Path, backend: str) -> tuple[Any, Any]:
    """An exact answer, and one over predicted rows."""
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 5}
    with quickdraft.load(bundle, backend=backend, store=False) as model:
        return (
            model.generate(PROMPT, **options),
            model.generate(PROMPT, prefill="predicted", **options),
        )


def bundle_of(world: World, trained: Path, folder: Path, *formats: str) -> Path:
    bundle = folder / f"bundle-{trained.name}"
    export_model(world.target, bundle, weights="fp32", formats=formats, trained=[trained])
    return bundle


def test_a_twin_predicts_what_the_target_computes(world: World, tmp_path: Path) -> None:
    """The target as its own sibling has its stream: the fit has nothing left to get wrong."""
    out = tmp_path / "twin"
    told = fit(world, world.target, out)
    assert told["code"] == 0, told
    assert max(told["card"]["errors"]["maps"].values()) < 1e-3
    found = told["card"]["continuations"]
    assert found["predicted"] == pytest.approx(found["exact"], abs=0.02)
    exact, early = answers(bundle_of(world, out, tmp_path, "onnx"), "onnxruntime")
    assert early.prediction.predictor == "predictor-sibling-hidden-ridge"
    # The file's int8 and the fit's bfloat16 are all that is left.
    for mine, theirs in zip(early.logprobs[0].top, exact.logprobs[0].top, strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], abs=0.1)


@pytest.mark.parametrize("features", ["hidden", "kv"])
def test_a_smaller_one_from_fit_to_answer(world: World, tmp_path: Path, features: str) -> None:
    out = tmp_path / "out"
    told = fit(world, world.smaller, out, "--features", features)
    assert told["code"] == 0, told
    card = told["card"]
    assert card["sibling"] == "smaller"
    assert card["recipe"] == f"ridge, {features} features, sibling smaller"
    assert 0 < card["continuations"]["divergence"] < 2
    settings = read_trained(out).settings
    assert settings["sources"] == [[0], [0], [1], [2]]  # the first one serves one more
    bundle = bundle_of(world, out, tmp_path, "onnx", "reference")
    exact, early = answers(bundle, "onnxruntime")
    slow, slow_early = answers(bundle, "reference")
    assert early.guarantee == slow_early.guarantee == "lossy"
    assert exact.token_ids == slow.token_ids
    assert early.token_ids == slow_early.token_ids
    assert early.prediction.rows == slow_early.prediction.rows > 4


@pytest.mark.native
def test_on_the_hot_path(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fit(world, world.smaller, out)["code"] == 0
    bundle = bundle_of(world, out, tmp_path, "hotpath", "reference")
    _, early = answers(bundle, "hotpath")
    _, slow = answers(bundle, "reference")
    assert early.token_ids == slow.token_ids
    options = {"auxiliary": {"part": "auxiliary-sibling-hidden-ridge", "method": "chain"}}
    drafting: dict[str, Any] = {"drafter": "auxiliary", "drafter_options": options, "store": False}
    with quickdraft.load(bundle, backend="hotpath", **drafting) as model:
        drafted = model.generate(PROMPT, max_new_tokens=24, ignore_eos=True, num_draft_tokens=3)
    with quickdraft.load(bundle, backend="hotpath", drafter="none") as model:
        plain = model.generate(PROMPT, max_new_tokens=24, ignore_eos=True)
    assert drafted.token_ids == plain.token_ids
    assert sum(step.drafted for step in drafted.steps)


@pytest.mark.parametrize("train_layers", [False, True])
def test_training_a_sibling_by_gradient(world: World, tmp_path: Path, train_layers: bool) -> None:
    """The paper's own form: another model, keys from keys, no fit before."""
    out = tmp_path / "out"
    training = ("--method", "distil", "--features", "kv", "--steps", 12, "--rate", 0.003)
    losses = ("--loss", "cache=50", "--loss", "divergence=0")
    layers = ("--train-layers",) if train_layers else ()
    told = fit(world, world.smaller, out, *training, *losses, *layers)
    assert told["code"] == 0, told
    losses_of = told["card"]["errors"]["training"]["losses"]
    assert losses_of[-1]["cache"] < losses_of[0]["cache"]
    assert (losses_of[-1]["auxiliary"] < losses_of[0]["auxiliary"] - 1e-3) == train_layers
    own = language_checkpoint(seed=3, **SMALLER).weights
    held = read_trained(out).weights
    for name, weight in own.items():
        moved = abs(held[f"auxiliary.{name}"].dense() - weight.dense()).max()
        step = abs(weight.dense()).max() / 127  # of the file's int8
        is_moved = moved > step
        assert train_layers or not is_moved, name
    bundle = bundle_of(world, out, tmp_path, "onnx")
    _, early = answers(bundle, "onnxruntime")
    assert early.guarantee == "lossy"


def test_what_is_no_sibling(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = fit(world, world.stranger, out)
    assert told["code"] == 2
    assert "must have the tokenizer of its target" in told["error"]["message"]
    assert "for 'e'" in told["error"]["message"]
    told = fit(world, world.smaller, out, "--keep", 0.5)
    assert "give one of them" in told["error"]["message"]
    told = fit(world, world.smaller, out, "--layout", "first")
    assert "give one of them" in told["error"]["message"]
    told = fit(world, world.smaller, out, "--method", "none")
    assert "which a sibling does not have" in told["error"]["message"]
    told = fit(world, world.smaller, out, "--method", "distil", "--steps", 3)
    assert "--features kv" in told["error"]["message"]
    assert not list(tmp_path.iterdir())
