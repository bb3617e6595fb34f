"""The stateful graph for OpenVINO GenAI: the reference's logits, also for several sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import tiny_checkpoint
from tiny.family_configs import CONFIGS
from tiny.parts import target_request
from tiny.random_weights import RandomWeights

from quickdraft.drafters.tree import Tree
from quickdraft.errors import UnsupportedModel
from quickdraft.export.architectures.base import find_family
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.quantize import FORMATS
from quickdraft.models.adapters import recognise
from quickdraft.models.adapters.openvino import adapt_openvino
from quickdraft.models.resolve import resolve
from quickdraft.registry import BACKENDS, EMITTERS, lookup
from quickdraft.runtime.backends.opening import open_backend

ov = pytest.importorskip("openvino")
pytestmark = pytest.mark.openvino

REFUSED = {"gemma2", "openelm", "openelm-untied-plain"}
"""Their scores are capped, or their layers differ in heads."""
TOKENS = np.random.default_rng(3).integers(3, 320, 40)


def export(folder: Path, family: str, weights: str = "fp32") -> Path:
    formats = ("openvino-genai", "reference")
    export_checkpoint(tiny_checkpoint(family), folder, weights=weights, formats=formats)
    return folder


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_the_logits_are_those_of_the_reference(weights: str, tmp_path: Path) -> None:
    bundle = resolve(str(export(tmp_path / "bundle", "llama", weights)))
    found = []
    for name in ("openvino_adapted", "reference"):
        backend = open_backend(bundle.folder, bundle.manifest, name, None).backend
        cache = backend.new_cache()
        for part in np.split(TOKENS, [7, 8, 30]):
            found.append(backend.step(Tree.chain(part), cache).logits.copy())
            cache.commit(range(len(part)))
    np.testing.assert_allclose(np.vstack(found[:4]), np.vstack(found[4:]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name: str, tmp_path: Path) -> None:
    model_type, config = CONFIGS[name]
    family = find_family({**config, "model_type": model_type})
    spec = family.read({**config, "model_type": model_type})
    facts, weights, found = spec.model_spec(), RandomWeights(), []
    for emitter, backend in (("reference", "reference"), ("openvino-genai", "openvino_adapted")):
        folder = tmp_path / emitter
        folder.mkdir()
        build: Any = lambda ops: family.build(ops, spec, weights)  # noqa: E731
        request = target_request(build, facts, folder, FORMATS["fp32"], ())
        try:
            variant = lookup("format", EMITTERS, emitter)(request)[0]
        except UnsupportedModel as error:
            assert name in REFUSED, error  # noqa: PT017
            return
        model = lookup("backend", BACKENDS, backend)(folder, facts, variant)
        cache = model.new_cache()
        for part in np.split(TOKENS, [7, 8, 30]):
            found.append(model.step(Tree.chain(part), cache).logits.copy())
            cache.commit(range(len(part)))
    assert name not in REFUSED
    np.testing.assert_allclose(np.vstack(found[:4]), np.vstack(found[4:]), rtol=0, atol=1e-3)


def test_it_is_a_folder_of_openvino_genai(tmp_path: Path) -> None:
    folder = export(tmp_path / "bundle", "llama")
    ours = resolve(str(folder)).manifest
    assert recognise(folder) == "openvino"
    theirs = adapt_openvino(folder).manifest
    mine, found = ours.roles["target"][0], theirs.roles["target"][0]
    assert (mine.step, mine.cache, mine.details) == (found.step, found.cache, found.details)
    assert ours.model.num_kv_heads == theirs.model.num_kv_heads
    assert ours.tokenizer.eos_token_ids == theirs.tokenizer.eos_token_ids


def test_beams_choose_whose_past_is_read_and_padding_is_not_seen(tmp_path: Path) -> None:
    folder = export(tmp_path / "bundle", "llama")
    model = ov.Core().compile_model(
        folder / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def step(request: object, tokens: np.ndarray, mask: np.ndarray, beams: list[int]) -> np.ndarray:  # type: ignore[type-arg]
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, -tokens.shape[1] :]
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions,
                 "beam_idx": np.array(beams, np.int32)}  # fmt: skip
        return np.array(request.infer(feeds)["logits"])  # type: ignore[attr-defined]

    alone = model.create_infer_request()
    step(alone, TOKENS[None, :5], np.ones((1, 5), np.int64), [0])
    expected = step(alone, TOKENS[None, 5:6], np.ones((1, 6), np.int64), [0])
    both = model.create_infer_request()
    rows = np.stack([TOKENS[20:27], np.concatenate([[0, 0], TOKENS[:5]])])
    mask = np.array([[1] * 7, [0, 0, *[1] * 5]])
    step(both, rows, mask, [0, 1])
    mask = np.concatenate([mask[[1, 1]], np.ones((2, 1), np.int64)], 1)
    found = step(both, TOKENS[[5, 9]][:, None], mask, [1, 1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-4)
    assert np.abs(found[1] - expected[0]).max() > 1e-2


def test_capped_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="capped"):
        export(tmp_path / "bundle", "gemma2")
