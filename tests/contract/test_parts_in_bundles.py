"""What a bundle holds of parts beside its target: entries, token maps, names, shared weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import toy_parts
from tiny.checkpoint import tiny_checkpoint
from tiny.toy_parts import AHEAD, FORMATS, KIND, TOKENS, bundle, toy_tensors, write_bundle

from quickdraft.bundle import open_bundle
from quickdraft.errors import CheckpointError
from quickdraft.export.quantize import quantize
from quickdraft.export.trained import Target
from quickdraft.manifest import Variant
from quickdraft.runtime.backends.opening import find_part, read_token_map
from quickdraft.runtime.backends.reference_program import Program

WIDTH = 32


def test_the_manifest_tells_of_every_part() -> None:
    manifest = bundle().manifest
    told = {
        role: [(v.target_format, v.flavour, v.name) for v in variants]
        for role, variants in manifest.roles.items()
    }
    kinds = [("onnx", "hotpath"), ("onnx", "portable"), ("reference", "portable")]
    assert told == {
        "target": [(*kind, "") for kind in kinds],
        "drafter": [(*kind, name) for name in ("attends", "ahead") for kind in kinds],
        "auxiliary": [(*kind, "small") for kind in kinds],
        "predictor": [(*kind, name) for name in ("echo", "half") for kind in kinds],
    }
    for variant in manifest.roles["drafter"]:
        assert (variant.features, variant.token_map) == (96, f"{variant.name}.tokens")
        assert variant.details == {"hidden_states": [0, 1, 2], "state": 1, "kind": KIND}
        assert variant.spec is not None
        assert variant.spec.vocab_size == len(TOKENS)
        assert variant.token_map in manifest.files
    for variant in manifest.roles["predictor"]:
        assert variant.target_cache is not None
        assert variant.target_cache.kind == variant.cache.kind
        assert variant.target_cache != variant.cache or variant.target_format == "reference"
        assert variant.token_map is None
    assert [sorted(v.step.hidden_states) for v in manifest.roles["target"]] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("name", ["reference", "onnxruntime", "hotpath"])
def test_the_token_map_is_the_one_of_the_file(name: str) -> None:
    found = bundle()
    variant = find_part(found.manifest, name, "drafter", "attends")
    tokens = read_token_map(found.folder, variant, found.manifest.model.vocab_size)
    assert tokens is not None
    assert np.array_equal(tokens, TOKENS)


DATA = {
    "hotpath": "onnx-hotpath/model.data",
    "onnx": "onnx/model.onnx_data",
    "reference": "reference/weights.safetensors",
}


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("form", FORMATS)
def test_what_parts_share_with_their_target_is_stored_once(
    form: str, weights: str, tmp_path: Path
) -> None:
    """Embedding, layers and norms are the target's; of the trimmed head, a copy is made."""
    sizes = []
    for toys in (False, True):
        folder = tmp_path / str(toys) / "bundle"
        folder.parent.mkdir()
        write_bundle(folder, (form,), toys, weights=weights)
        sizes.append((folder / DATA[form]).stat().st_size)
    values = len(TOKENS) * WIDTH + 3 * WIDTH * WIDTH + 2 * 64 * WIDTH  # head, join, query, output
    values += 4 * 32 * WIDTH + AHEAD * WIDTH * WIDTH  # keys and values of head and map, ahead
    bits = {"fp32": 32, "int8": 8, "int4": 4}[weights]
    alone = values * bits // 8
    # Scales, alignment, and what stays in floats.
    padding = 1.7 * alone + 64 * 1024 if form == "onnx" else 0.7 * alone + 4096
    assert alone <= sizes[1] - sizes[0] <= alone + padding


@pytest.mark.parametrize("form", FORMATS)
def test_a_predictor_of_the_targets_own_layers_costs_nothing(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_echo(trained: Any, target: Any) -> list[Any]:
        return [part for part in attach(trained, target) if part.name == "echo"]

    attach = toy_parts.attach
    sizes = []
    for toys in (False, True):
        monkeypatch.setattr(toy_parts, "attach", only_echo)
        folder = tmp_path / str(toys) / "bundle"
        folder.parent.mkdir()
        write_bundle(folder, (form,), toys, weights="int8")
        sizes.append((folder / DATA[form]).stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["model", "MODEL", "small", "a/b", "..", "a+b", ""])
def test_names_that_parts_cannot_have(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take the place of another's files, or lead elsewhere."""

    def renamed(trained: Any, target: Any) -> list[Any]:
        attends, *others = attach(trained, target)
        return [replace(attends, name=name), *others]

    attach = toy_parts.attach
    monkeypatch.setattr(toy_parts, "attach", renamed)
    with pytest.raises(CheckpointError, match=r"would be called|cannot be called"):
        write_bundle(tmp_path / "bundle", ("reference",))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("weights", "kept"), [("fp32", False), ("int8", True)])
def test_blocks_of_a_trained_file_stay_what_they_are(
    weights: str, kept: bool, tmp_path: Path
) -> None:
    """Rounded once, when it was trained."""
    folder = tmp_path / "bundle"
    write_bundle(folder, ("reference",), weights=weights, int8=True)
    found = open_bundle(folder)
    variant = find_part(found.manifest, "reference", "drafter", "attends")
    assert variant.weight_format == weights
    program = Program.read(folder, variant)
    join = next(line for line in program.lines if line.op == "linear").constants["weight"]
    rounded = quantize(toy_tensors(Target.of(tiny_checkpoint()))["join"], 8)
    scale = rounded.scale.astype(np.float16).astype(np.float32)
    stored = replace(rounded, scale=scale).to_dense()
    np.testing.assert_allclose(join, stored, rtol=0, atol=1e-6)
    text = (folder / variant.model).read_text(encoding="utf-8")
    assert ("join" in json.loads(text)["blocks"]) == kept


def variants() -> list[Variant]:
    return [v for each in bundle().manifest.roles.values() for v in each]


def test_every_file_of_a_part_is_listed_and_hashed() -> None:
    manifest = bundle().manifest
    for variant in variants():
        assert {variant.model, *variant.files} <= set(manifest.files)
