"""docs/manifest.schema.json says what the parser does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny.bundles import tiny_blocks_manifest, tiny_manifest, with_parts

from quickdraft import manifest, types
from quickdraft.errors import BundleError
from quickdraft.manifest import parse_manifest

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "docs" / "manifest.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def plain(blocks: bool = False) -> Any:
    return json.loads((tiny_blocks_manifest() if blocks else tiny_manifest()).to_json())


def parts(blocks: bool = False) -> Any:
    whole = with_parts(tiny_blocks_manifest() if blocks else tiny_manifest())
    return json.loads(whole.to_json())


ADAPTED = {
    "appended": {"past_key": "a{layer}", "past_value": "b{layer}", "present_key": "c{layer}",
                 "present_value": "d{layer}", "in_place": True},
    "states": {},
    "recomputed": {},
}  # fmt: skip


def adapted(kind: str) -> Any:
    """A manifest as adapters make them in memory."""
    whole = plain()
    step = {"tokens": "input_ids", "positions": None, "logits": "logits", "mask": "mask"}
    changes = {"flavour": "adapted", "step": step, "cache": {"kind": kind, **ADAPTED[kind]}}
    whole["roles"]["target"] = [whole["roles"]["target"][0] | changes]
    return whole


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapted_graphs(kind: str) -> None:
    VALIDATOR.validate(adapted(kind))
    parse_manifest(json.dumps(adapted(kind)).encode(), "m")
    for name, value in (("flavour", "portable"), ("step", plain()["roles"]["target"][0]["step"])):
        _both_refuse(adapted(kind), ("roles", "target", 0, name), value)
    for name in ("slots", "output_rows", "source"):
        _both_refuse(adapted(kind), ("roles", "target", 0, "step", name), "x")
    _both_refuse(adapted(kind), ("roles", "target", 0, "step", "logits"), None)


def test_the_schema_is_one_and_takes_a_manifest() -> None:
    VALIDATOR.check_schema(SCHEMA)
    VALIDATOR.validate(plain())
    VALIDATOR.validate(plain(blocks=True))
    VALIDATOR.validate(parts())
    VALIDATOR.validate(parts(blocks=True))


DEFINITIONS = {
    "file": manifest.FileEntry,
    "model": types.ModelSpec,
    "variant": manifest.Variant,
    "step": manifest.StepNames,
    "slots_layout": manifest.SlotsLayout,
    "blocks_layout": manifest.BlocksLayout,
    "rows_layout": manifest.RowsLayout,
    "fixed_state_layout": manifest.FixedStateLayout,
    "static_step": manifest.StaticStep,
    "appended_layout": manifest.AppendedLayout,
    "states_layout": manifest.StatesLayout,
    "recomputed_layout": manifest.RecomputedLayout,
    "source_spec": types.SourceSpec,
    "tokenizer": manifest.TokenizerEntry,
    "source_tokenizer": manifest.SourceTokenizerEntry,
    "source": manifest.SourceEntry,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_keys_are_those_of_the_dataclass(name: str) -> None:
    definition, fields = SCHEMA["$defs"][name], dataclasses.fields(DEFINITIONS[name])
    assert list(definition["properties"]) == [field.name for field in fields]
    missing = dataclasses.MISSING
    assert set(definition["required"]) == {
        field.name for field in fields if field.default is field.default_factory is missing
    }
    assert definition["additionalProperties"] is False


def test_keys_of_the_whole_are_those_of_the_dataclass() -> None:
    names = {field.name for field in dataclasses.fields(manifest.Manifest)}
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == names
    assert SCHEMA["properties"]["schema_version"]["const"] == manifest.SCHEMA_VERSION


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 4),
        (("model", "num_layers"), 0),
        (("model", "head_dim"), "4"),
        (("model", "windows"), [None, 0]),
        (("roles", "boss"), []),
        (("roles", "target"), []),
        (("roles", "target", 0, "flavour"), "fast"),
        (("roles", "target", 0, "extra"), 1),
        (("roles", "target", 0, "name"), "x"),
        (("roles", "target", 0, "spec"), plain()["model"]),
        (("roles", "target", 0, "features"), 1),
        (("roles", "target", 0, "token_map"), "model.onnx"),
        (("roles", "target", 0, "target_cache"), plain()["roles"]["target"][0]["cache"]),
        (("roles", "target", 0, "step", "logits"), None),
        (("roles", "target", 0, "step", "output_rows"), ""),
        (("roles", "target", 0, "step", "target_rows"), "x"),
        (("roles", "target", 0, "cache", "past_key"), "{layer}{x}"),
        (("roles", "target", 0, "cache", "alignment"), 0),
        (("roles", "target", 0, "cache", "kind"), "blocks"),
        (("roles", "target", 0, "step", "hidden_states"), {"01": "x"}),
        (("roles", "target", 0, "step", "slots"), None),
        (("roles", "target", 0, "step", "slots"), ""),
        (("roles", "target", 0, "step", "top"), 1),
        (("roles", "target", 0, "step", "log_sum"), "x"),
        (("tokenizer", "add_bos"), 0),
        (("tokenizer", "eos_token_ids"), [-1]),
        (("tokenizer", "source"), {"file": "tokenizer.json"}),
        (("tokenizer", "source"), {"file": "tokenizer.json", "token_map": 1}),
        (("files",), {}),
        (("files", "model.onnx", "sha256"), "A" * 64),
        (("files", "a\\b"), {"size": 0, "sha256": "0" * 64}),
        (("source", "revision"), 1),
        (("written_by",), {"quickdraft": None}),
        (("generation",), []),
    ],
)
def test_both_refuse(path: tuple[Any, ...], value: Any) -> None:
    _both_refuse(plain(), path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cache", "kind"), "slots"),
        (("cache", "alignment"), 0),
        (("step", "slots"), "x"),
        (("step", "past"), None),
        (("step", "top_ids"), ""),
        (("step", "top"), 0),
    ],
)
def test_both_refuse_of_blocks(path: tuple[Any, ...], value: Any) -> None:
    _both_refuse(plain(blocks=True), ("roles", "target", 0, *path), value)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("drafter", 0, "spec"), None),
        (("drafter", 0, "name"), ""),
        (("drafter", 0, "name"), "a+b"),
        (("drafter", 0, "features"), 0),
        (("drafter", 0, "step", "features"), None),
        (("drafter", 0, "step", "logits"), None),
        (("drafter", 0, "step", "target_past"), "x"),
        (("drafter", 0, "target_cache"), plain()["roles"]["target"][0]["cache"]),
        (("drafter", 0, "token_map"), ""),
        (("drafter", 0, "details"), []),
        (("auxiliary", 0, "spec", "num_layers"), 0),
        (("auxiliary", 0, "step", "features"), "x"),
        (("predictor", 0, "target_cache"), None),
        (("predictor", 0, "target_cache", "alignment"), 0),
        (("predictor", 0, "cache"), "other"),
        (("predictor", 0, "token_map"), "head.tokens"),
        (("predictor", 0, "step", "logits"), "x"),
        (("predictor", 0, "step", "output_rows"), "x"),
        (("predictor", 0, "step", "top"), 1),
    ],
)
def test_both_refuse_of_parts(path: tuple[Any, ...], value: Any, blocks: bool) -> None:
    if value == "other":
        value = plain(not blocks)["roles"]["target"][0]["cache"]
    _both_refuse(parts(blocks), ("roles", *path), value)


@pytest.mark.parametrize(
    ("blocks", "name", "value"),
    [
        (False, "target_rows", None),
        (False, "target_past", "x"),
        (True, "target_past", None),
        (True, "target_rows", "x"),
    ],
)
def test_both_refuse_of_predictors(blocks: bool, name: str, value: Any) -> None:
    _both_refuse(parts(blocks), ("roles", "predictor", 0, "step", name), value)


def _both_refuse(whole: Any, path: tuple[Any, ...], value: Any) -> None:
    parent = whole
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    assert not VALIDATOR.is_valid(whole)
    with pytest.raises(BundleError):
        parse_manifest(json.dumps(whole).encode(), "m")
