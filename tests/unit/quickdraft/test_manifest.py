"""The manifest reads what it wrote, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.bundles import tiny_blocks_manifest, tiny_manifest, with_extra_file, with_parts

from quickdraft.errors import BundleError
from quickdraft.filenames import collision, name_problem
from quickdraft.manifest import MAX_FILES, FileEntry, Manifest, SourceEntry, parse_manifest

TEXT = tiny_manifest().to_json().encode()
BLOCKS = tiny_blocks_manifest().to_json().encode()
PARTS = with_parts(tiny_manifest()).to_json().encode()
BLOCK_PARTS = with_parts(tiny_blocks_manifest()).to_json().encode()


def test_reads_back_what_it_wrote() -> None:
    for plain in (tiny_manifest(), tiny_blocks_manifest()):
        for manifest in (plain, with_parts(plain)):
            assert parse_manifest(manifest.to_json().encode(), "m") == manifest


@given(
    name=st.text(max_size=40),
    generation=st.dictionaries(
        st.text(max_size=9),
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9)
        | st.lists(st.integers(), max_size=3),
        max_size=4,
    ),
    size=st.integers(0, 2**63 - 1),
)
def test_reads_back_any_contents(name: str, generation: dict[str, Any], size: int) -> None:
    base = tiny_manifest()
    manifest = replace(
        base,
        source=SourceEntry("huggingface", name, "f" * 64, revision="main"),
        generation=generation,
        files={**base.files, "extra": FileEntry(size, "a" * 64)},
    )
    assert parse_manifest(manifest.to_json().encode(), "m") == manifest


def _outcome(text: bytes) -> str:
    """What came of parsing; a message that is too long or does not name the file is its own."""
    try:
        return "manifest" if isinstance(parse_manifest(text, "m"), Manifest) else "nothing"
    except BundleError as error:
        message = str(error)
        return "refused" if message.startswith("m: ") and len(message) < 500 else message


@given(st.data())
@settings(max_examples=150)
def test_damage_is_refused_or_changes_nothing_unseen(data: st.DataObject) -> None:
    """Any edit of the text gives a BundleError or another valid manifest, never another error."""
    whole = data.draw(st.sampled_from([TEXT, PARTS]))
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 40))
    text = whole[:at] + data.draw(st.binary(max_size=6)) + whole[at + cut :]
    assert _outcome(text) in ("manifest", "refused")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    return [path, *(found for key, item in items for found in _nodes(item, (*path, key)))]


@given(st.data())
@settings(max_examples=150)
def test_any_value_anywhere_is_refused_or_valid(data: st.DataObject) -> None:
    value = json.loads(data.draw(st.sampled_from([TEXT, PARTS, BLOCK_PARTS])))
    path = data.draw(st.sampled_from(_nodes(value)[1:]))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(_json)
    assert _outcome(json.dumps(value).encode()) in ("manifest", "refused")


def _edited(edit: Callable[[dict[str, Any]], object], text: bytes = TEXT) -> bytes:
    value = json.loads(text)
    edit(value)
    return json.dumps(value).encode()


# Numbers are those of the list in docs/bad-inputs.md.
BAD_TEXTS = {
    "03-not-json": (b"<html>404</html>", "not JSON"),
    "03-empty": (b"", "not JSON"),
    "03-truncated": (TEXT[: len(TEXT) // 2], "not JSON"),
    "03-not-utf8": (b"\xff\xfe{}", "not UTF-8"),
    "03-a-list": (b"[]", "no schema_version"),
    "03-somebody-elses": (b'{"name": "a", "version": "1.0"}', "no schema_version"),
    "03-nan": (TEXT.replace(b"0.7", b"NaN"), "NaN"),
    "03-infinite": (TEXT.replace(b"0.7", b"1e999"), "too large"),
    "03-digits": (TEXT.replace(b"1234", b"1" * 5000), "too many digits"),
    "03-surrogate": (TEXT.replace(b"Apache", b"\\ud800"), "not valid Unicode"),
    "04-100-MB": (b" " * 100_000_000, "the limit is 1048576"),
    "04-limit-plus-1": (TEXT.ljust((1 << 20) + 1), "the limit is 1048576"),
    "05-deep-lists": (b"[" * 100_000, "deeper than 32"),
    "05-deep-objects": (b'{"a":' * 100_000, "deeper than 32"),
    "05-depth-33": (b"[" * 33 + b"]" * 33, "deeper than 32"),
    "06-duplicate-key": (TEXT.replace(b'"files": {', b'"files": {}, "files": {', 1), "twice"),
    "06-duplicate-file": (
        TEXT.replace(b'"tokenizer.json": {', b'"model.onnx": {', 1),
        "'model.onnx' twice",
    ),
    "07-newer": (_edited(lambda m: m.update(schema_version=4, roles="new")), "upgrade quickdraft"),
    "07-older": (_edited(lambda m: m.update(schema_version=2)), "export the model again"),
    "07-version-true": (_edited(lambda m: m.update(schema_version=True)), "whole number"),
    "unknown-key": (_edited(lambda m: m.update(tokeniser={})), "did you mean 'tokenizer'"),
    "missing-key": (_edited(lambda m: m.pop("source")), "lacks the key 'source'"),
    "text-for-number": (
        _edited(lambda m: m["model"].update(hidden_size="16")),
        "model.hidden_size is '16'; it must be an integer",
    ),
    "negative": (_edited(lambda m: m["model"].update(num_layers=-1)), "integer from 0"),
    "bool-for-number": (_edited(lambda m: m["model"].update(num_layers=True)), "integer"),
    "no-layers": (_edited(lambda m: m["model"].update(num_layers=0)), "at least 1"),
    "layers-and-heads": (_edited(lambda m: m["model"].update(num_layers=3)), "entries for"),
    "window-0": (_edited(lambda m: m["model"].update(windows=[None, 0])), "window of 0"),
    "window-without-bias": (
        _edited(lambda m: m["model"].update(windows=[None, 7])),
        "no input for the attention window 7",
    ),
    "alignment-0": (
        _edited(lambda m: m["roles"]["target"][0]["cache"].update(alignment=0)),
        "alignment is 0",
    ),
    "format-attack": (
        _edited(lambda m: m["roles"]["target"][0]["cache"].update(past_key="{layer.x}{layer}")),
        "past_key",
    ),
    "no-slots": (
        _edited(lambda m: m["roles"]["target"][0]["step"].pop("slots")),
        "lacks 'slots', and its cache is 'slots'",
    ),
    "top-without-blocks": (
        _edited(lambda m: m["roles"]["target"][0]["step"].update(top=4)),
        "has 'top', and its cache is 'slots'",
    ),
    "no-ancestors": (
        _edited(lambda m: m["roles"]["target"][0]["step"].update(ancestors=None), BLOCKS),
        "lacks 'ancestors', and its cache is 'blocks'",
    ),
    "top-0": (
        _edited(lambda m: m["roles"]["target"][0]["step"].update(top=0), BLOCKS),
        "lacks 'top'",
    ),
    "top-beyond-vocabulary": (
        _edited(lambda m: m["roles"]["target"][0]["step"].update(top=33), BLOCKS),
        "step.top is 33, and the vocabulary has 32",
    ),
    "unknown-cache": (
        _edited(lambda m: m["roles"]["target"][0]["cache"].update(kind="ring")),
        "cache.kind is 'ring'; it must be one of 'slots', 'blocks'",
    ),
    "cache-without-kind": (
        _edited(lambda m: m["roles"]["target"][0]["cache"].pop("kind")),
        "cache lacks the key 'kind'",
    ),
    "cache-of-both-kinds": (
        _edited(lambda m: m["roles"]["target"][0]["cache"].update(kind="blocks")),
        "unknown key 'past_key'",
    ),
    "unknown-role": (_edited(lambda m: m["roles"].update(boss=[])), "'boss'"),
    "no-target": (_edited(lambda m: m["roles"].update(target=[])), "no model to run"),
    "unknown-flavour": (
        _edited(lambda m: m["roles"]["target"][0].update(flavour="fast")),
        "one of 'hotpath'",
    ),
    "unlisted-file-used": (
        _edited(lambda m: m["roles"]["target"][0]["files"].append("other.bin")),
        "'other.bin', which files does not list",
    ),
    "model-not-in-files": (
        _edited(lambda m: m["roles"]["target"][0].update(model="tokenizer.json")),
        "which its files lack",
    ),
    "short-hash": (
        _edited(lambda m: m["files"]["model.onnx"].update(sha256="abc")),
        "not 64 lower-case",
    ),
    "no-files": (_edited(lambda m: m.update(files={})), "0 files"),
    "1001-files": (
        _edited(
            lambda m: m["files"].update(
                {str(i): {"size": 0, "sha256": "0" * 64} for i in range(MAX_FILES)}
            )
        ),
        "1 to 1000 are allowed",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_manifest_is_refused_at_once(case: str) -> None:
    text, expected = BAD_TEXTS[case]
    started = time.monotonic()
    with pytest.raises(BundleError) as caught:
        parse_manifest(text, "here/manifest.json")
    assert time.monotonic() - started < 1
    assert expected in str(caught.value)
    assert str(caught.value).startswith("here/manifest.json: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "filler",
    [b'["' * 500_000, b'"\\' * 500_000, b'"' * 1_000_000, b"{}" * 500_000, b"\\" * 999_999],
)
def test_hostile_text_costs_little_time(filler: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(BundleError):
        parse_manifest(filler, "m")
    assert time.monotonic() - started < 2


def test_depth_counts_brackets_not_strings() -> None:
    text = TEXT.replace(b"Apache-2.0", b'[[[[\\"{{{{' * 20)
    assert parse_manifest(text, "m").source.licence == '[[[["{{{{' * 20


BAD_NAMES = {
    "12-parent": "../x",
    "12-parent-inside": "a/../../x",
    "12-dot": "./x",
    "12-empty-part": "a//b",
    "13-absolute": "/etc/passwd",
    "13-trailing-slash": "a/",
    "14-drive": "C:\\x",
    "14-drive-slash": "C:/x",
    "14-drive-relative": "C:x",
    "14-unc": "\\\\host\\share",
    "14-unc-slash": "//host/share",
    "14-stream": "x:ads",
    "14-backslash": "a\\b",
    "15-nul": "model.onnx\0.txt",
    "15-newline": "a\nb",
    "15-bidi": "model\u202egpj.exe",
    "15-zero-width": "model\u200b.onnx",
    "16-dot-end": "model.onnx.",
    "16-space-end": "model.onnx ",
    "16-space-start": " model.onnx",
    "16-part-dot-end": "a./b",
    "16-con": "CON",
    "16-con-lower": "con.txt",
    "16-aux-folder": "aux/x",
    "16-com-superscript": "COM¹.bin",
    "16-lpt0": "lpt0",
    "16-conin": "CONIN$",
    "16-nul-space": "NUL .txt",
    "wildcard": "a*b",
    "long-part": "x" * 256,
    "long-part-utf8": "é" * 128,
    "long": "a/" * 600 + "b",
    "empty": "",
    "itself": "Manifest.JSON",
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_file_name_is_refused(case: str) -> None:
    text = with_extra_file(tiny_manifest(), BAD_NAMES[case]).to_json().encode()
    with pytest.raises(BundleError, match="the file"):
        parse_manifest(text, "m")


@pytest.mark.parametrize(
    "name", ["a", "a.b/c-d_e", "model.onnx.data", "CONSOLE", "com10", "naïve 1.txt", "x" * 255]
)
def test_good_file_name_is_taken(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "names",
    [
        ("Model.onnx", "model.ONNX"),
        ("é", "e\u0301"),
        ("ﬁle", "file"),
        ("straße", "STRASSE"),
        ("a", "a/b"),
        ("A/x", "a"),
        ("x/y/z", "x/Y"),
    ],
)
def test_17_colliding_names_are_refused(names: tuple[str, str]) -> None:
    assert collision(names) is not None
    manifest = tiny_manifest()
    for name in names:
        manifest = with_extra_file(manifest, name)
    with pytest.raises(BundleError, match="collide"):
        parse_manifest(manifest.to_json().encode(), "m")


def test_names_in_one_folder_do_not_collide() -> None:
    assert collision(["a/b", "a/c", "b", "a.b", "c/d/e", "c/d/f"]) is None
