"""What a manifest may say of the parts beside the target."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tiny.bundles import tiny_blocks_manifest, tiny_manifest, with_parts

from quickdraft.errors import BundleError
from quickdraft.manifest import parse_manifest

TEXT = tiny_manifest().to_json().encode()
BLOCKS = tiny_blocks_manifest().to_json().encode()
PARTS = with_parts(tiny_manifest()).to_json().encode()
BLOCK_PARTS = with_parts(tiny_blocks_manifest()).to_json().encode()


def edited(edit: Callable[[dict[str, Any]], object], text: bytes) -> bytes:
    value = json.loads(text)
    edit(value)
    return json.dumps(value).encode()


def _part(role: str, text: bytes = PARTS, **changes: Any) -> bytes:
    return edited(lambda m: m["roles"][role][0].update(changes), text)


def _step(role: str, text: bytes = PARTS, **changes: Any) -> bytes:
    return edited(lambda m: m["roles"][role][0]["step"].update(changes), text)


_SPEC = json.loads(PARTS)["roles"]["auxiliary"][0]["spec"]
_CACHE = json.loads(TEXT)["roles"]["target"][0]["cache"]
_BLOCKS_CACHE = json.loads(BLOCKS)["roles"]["target"][0]["cache"]

BAD_PARTS = {
    "target-with-spec": (_part("target", spec=_SPEC), "has 'spec', which is for parts"),
    "target-with-name": (_part("target", name="a"), "has 'name', which is for parts"),
    "target-with-features": (_part("target", features=3), "has 'features', which is for"),
    "target-with-map": (_part("target", token_map="head.tokens"), "has 'token_map', which"),
    "target-with-target-cache": (_part("target", target_cache=_CACHE), "has 'target_cache', which"),
    "target-without-logits": (
        _step("target", logits=None),
        "lacks 'logits', and only a predictor",
    ),
    "part-without-spec": (_part("auxiliary", spec=None), "lacks a spec"),
    "part-without-name": (_part("auxiliary", name=""), "name is ''; it must be 1 to 100"),
    "part-with-a-path": (_part("drafter", name="a/b"), "name is 'a/b'"),
    "part-with-a-plus": (_part("predictor", name="a+b"), "name is 'a+b'"),
    "part-with-control": (_part("predictor", name="a\x1b[2J"), "name is 'a\\x1b[2J'"),
    "part-long-name": (_part("predictor", name="a" * 101), "it must be 1 to 100"),
    "two-parts-of-a-name": (
        edited(lambda m: m["roles"]["drafter"].append(m["roles"]["drafter"][0]), PARTS),
        "two parts 'head' of one flavour",
    ),
    "part-window-0": (
        edited(lambda m: m["roles"]["auxiliary"][0]["spec"].update(windows=[0]), PARTS),
        "spec.windows has a window of 0",
    ),
    "part-spec-of-no-layers": (
        edited(lambda m: m["roles"]["auxiliary"][0]["spec"].update(num_layers=0), PARTS),
        "at least 1",
    ),
    "drafter-with-target-cache": (_part("drafter", target_cache=_CACHE), "has a target_cache"),
    "predictor-without-target-cache": (
        _part("predictor", target_cache=None),
        "lacks a target_cache",
    ),
    "predictor-of-another-kind": (
        _part("predictor", target_cache=_BLOCKS_CACHE),
        "has a cache of 'slots' and writes one of 'blocks'",
    ),
    "predictor-alignment-0": (
        _part("predictor", target_cache={**_CACHE, "alignment": 0}),
        "target_cache.alignment is 0",
    ),
    "predictor-format-attack": (
        _part("predictor", target_cache={**_CACHE, "present_value": "{layer!r}"}),
        "target_cache.present_value",
    ),
    "predictor-with-logits": (_step("predictor", logits="logits"), "has 'logits', and only"),
    "predictor-with-output-rows": (_step("predictor", output_rows="x"), "has 'output_rows'"),
    "predictor-with-top": (_step("predictor", BLOCK_PARTS, top=3), "has 'top'"),
    "predictor-without-rows": (
        _step("predictor", target_rows=None),
        "lacks 'target_rows', and only a predictor over slots",
    ),
    "predictor-without-past": (
        _step("predictor", BLOCK_PARTS, target_past=None),
        "lacks 'target_past', and only a predictor over blocks",
    ),
    "predictor-with-both": (
        _step("predictor", BLOCK_PARTS, target_rows="x"),
        "has 'target_rows', and only a predictor over slots",
    ),
    "predictor-with-map": (_part("predictor", token_map="head.tokens"), "has a token_map"),
    "drafter-with-rows": (_step("drafter", target_rows="x"), "has 'target_rows'"),
    "drafter-without-logits": (_step("drafter", logits=None), "lacks 'logits'"),
    "features-without-input": (
        _step("drafter", features=None),
        "lacks 'features', and its features are 32 wide",
    ),
    "input-without-features": (
        _part("drafter", features=0),
        "has 'features', and its features are 0 wide",
    ),
    "map-not-listed": (_part("drafter", token_map="other"), "token_map names 'other'"),
    "map-empty-name": (_part("drafter", token_map=""), "token_map names ''"),
    "map-of-another-size": (
        edited(lambda m: m["files"]["head.tokens"].update(size=24), PARTS),
        "is 24 bytes long; a vocabulary of 5 needs 20",
    ),
    "head-top-beyond-its-vocabulary": (
        _step("drafter", BLOCK_PARTS, top=6),
        "step.top is 6, and the vocabulary has 5",
    ),
    "details-a-list": (_part("drafter", details=[]), "details"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_bad_part_is_refused(case: str) -> None:
    text, expected = BAD_PARTS[case]
    with pytest.raises(BundleError) as caught:
        parse_manifest(text, "here/manifest.json")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("here/manifest.json: ")
    assert len(str(caught.value)) < 400


def test_parts_of_two_flavours_may_share_a_name() -> None:
    def add(manifest: dict[str, Any]) -> None:
        for role, variants in json.loads(BLOCK_PARTS)["roles"].items():
            manifest["roles"][role] += variants

    assert len(parse_manifest(edited(add, PARTS), "m").roles["predictor"]) == 2
