"""A judge says the same in every form; answers that ask for it are lossy, and no others."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.folders import lasting_folder
from tiny.native import needs_native
from tiny.process import call
from tiny.random_heads import write_head

from quickdraft.drafters.tree import Tree
from quickdraft.errors import CheckpointError, InputError, OptionError
from quickdraft.export.heads.judge import JudgeSettings, attach_judge, tensor_shapes
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import Target, read_trained, write_trained
from quickdraft.manifest import Manifest
from quickdraft.runtime.backends.base import StepOutput
from quickdraft.runtime.backends.opening import open_backend
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.judge import JudgeOfBundle
from quickdraft.runtime.model import Model

BACKENDS = ["reference", "onnxruntime", pytest.param("hotpath", marks=needs_native)]
FORMATS = ("reference", "onnx", "hotpath")
Tensors = dict[str, NDArray[Any]]


def tensors(width: int, bias: float = 0.0) -> Tensors:
    """Random ones; bias: how sure it is of every token."""
    rng = np.random.default_rng(4)
    shapes = tensor_shapes(Target.of(tiny_checkpoint()).spec, JudgeSettings(width))
    made: Tensors = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    made["bias"] = np.array([0.0, bias], np.float32)
    return {**made, "tokens": np.arange(2, dtype=np.int32)}


def write_judge(file: Path, settings: dict[str, Any], made: Tensors) -> Path:
    target = tiny_checkpoint().source.fingerprint
    write_trained(file, kind="judge", target=target, settings=settings, tensors=made, card={})
    return file


@functools.cache
def bundle(width: int, bias: float = 0.0, weights: str = "fp32") -> tuple[Path, Manifest]:
    folder = lasting_folder("judge-")
    settings = {"width": width, "name": "judge"}
    file = write_judge(folder / "judge.safetensors", settings, tensors(width, bias))
    manifest = export_checkpoint(
        tiny_checkpoint(),
        folder / "bundle",
        weights=weights,
        formats=FORMATS,
        trained=[file, write_head(folder / "head.safetensors", "eagle", "llama")],
    )
    return folder / "bundle", manifest


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [0, 16])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_every_form_says_what_the_definition_says(width: int, backend: str, weights: str) -> None:
    folder, manifest = bundle(width, 0.3, weights)
    target = open_backend(folder, manifest, backend, None).backend
    judge = JudgeOfBundle(folder, manifest, target, None)
    states = 4 * np.random.default_rng(2).standard_normal((4, 32)).astype(np.float32)
    tree = Tree(np.array([7, 8, 9]), np.array([-1, 0, 0]))
    found = judge.get().verdicts(tree, StepOutput(states[:0], {2: states}), [0, 2, 3])
    own = {name: each.dense() for name, each in read_trained(
        folder.parent / "judge.safetensors"
    ).weights.items()}  # fmt: skip
    x = states / np.sqrt((states * states).mean(-1, keepdims=True) + 1e-6)
    if width:
        x = x @ own["hidden"].T + own["hidden_bias"]
        x = x / (1 + np.exp(-x))
    logits = x @ own["verdict"].T + own["bias"]
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert found == pytest.approx(expected[[0, 2, 3]], abs=1e-3)
    assert found.std() > 0.01
    judge.close()
    target.close()


def opened(bias: float, backend: str) -> Model:
    folder, manifest = bundle(0, bias)
    drafting = DraftingSetup("eagle", {"eagle": {"part": "two", "stop_below": 0.0}}, store=False)
    return Model.open(folder, manifest=manifest, backend=backend, drafting=drafting)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "drawn"])
def test_what_a_judge_lets_pass(backend: str, options: dict[str, Any]) -> None:
    """One that is sure of all takes every first draft; one that is sure of none changes nothing.
    Either is called lossy."""
    asked = {"max_new_tokens": 32, "ignore_eos": True, **options}
    prompt = [40, 41, 42, 40, 41, 43, 40, 41]
    for bias, sure in ((1e4, True), (-1e4, False)):
        with opened(bias, backend) as model:
            plain = model.generate(prompt, num_draft_tokens=0, **asked)
            exact = model.generate(prompt, num_draft_tokens=4, **asked)
            lossy = model.generate(prompt, num_draft_tokens=4, acceptance="judge", **asked)
        assert plain.guarantee == exact.guarantee == model.backend.guarantee
        assert exact.token_ids == plain.token_ids
        assert lossy.guarantee == "lossy"
        assert (lossy.token_ids == plain.token_ids) != sure
        drafted = [step for step in lossy.steps if step.drafted]
        assert drafted
        if sure:
            assert all(step.accepted for step in drafted[:-1])


def test_its_threshold_on_the_command_line() -> None:
    """A judge that is sure of all lets nothing pass where more than that is asked for."""
    folder, _ = bundle(0, 1e4)
    asked = ["run", str(folder), "hello there", "--backend", "reference", "--json", "-n", "24"]
    asked += ["--ignore-eos", "--temperature", "0", "--no-store", "--drafter", "eagle"]
    asked += ["--drafter-option", "eagle.part=two", "--drafter-option", "eagle.stop_below=0"]

    def said(*options: str) -> str:
        done = call(*asked, *options)
        assert done.returncode == 0, done.stderr
        text: str = json.loads(done.stdout)["text"]
        return text

    plain = said("--draft-tokens", "0")
    for least, same in (("1", True), ("0", False), ("0.5", False)):
        options = ("--draft-tokens", "4", "--acceptance", "judge", "--judge-threshold", least)
        assert (said(*options) == plain) == same


def test_a_bundle_without_a_judge(tmp_path: Path) -> None:
    manifest = export_checkpoint(tiny_checkpoint(), tmp_path / "out", formats=("reference",))
    with Model.open(tmp_path / "out", manifest=manifest, backend="reference") as model:
        with pytest.raises(InputError, match=r"no judge .*train draft --kind judge"):
            model.generate([5, 6], acceptance="judge", max_new_tokens=2)
        assert model.generate([5, 6], max_new_tokens=2).token_ids
        with pytest.raises(OptionError, match="num_beams is 2, which does not go with acceptance"):
            model.generate([5, 6], acceptance="judge", num_beams=2)


def test_nobody_gets_a_lossy_rule_without_asking() -> None:
    from quickdraft.runtime.generation import GenerationConfig

    assert GenerationConfig.from_defaults({"acceptance": "judge"}).acceptance == "exact"


@pytest.mark.parametrize(
    ("settings", "spoil", "match"),
    [
        ({"width": -1, "name": "judge"}, {}, "width of a judge is -1"),
        ({"width": 8, "name": "judge"}, {}, "verdict"),
        ({"name": "judge"}, {}, "settings of a judge"),
        (
            {"width": 0, "name": "judge"},
            {"tokens": np.array([1, 0], np.int32)},
            "ascend",
        ),
    ],
)
def test_files_that_do_not_fit(
    settings: dict[str, Any], spoil: Tensors, match: str, tmp_path: Path
) -> None:
    file = write_judge(tmp_path / "judge.safetensors", settings, tensors(0) | spoil)
    with pytest.raises(CheckpointError, match=match):
        attach_judge(read_trained(file), Target.of(tiny_checkpoint()))
