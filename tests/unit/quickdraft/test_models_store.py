"""What is in the cache can be seen, shared and removed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny.bundles import write_tiny_bundle

from quickdraft.errors import ModelNotFound, StorageError
from quickdraft.models import store

FIRST, SECOND = "a" * 64, "b" * 64


@pytest.fixture
def filled(cache: Path) -> Path:
    """Two bundles and the checkpoint of one model, a bundle from the hub, and rubbish."""
    write_tiny_bundle(store.bundle_folder("tiny-1.5b", FIRST, "auto", ["hotpath"]))
    write_tiny_bundle(store.bundle_folder("tiny-1.5b", FIRST, "int8", ["hotpath", "onnx"]))
    write_tiny_bundle(store.bundle_folder("owner/name", SECOND, "auto", ["onnx"]))
    store.checkpoint_folder("tiny-1.5b").mkdir(parents=True)
    (store.checkpoint_folder("tiny-1.5b") / "tiny.gguf").write_bytes(bytes(1000))
    (cache / "bundles/.hidden").mkdir()
    (cache / "bundles/stranger").mkdir()
    (cache / "bundles/file").write_text("")
    return cache


def test_an_empty_cache_lists_nothing(cache: Path) -> None:
    assert store.entries() == ()
    assert not cache.exists()


def test_entries_say_what_they_are(filled: Path) -> None:
    found = {entry.name: entry for entry in store.entries()}
    assert list(found) == [
        "owner--name-bbbbbbbbbbbb-auto-onnx",
        "tiny-1.5b-aaaaaaaaaaaa-auto-hotpath",
        "tiny-1.5b-aaaaaaaaaaaa-int8-hotpath+onnx",
        "tiny-1.5b",
    ]
    bundle = found["tiny-1.5b-aaaaaaaaaaaa-int8-hotpath+onnx"]
    assert (bundle.model, bundle.kind, bundle.weights) == ("tiny-1.5b", "bundle", "int8")
    assert bundle.formats == "hotpath+onnx"
    assert bundle.size == sum(path.stat().st_size for path in bundle.path.rglob("*.*"))
    assert found["tiny-1.5b"].size == 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny-1.5b", 3),
        ("tiny-1.5b-aaaaaaaaaaaa-int8-hotpath+onnx", 1),
        ("owner/name", 1),
        ("owner--name", 1),
    ],
)
def test_find_by_model_or_entry(filled: Path, name: str, expected: int) -> None:
    assert len(store.find(name)) == expected


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../bundles", "/", "stranger", ".hidden", "tiny", "bundles", "a/b", "x\0y",
     "../../outside", "/etc"],
)  # fmt: skip
def test_what_is_not_in_the_cache_is_never_removed(filled: Path, name: str) -> None:
    before = sorted(filled.rglob("*"))
    with pytest.raises(ModelNotFound, match="is not in the cache"):
        store.remove(name)
    assert sorted(filled.rglob("*")) == before


def test_a_near_name_is_offered(filled: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"did you mean 'tiny-1\.5b'"):
        store.find("tiny-1b")


def test_remove_gives_the_bytes_and_leaves_no_trace(filled: Path) -> None:
    size = sum(entry.size for entry in store.find("tiny-1.5b"))
    assert store.remove("tiny-1.5b") == size
    assert [entry.model for entry in store.entries()] == ["owner--name"]
    names = {path.name for path in (filled / "bundles").iterdir()}
    assert names == {".hidden", "stranger", "file", "owner--name-bbbbbbbbbbbb-auto-onnx"}


def test_remove_forgets_what_the_hub_name_meant(filled: Path) -> None:
    store.write_hub_record("owner/name", store.HubRecord("somewhere", SECOND))
    store.remove("owner/name")
    assert store.read_hub_record("owner/name") is None


def test_rubbish_of_the_killed_is_removed(filled: Path) -> None:
    bundles = filled / "bundles"
    for name in (".x-aaaaaaaaaaaa-auto.new-0123456789ab", ".trash-0123"):
        (bundles / name / "deep").mkdir(parents=True)
    (bundles / ".x-aaaaaaaaaaaa-auto.new-0123456789ab.lock").touch()
    store.tidy()
    assert not list(bundles.glob(".trash*")) + list(bundles.glob(".x-*"))
    assert len(store.entries()) == 4


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("owner/name", "owner--name"),
        ("owner/name@v1:a/b.gguf", "owner--name@v1+a--b.gguf"),
        ("../..", "model"),
        ("...", "model"),
        ("a b\n\u202ec", "a-b-c"),
        ("x" * 300, "x" * 100),
    ],
)
def test_slugs_are_safe_names(name: str, folder: str) -> None:
    assert store.slug(name) == folder


@pytest.mark.parametrize("record", [b"", b"{}", b'{"path": 1, "fingerprint": ""}', b"\xff",
                                    b'{"path": "x", "fingerprint": "../../.."}'])  # fmt: skip
def test_a_damaged_hub_record_is_none(cache: Path, record: bytes) -> None:
    (cache / "hub").mkdir(parents=True)
    (cache / "hub/owner--name.json").write_bytes(record)
    assert store.read_hub_record("owner/name") is None


def test_the_lock_waits_and_says_so(cache: Path) -> None:
    seen: list[str] = []
    order: list[str] = []
    waiting = threading.Event()

    def report(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        waiting.set()

    def second() -> None:
        with store.lock("x", report):
            order.append("second")

    with store.lock("x"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert (order, seen) == (["first", "second"], ["wait"])


def test_the_lock_ends_with_its_process(cache: Path) -> None:
    code = "import os; from quickdraft.models.store import lock\nwith lock('x'): os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    with store.lock("x"):
        pass


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="QUICKDRAFT_CACHE"), store.lock("x"):
        pass


def test_the_place_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUICKDRAFT_CACHE")
    assert store.cache_folder().name in ("quickdraft", "Cache")
    monkeypatch.setenv("QUICKDRAFT_CACHE", os.path.join("~", "x"))
    assert store.cache_folder() == Path.home() / "x"
