"""Shallow drafts of encoder-decoder models: answers stay the plain ones, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny.checkpoint import tiny_checkpoint
from tiny.seq2seq_checkpoint import tiny_t5

import quickdraft
from quickdraft.errors import CheckpointError, OptionError, UnsupportedModel
from quickdraft.export.architectures.t5 import FAMILY
from quickdraft.export.checkpoints.base import Checkpoint, WeightMap
from quickdraft.export.heads.shallow import ShallowSettings, untrained
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.trained import TargetWithEncoder, write_trained
from quickdraft.export.weights import dense_weight

SHORT: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "logprobs": 3}
TEXTS = ("the rain in it", "an old one", "the rain in it")
RANDOM = np.random.default_rng(5)
OTHER_UP = {"0.mlp.up": RANDOM.standard_normal((48, 32)).astype(np.float32) / 6}
CASES: dict[str, tuple[list[int], dict[str, NDArray[Any]]]] = {
    "first": ([0], {}),
    "last": ([2], {}),
    "ends": ([0, 2], {}),
    "all": ([0, 1, 2], {}),
    "trained": ([0], OTHER_UP),
}


def sure_t5() -> Checkpoint:
    """A random T5 that is sure of what it says: small models draft nothing where they are not."""
    made = tiny_t5(num_layers=3, tie_word_embeddings=False)
    head = np.random.default_rng(6).standard_normal((320, 32)).astype(np.float32)
    weights = {**made.weights, "lm_head.weight": dense_weight("lm_head.weight", head)}
    return replace(made, weights=WeightMap(weights))


def target_of(checkpoint: Checkpoint) -> TargetWithEncoder:
    spec = FAMILY.read(checkpoint.config)
    return TargetWithEncoder(spec, FAMILY.collect(spec, checkpoint.weights), spec.model_spec())


def draft(path: Path, layers: Any, **more: Any) -> Path:
    """A file of a draft that takes these layers of the target."""
    first = 2 if layers == [2] else 0
    tensors = untrained(target_of(sure_t5()), ShallowSettings((first,)))
    facts = {"settings": {"layers": layers, "name": "shallow"}, "tensors": tensors, **more}
    write_trained(path, kind="shallow", target="0" * 64, card={}, **facts)
    return path


def answers(bundle: Path, backend: str, **options: Any) -> list[Any]:
    """Of one session, over sources in turn."""
    with quickdraft.load(bundle, backend=backend, drafter="shallow") as model:
        session = model.session()
        return [model.generate(text, session=session, **SHORT, **options) for text in TEXTS]


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("reference", "ends"),
        ("reference", "trained"),
        *(pytest.param("hotpath", name, marks=pytest.mark.native) for name in CASES),
    ],
)
def test_drafts_change_nothing(name: str, backend: str, tmp_path: Path) -> None:
    layers, tensors = CASES[name]
    more = {"tensors": tensors} if tensors else {}
    file = draft(tmp_path / "draft.safetensors", layers, **more)
    bundle, weights = tmp_path / "bundle", "fp32" if backend == "reference" else "int8"
    checkpoint = sure_t5()
    export_checkpoint(checkpoint, bundle, formats=(backend,), weights=weights, trained=(file,))
    plain = answers(bundle, backend, num_draft_tokens=0)
    for options in ({"num_draft_tokens": 5}, {}):
        drafted = answers(bundle, backend, **options)
        for mine, other in zip(drafted, plain, strict=True):
            assert mine.token_ids == other.token_ids
            if backend == "hotpath":
                assert mine.logprobs == other.logprobs
        if options:
            steps = [step for answer in drafted for step in answer.steps]
            assert sum(step.drafted for step in steps) > 0
            if name == "all":  # the draft is the target
                assert sum(step.accepted for step in steps) > len(steps)


@pytest.mark.parametrize(
    ("layers", "more", "says"),
    [
        ([], {}, "must list some of 0 to 2, rising"),
        ([1, 0], {}, "must list some"),
        ([3], {}, "must list some"),
        ([True], {}, "must list some"),
        ("all", {}, "must list some"),
        ([0], {"tensors": {"1.mlp.up": OTHER_UP["0.mlp.up"]}}, "has no weight '1.mlp.up'"),
        ([0], {"tensors": {"0.cross.key": OTHER_UP["0.mlp.up"]}}, "has no weight '0.cross.key'"),
        ([0], {"tensors": {"0.mlp.up": OTHER_UP["0.mlp.up"].T.copy()}}, "has shape"),
        ([0], {"settings": {"layers": [0]}}, "settings of a shallow draft are layers, name"),
        ([0], {"settings": {"layers": [0], "name": 5}}, "must be text"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    layers: Any, more: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = draft(tmp_path / "draft.safetensors", layers, **more)
    with pytest.raises(CheckpointError, match=says):
        export_checkpoint(sure_t5(), tmp_path / "b", formats=("reference",), trained=(file,))


def test_other_formats_and_models_refuse_it(tmp_path: Path) -> None:
    file = draft(tmp_path / "draft.safetensors", [0])
    with pytest.raises(UnsupportedModel, match="'onnx' cannot hold 'shallow'"):
        export_checkpoint(tiny_t5(), tmp_path / "b", formats=("onnx",), trained=(file,))
    decoder = tiny_checkpoint()
    write_trained(
        file,
        kind="shallow",
        target=decoder.source.fingerprint,
        settings={"layers": [0], "name": "shallow"},
        tensors=OTHER_UP,
        card={},
    )
    with pytest.raises(OptionError, match="unknown kind of trained part 'shallow'"):
        export_checkpoint(decoder, tmp_path / "b", formats=("reference",), trained=(file,))
