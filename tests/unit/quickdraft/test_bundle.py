"""A bundle opens whole and unharmed, or not at all. Numbers are those of docs/bad-inputs.md."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny.bundles import TINY_FILES, tiny_manifest, write_tiny_bundle

from quickdraft import hashes
from quickdraft.bundle import Bundle, open_bundle, read_manifest
from quickdraft.errors import BundleError

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links and pipes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_sound_bundle_opens(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle == Bundle(folder, tiny_manifest())
    assert bundle.path("weights/model.bin").read_bytes() == TINY_FILES["weights/model.bin"]


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


def _replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        path = folder / name
        path.unlink()
        make(path)

    return replace


def _link_outside(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    outside.write_bytes(TINY_FILES.get(path.name, b""))
    path.symlink_to(outside)


def _folder_link_outside(folder: Path) -> None:
    os.rename(folder / "weights", folder.parent / "weights")
    (folder / "weights").symlink_to(folder.parent / "weights", target_is_directory=True)


def _manifest_as(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_bytes(data)


def _own_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "01-empty-folder": (_empty, "no manifest.json"),
    "01-no-folder": (lambda f: (_empty(f), f.rmdir()), "does not exist"),
    "01-a-file": (lambda f: (_empty(f), f.rmdir(), f.write_bytes(b"")), "is a file"),
    "02-no-manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    "03-manifest-is-html": (_manifest_as(b"<html>"), "not JSON"),
    "04-manifest-of-100-MB": (_manifest_as(b" " * 100_000_000), "the limit is"),
    "08-missing": (lambda f: (f / "weights/model.bin").unlink(), "model.bin is missing"),
    "08-folder-missing": (
        lambda f: ((f / "weights/model.bin").unlink(), (f / "weights").rmdir()),
        "model.bin is missing",
    ),
    "08-parent-is-a-file": (
        lambda f: (
            (f / "weights/model.bin").unlink(),
            (f / "weights").rmdir(),
            (f / "weights").write_bytes(b""),
        ),
        "model.bin is missing",
    ),
    **{f"10-one-bit-of-{name}": (_flip(name), "does not match its sha256") for name in TINY_FILES},
    "11-longer": (lambda f: (f / "tokenizer.json").write_bytes(b"{} "), "has 3 bytes"),
    "11-shorter": (lambda f: (f / "tokenizer.json").write_bytes(b"{"), "has 1 bytes"),
    "11-empty": (lambda f: (f / "model.onnx").write_bytes(b""), "has 0 bytes"),
    "18-link-outside": (_replace("model.onnx", _link_outside), "out of the bundle"),
    "18-manifest-link-outside": (_replace("manifest.json", _link_outside), "out of the bundle"),
    "18-folder-link-outside": (_folder_link_outside, "out of the bundle"),
    "18-link-to-itself": (
        _replace("model.onnx", lambda path: path.symlink_to(path)),
        "leads nowhere",
    ),
    "18-link-to-nothing": (
        _replace("model.onnx", lambda path: path.symlink_to(path.with_name("gone"))),
        "is missing",
    ),
    "20-pipe": (_replace("model.onnx", os.mkfifo), "a pipe, socket or device"),
    "20-manifest-pipe": (_replace("manifest.json", os.mkfifo), "a pipe, socket or device"),
    "20-socket": (_replace("model.onnx", _own_socket), "a pipe, socket or device"),
    "20-device": (
        _replace("model.onnx", lambda path: path.symlink_to("/dev/zero")),
        "out of the bundle",
    ),
    "21-folder": (_replace("model.onnx", Path.mkdir), "is a folder, not a file"),
    "21-manifest-folder": (_replace("manifest.json", Path.mkdir), "is a folder, not a file"),
    "22-zip": (lambda f: (_empty(f), f.rmdir(), f.write_bytes(b"PK\3\4")), "is a file"),
}


@posix
@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_bundle_is_refused_and_left_alone(folder: Path, case: str) -> None:
    damage, expected = BAD_FOLDERS[case]
    damage(folder)
    before = sorted(path for path in folder.parent.rglob("*"))
    started = time.monotonic()
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert time.monotonic() - started < 1
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)
    assert sorted(path for path in folder.parent.rglob("*")) == before


def test_09_unlisted_file_is_ignored_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "weights/notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING):
        open_bundle(folder)
    assert f"{folder / 'weights/notes.txt'} is in the bundle but not in its manifest" in caplog.text


@posix
def test_19_hard_link_is_taken_for_what_it_holds(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "other")
    open_bundle(folder)
    (folder.parent / "other").write_bytes(TINY_FILES["model.onnx"][::-1])
    with pytest.raises(BundleError, match="sha256"):
        open_bundle(folder)


@posix
def test_link_inside_and_link_to_the_bundle_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").rename(folder / "weights/graph")
    (folder / "model.onnx").symlink_to("weights/graph")
    (tmp_path / "alias").symlink_to(folder)
    assert open_bundle(tmp_path / "alias").folder == tmp_path / "alias"


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_unreadable_file_is_refused(folder: Path) -> None:
    (folder / "model.onnx").chmod(0)
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(folder)


class TestMemory:
    """Hashes are computed once per unchanged file."""

    @pytest.fixture
    def count(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        hashed: list[str] = []
        stream = hashes._stream

        def counted(file, on_bytes):  # type: ignore[no-untyped-def]
            hashed.append(stream(file, on_bytes))
            return hashed[-1]

        monkeypatch.setattr(hashes, "_stream", counted)
        monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
        return hashed

    def test_second_opening_hashes_nothing(self, folder: Path, count: list[str]) -> None:
        open_bundle(folder)
        assert len(count) == len(TINY_FILES)
        open_bundle(folder)
        assert len(count) == len(TINY_FILES)

    def test_a_touched_file_is_hashed_again(self, folder: Path, count: list[str]) -> None:
        open_bundle(folder)
        count.clear()
        os.utime(folder / "model.onnx")
        open_bundle(folder)
        assert len(count) == 1

    def test_same_size_and_forged_time_are_noticed(self, folder: Path, count: list[str]) -> None:
        open_bundle(folder)
        found = (folder / "model.onnx").stat()
        _flip("model.onnx")(folder)
        os.utime(folder / "model.onnx", ns=(found.st_atime_ns, found.st_mtime_ns))
        with pytest.raises(BundleError, match="sha256"):
            open_bundle(folder)

    @pytest.mark.parametrize(
        "record",
        [
            b"", b"{", b"[]", b"null", b'{"a": 1}', b'{"a": []}', b'{"a": [1, 2]}', b"\xff",
            b'{"a": [1,1,1,1,1,"zz"]}', b"[" * 100_000, b" " * (5 << 20),
        ],
    )  # fmt: skip
    def test_a_corrupted_record_is_rebuilt(
        self, folder: Path, count: list[str], cache: Path, record: bytes
    ) -> None:
        cache.mkdir()
        (cache / "verified.json").write_bytes(record)
        open_bundle(folder)
        assert len(count) == len(TINY_FILES)
        assert len(json.loads((cache / "verified.json").read_bytes())) == len(TINY_FILES)

    def test_the_record_is_bounded(
        self, folder: Path, cache: Path, count: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hashes, "MAX_REMEMBERED", 2)
        open_bundle(folder)
        assert len(json.loads((cache / "verified.json").read_bytes())) == 2

    def test_without_a_writable_cache_it_still_opens(
        self, folder: Path, count: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "blocked").write_bytes(b"")
        monkeypatch.setenv("QUICKDRAFT_CACHE", str(tmp_path / "blocked"))
        open_bundle(folder)
        open_bundle(folder)
        assert len(count) == 2 * len(TINY_FILES)

    def test_a_file_changed_just_now_is_not_remembered(
        self, folder: Path, count: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
    ) -> None:
        monkeypatch.setattr(hashes, "_SETTLED_NS", 2_000_000_000)
        open_bundle(folder)
        assert not (cache / "verified.json").exists()


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_bundle(folder, progress=lambda *report: seen.append(report))
    total = sum(map(len, TINY_FILES.values()))
    assert seen[-1] == ("verify", total, total)


def test_manifest_alone_needs_no_files(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    assert read_manifest(folder) == tiny_manifest()
