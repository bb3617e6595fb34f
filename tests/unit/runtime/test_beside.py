"""What runs beside a target counts in its memory plan, and what is shared counts once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny.predicted import write_predicted_model
from tiny.process import call
from tiny.toy_parts import bundle

import quickdraft
from quickdraft.device_profiles import machine
from quickdraft.device_profiles.memory_plan import kv_bytes_per_token, plan_memory, workspace_of
from quickdraft.errors import DeviceError, OptionError
from quickdraft.manifest import FileEntry, Manifest
from quickdraft.runtime.backends.opening import variant_for
from quickdraft.runtime.beside import NOTHING, Beside, with_parts
from quickdraft.runtime.drafting import DraftingSetup
from quickdraft.runtime.footprint import footprint
from quickdraft.runtime.prediction import Prefill

BACKEND = {"onnx": "onnxruntime", "hotpath": "hotpath", "openvino": "openvino"}


@pytest.fixture(scope="module", params=["onnx", "hotpath"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest, str]:
    folder = tmp_path_factory.mktemp("beside") / "bundle"
    manifest = write_predicted_model(folder, formats=(request.param,))
    return folder, manifest, BACKEND[request.param]


def test_nothing_beside_takes_nothing(made: tuple[Path, Manifest, str]) -> None:
    _, manifest, backend = made
    target = variant_for(manifest, backend)
    held = footprint(manifest, target)
    for beside in (NOTHING, Beside(drafting=DraftingSetup("none")), Beside(Prefill())):
        assert with_parts(held, manifest, target, beside, backend) == held


def test_a_predictor_shares_the_weights_of_its_target(made: tuple[Path, Manifest, str]) -> None:
    _, manifest, backend = made
    target = variant_for(manifest, backend)
    held = footprint(manifest, target)
    beside = Beside(Prefill.parse("predicted@wrong"))
    (part,) = beside.parts(manifest, backend)
    assert part.name == "wrong"
    found = with_parts(held, manifest, target, beside, backend)
    own = [name for name in part.files if name not in target.files]
    assert found.parts == sum(manifest.files[name].size for name in own)
    assert found.parts < held.weights
    # The auxiliary's own cache while it reads, of the target's type.
    assert found.kv_parts == kv_bytes_per_token(part.spec or manifest.model, held.kv_type)
    assert found.working == workspace_of(part.spec or manifest.model)


def test_a_refresh_is_a_second_cache_and_a_second_session(
    made: tuple[Path, Manifest, str],
) -> None:
    _, manifest, backend = made
    target = variant_for(manifest, backend)
    spec, held = manifest.model, footprint(manifest, target)
    plans = [
        plan_memory(
            spec, with_parts(held, manifest, target, Beside(Prefill.parse(kind)), backend), 64, None
        )
        for kind in ("exact", "predicted", "predicted+refresh")
    ]
    exact, predicted, refreshed = plans
    assert (exact.parts, exact.kv_parts) == (0, 0)
    assert predicted.needed > exact.needed
    assert refreshed.kv_parts - predicted.kv_parts == exact.kv
    assert refreshed.needed - predicted.needed == exact.kv + workspace_of(spec)
    told = refreshed.to_dict()
    assert told["needed"] == sum(told[n] for n in ("weights", "parts", "kv", "kv_parts")) + (
        refreshed.workspace
    )


def test_openvino_packs_the_weights_of_a_part_again(made: tuple[Path, Manifest, str]) -> None:
    _, manifest, backend = made
    target = replace(variant_for(manifest, backend), target_format="openvino")
    (part,) = Beside(Prefill.parse("predicted")).parts(manifest, backend)
    part = replace(part, target_format="openvino", files=(*part.files, *target.files))
    size = 1 << 30
    files = dict.fromkeys(target.files, FileEntry(size, "0" * 64))
    told = replace(
        manifest,
        roles={"target": (target,), "predictor": (part,)},
        files={**manifest.files, **files},
    )
    held = footprint(manifest, variant_for(manifest, backend))
    beside = Beside(Prefill.parse("predicted"))
    found = with_parts(held, told, target, beside, "openvino")
    assert found.parts >= size  # it has as many layers as its target


def test_heads_count_by_the_names_of_their_drafters() -> None:
    manifest = bundle().manifest

    def names(drafter: str, **options: dict[str, str]) -> list[str]:
        beside = Beside(drafting=DraftingSetup(drafter, options))
        return [part.name for part in beside.parts(manifest, "hotpath")]

    assert names("none") == names("prompt_lookup") == []
    assert names("auxiliary") == ["small"]
    assert names("eagle", eagle={"part": "attends"}) == ["attends"]
    target = variant_for(manifest, "hotpath")
    beside = Beside(drafting=DraftingSetup("eagle", {"eagle": {"part": "attends"}}))
    held = with_parts(footprint(manifest, target), manifest, target, beside, "hotpath")
    assert held.parts > 0
    assert held.kv_parts > 0


@pytest.mark.native
def test_what_does_not_fit_beside_the_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    manifest = write_predicted_model(folder)
    target = variant_for(manifest, "hotpath")
    alone = plan_memory(manifest.model, footprint(manifest, target), 512, None).needed
    monkeypatch.setattr(machine, "memory", lambda: (int(1.2 * alone / 0.9), None))
    asked = {"drafter": "none", "backend": "hotpath", "store": False}
    with pytest.raises(DeviceError, match=r"predictors and drafts .* leave out --prefill"):
        quickdraft.load(folder, prefill="predicted+refresh", **asked)
    with quickdraft.load(folder, **asked) as model:
        with pytest.raises(DeviceError, match="does not fit on"):
            model.use_prefill("predicted+refresh")
        with pytest.raises(OptionError, match="no predictor 'none'"):
            model.use_prefill("predicted@none")
        assert model.generation_config.prefill == "exact"


@pytest.mark.native
def test_a_prefill_is_planned_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_predicted_model(folder)

    def planned(*options: str) -> dict[str, Any]:
        done = call("device", "show", "--model", folder, "--context", "64", *options, "--json")
        told: dict[str, Any] = json.loads(done.stdout)
        return told["plan"] if done.returncode == 0 else told["error"]

    exact, refreshed = planned(), planned("--prefill", "predicted+refresh")
    assert (exact["parts"], exact["kv_parts"]) == (0, 0)
    assert refreshed["kv_parts"] > exact["kv"]
    assert "no such predictor" in planned("--prefill", "predicted@other")["message"]
    assert "prefill is" in planned("--prefill", "early")["message"]
    alone = call("device", "show", "--prefill", "predicted")
    assert (alone.returncode, "--model" in alone.stderr) == (2, True)
