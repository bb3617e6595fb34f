"""Parts of a bundle: which are found for a backend, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.bundles import tiny_blocks_manifest, tiny_manifest, with_parts

from quickdraft.errors import BundleError, InputError, OptionError
from quickdraft.manifest import Manifest, Role
from quickdraft.runtime.backends import opening
from quickdraft.runtime.backends.opening import (
    find_part,
    open_part,
    open_predictor,
    parts,
    read_token_map,
)


def both() -> Manifest:
    """Parts for two backends, and a second predictor for one of them."""
    portable, blocks = with_parts(tiny_manifest()), with_parts(tiny_blocks_manifest())
    roles = {role: portable.roles[role] + blocks.roles[role] for role in portable.roles}
    more = replace(portable.roles["predictor"][0], name="0.5", details={"keep": 0.5})
    roles["predictor"] += (more,)
    return replace(portable, roles=roles)


class Recorder:
    """Stands for backends and predictors; keeps what it was given."""

    name = "onnxruntime"
    flavour = "portable"

    def __init__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = given, options


@pytest.fixture(autouse=True)
def _recorders(monkeypatch: pytest.MonkeyPatch) -> None:
    real = opening.lookup

    def lookup(kind: str, table: Any, name: str) -> Any:
        return Recorder if name == Recorder.name else real(kind, table, name)

    monkeypatch.setattr(opening, "lookup", lookup)


@pytest.mark.parametrize(
    ("name", "names"),
    [("onnxruntime", ["0.25-hidden", "0.5"]), ("hotpath", ["0.25-hidden"]), ("reference", [])],
)
def test_a_backend_sees_its_own_parts(name: str, names: list[str]) -> None:
    found = parts(both(), name, "predictor")
    assert [variant.name for variant in found] == names
    flavours = {variant.flavour for variant in found}
    assert flavours <= {"hotpath" if name == "hotpath" else "portable"}


def test_a_part_of_the_flavour_of_its_target_comes_first() -> None:
    """An NPU, where the target has fixed shapes, can run no other predictor."""
    (first, second) = both().roles["predictor"][:2]
    dynamic = replace(first, target_format="openvino", flavour="portable")
    fixed = replace(second, target_format="openvino", flavour="static", name=first.name)
    manifest = replace(both(), roles={"predictor": (dynamic, fixed)})
    for flavour, expected in (("", dynamic), ("portable", dynamic), ("static", fixed)):
        assert find_part(manifest, "openvino", "predictor", None, flavour) is expected
        assert find_part(manifest, "openvino", "predictor", first.name, flavour) is expected


def test_a_part_is_found_by_name_or_is_the_first() -> None:
    manifest = both()
    assert find_part(manifest, "onnxruntime", "predictor").name == "0.25-hidden"
    assert find_part(manifest, "onnxruntime", "predictor", "0.5").details == {"keep": 0.5}


@pytest.mark.parametrize(
    ("name", "role", "part", "words"),
    [
        ("onnxruntime", "predictor", "0.9", ["no predictor '0.9'", "it has: 0.25-hidden, 0.5"]),
        ("reference", "auxiliary", None, ["what it has is for: onnx hotpath, onnx portable"]),
        ("onnxruntime", "encoder", None, ["no encoder for", "it has none at all", "train draft"]),
        ("onnxruntime", "predictor", "x", ["quickdraft train predictor", "--trained FILE"]),
        ("onnxruntime", "drafter", "x", ["quickdraft train draft", "bundle of tiny"]),
    ],
)
def test_what_there_is_none_of(name: str, role: Role, part: str | None, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        find_part(both(), name, role, part)
    for word in words:
        assert word in str(caught.value)


def test_a_part_is_opened_as_a_backend_of_its_own() -> None:
    manifest = both()
    opened: Any = open_part(Path("there"), manifest, "onnxruntime", "drafter", "head", 3, "f32")
    variant = find_part(manifest, "onnxruntime", "drafter", "head")
    assert opened.given == (Path("there"), variant.spec, variant)
    assert opened.options == {"threads": 3, "kv_cache": "f32", "vocab_size": 32}
    default: Any = open_part(Path("there"), manifest, "onnxruntime", "auxiliary")
    assert default.options == {"threads": None}


def test_a_predictor_is_opened_for_the_backend_of_its_target() -> None:
    target: Any = Recorder()
    manifest = both()
    opened: Any = open_predictor(Path("there"), manifest, target, "0.5", 2)
    variant = find_part(manifest, "onnxruntime", "predictor", "0.5")
    assert opened.given == (target, Path("there"), variant)
    assert opened.options == {"threads": 2}


def test_a_backend_without_predictors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PREDICTORS", {})
    target: Any = Recorder()
    target.name = "other"
    with pytest.raises(OptionError, match="unknown backend of predictors 'other'"):
        open_predictor(Path("there"), both(), target)


def test_a_token_map_is_read(tmp_path: Path) -> None:
    head = find_part(both(), "onnxruntime", "drafter")
    (tmp_path / "head.tokens").write_bytes(np.array([3, 1, 31, 0, 9], "<i4").tobytes())
    found = read_token_map(tmp_path, head, 32)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [3, 1, 31, 0, 9]
    assert read_token_map(tmp_path, replace(head, token_map=None), 32) is None


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0, 1, 2, 3], "holds 4 tokens, and the part 'head' has 5"),
        ([0, 1, 2, 3, 32], "outside the vocabulary of 32"),
        ([0, 1, 2, 3, -1], "outside the vocabulary of 32"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_token_map_is_refused(tokens: list[int] | None, message: str, tmp_path: Path) -> None:
    head = find_part(both(), "onnxruntime", "drafter")
    if tokens is not None:
        (tmp_path / "head.tokens").write_bytes(np.array(tokens, "<i4").tobytes())
    with pytest.raises(BundleError, match=message):
        read_token_map(tmp_path, head, 32)
