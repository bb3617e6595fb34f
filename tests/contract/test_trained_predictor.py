"""A trained predictor on its way: file, bundle, answer. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.checkpoint import tiny_checkpoint

from quickdraft import strict_json
from quickdraft.drafters.train.own_maps import own_maps
from quickdraft.errors import CheckpointError, OptionError
from quickdraft.export.layer_maps import pruned_sources
from quickdraft.export.pipeline import export_checkpoint
from quickdraft.export.prediction import PredictionSettings, Pruned
from quickdraft.export.trained import Target, write_trained

LAYERS = 5
BACKENDS = {
    "reference": "reference",
    "onnxruntime": "onnx",
    "hotpath": "hotpath",
}


def checkpoint() -> Any:
    return tiny_checkpoint(num_hidden_layers=LAYERS)


def write(
    file: Path, keep: tuple[int, ...], changes: Any = None, name: str = "tiny", **settings: Any
) -> Path:
    """A file of own maps; `changes` may spoil its tensors."""
    made = checkpoint()
    target = Target.of(made)
    sources = pruned_sources("hidden", LAYERS, keep, len(keep) - 1)
    described = PredictionSettings(name, Pruned("pruned", keep), "hidden", sources, 2, "none")
    tensors = own_maps(target, sources)
    if changes is not None:
        changes(tensors)
    write_trained(
        file,
        kind="predictor",
        target=made.source.fingerprint,
        settings={**strict_json.encode(described), **settings},
        tensors=tensors,
        card={"seconds": 1.0},
        int8=False,
    )
    return file


def refusal(tmp_path: Path, *args: Any, **kwargs: Any) -> str:
    file = write(tmp_path / "bad.safetensors", *args, **kwargs)
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(checkpoint(), tmp_path / "b", formats=("reference",), trained=[file])
    assert not (tmp_path / "b").exists()
    return str(error.value)


@pytest.mark.parametrize(
    "backend",
    [pytest.param(b, marks=pytest.mark.native if b == "hotpath" else ()) for b in BACKENDS],
)
def test_the_target_as_its_own_auxiliary_answers_as_exactly(backend: str, tmp_path: Path) -> None:
    import quickdraft

    whole = write(tmp_path / "whole.safetensors", tuple(range(LAYERS)), name="whole")
    naive = write(tmp_path / "naive.safetensors", (0, 2), name="naive")
    bundle = tmp_path / "bundle"
    formats = (BACKENDS[backend],)
    manifest = export_checkpoint(
        checkpoint(), bundle, weights="fp32", formats=formats, trained=[whole, naive]
    )
    assert {v.name for v in manifest.roles["predictor"]} == {"predictor-whole", "predictor-naive"}
    assert {v.name for v in manifest.roles["auxiliary"]} == {"auxiliary-whole", "auxiliary-naive"}
    prompt = [int(token) for token in np.random.default_rng(0).integers(4, 300, 40)]
    with quickdraft.load(str(bundle), backend=backend) as model:
        answers = {
            prefill: model.generate(prompt, max_new_tokens=12, prefill=prefill).token_ids
            for prefill in ("exact", "predicted@predictor-whole", "predicted@predictor-naive")
        }
    assert answers["predicted@predictor-whole"] == answers["exact"]
    assert answers["predicted@predictor-naive"] != answers["exact"]
    options = {"auxiliary": {"part": "auxiliary-whole", "method": "chain"}}
    drafting = {"drafter": "auxiliary", "drafter_options": options, "store": False}
    with quickdraft.load(str(bundle), backend=backend, **drafting) as model:
        drafted = model.generate(prompt, max_new_tokens=12, num_draft_tokens=3)
    assert drafted.token_ids == answers["exact"]
    proposed = sum(step.drafted for step in drafted.steps)
    assert 0 < proposed == sum(step.accepted for step in drafted.steps)  # it is its target


def test_an_auxiliary_of_the_targets_layers_costs_no_room(tmp_path: Path) -> None:
    file = write(tmp_path / "naive.safetensors", (0, 2))
    sizes = []
    for trained in ([], [file]):
        folder = tmp_path / f"with-{len(trained)}"
        manifest = export_checkpoint(
            checkpoint(), folder, weights="fp32", formats=("reference",), trained=trained
        )
        data = [v for k, v in manifest.files.items() if k.endswith(".safetensors")]
        sizes.append(sum(entry.size for entry in data))
    maps = file.stat().st_size
    assert sizes[0] < sizes[1] <= sizes[0] + 1.2 * maps


def test_the_only_auxiliary_drafts_without_being_named(tmp_path: Path) -> None:
    import quickdraft

    def bundle_of(*names: str) -> str:
        files = [write(tmp_path / f"{name}.safetensors", (0, 2), name=name) for name in names]
        folder = tmp_path / f"bundle-{len(names)}"
        export_checkpoint(
            checkpoint(), folder, weights="fp32", formats=("reference",), trained=files
        )
        return str(folder)

    drafting: dict[str, Any] = {"backend": "reference", "drafter": "auxiliary", "store": False}
    with quickdraft.load(bundle_of("one"), **drafting) as model:
        drafted = model.generate([5, 6, 7], max_new_tokens=8, ignore_eos=True, num_draft_tokens=2)
    assert sum(step.drafted for step in drafted.steps)
    with pytest.raises(OptionError, match="auxiliary-one, auxiliary-two; say which"):
        quickdraft.load(bundle_of("one", "two"), **drafting)
    with pytest.raises(OptionError, match="this bundle has none"):
        quickdraft.load(bundle_of(), **drafting)


def test_a_simulated_device_predicts_nothing_and_says_why(tmp_path: Path) -> None:
    """It used to ask for a predictor that the bundle has."""
    import quickdraft

    file = write(tmp_path / "one.safetensors", (0, 2), name="one")
    export_checkpoint(
        checkpoint(), tmp_path / "b", weights="fp32", formats=("onnx",), trained=[file]
    )
    with pytest.raises(OptionError, match="nothing is predicted on simulated:") as error:
        quickdraft.load(
            str(tmp_path / "b"),
            device="simulated:core-ultra-3-npu",
            prefill="predicted",
        )
    assert "train predictor" not in str(error.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    def lacking(tensors: dict[str, Any]) -> None:
        del tensors["map.3.1.key"]

    def wide(tensors: dict[str, Any]) -> None:
        tensors["map.3.key_bias"] = np.zeros(99, np.float32)

    def more(tensors: dict[str, Any]) -> None:
        tensors["bridge.7.weight"] = np.zeros((4, 4), np.float32)

    assert "lacks the tensor 'map.3.1.key'" in refusal(tmp_path, (0, 2), lacking)
    assert "map.3.key_bias" in refusal(tmp_path, (0, 2), wide)
    assert "bridge.7.weight" in refusal(tmp_path, (0, 2), more)
    keep = {"kind": "pruned", "keep": [0, 9]}
    assert "[0, 9]" in refusal(tmp_path, (0, 2), auxiliary=keep)
    assert "maps 1 layers" in refusal(tmp_path, (0, 2), sources=[[0]])
    assert "ascend" in refusal(tmp_path, (0, 2), sources=[[3]] * LAYERS)
    assert "first source" in refusal(tmp_path, (0, 2), sources=[[0]] * LAYERS)
    assert "exact_first" in refusal(tmp_path, (0, 2), exact_first=-1)
    assert "name" in refusal(tmp_path, (0, 2), name="a/b")
    assert "features" in refusal(tmp_path, (0, 2), features="both")
    sibling = {"kind": "sibling", "config": {**checkpoint().config, "vocab_size": 17}}
    assert "17 tokens" in refusal(tmp_path, (0, 2), auxiliary=sibling)
