"""Graphs that OpenVINO must not be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraft.errors import BundleError
from quickdraft.runtime.backends import openvino_ir
from quickdraft.runtime.backends.openvino_ir import check_ir


def constant(offset: object = 0, size: object = 16, shape: str = "4", kind: str = "f32") -> str:
    data = f'element_type="{kind}" shape="{shape}" offset="{offset}" size="{size}"'
    return f'<net><layers><layer type="Const"><data {data}/></layer></layers></net>'


def check(folder: Path, text: str | bytes) -> None:
    (folder / "model.bin").write_bytes(bytes(64))
    (folder / "model.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    check_ir(folder / "model.xml", folder / "model.bin")


@pytest.mark.parametrize(
    "text",
    [constant(), constant(48), constant(size=64, shape="128", kind="u4"), constant(shape="")],
)
def test_sound_graphs(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a>" * 50_000, "nests deeper"),
        ("<net>" + "<layer>" * 63 + "<a/>", "nests deeper"),
        (constant(60), "ends at byte 76 of 64"),
        (constant(2**64 - 1, 2), "of size '18446744073709551615'"),
        (constant(-1), "of size '-1'"),
        (constant(size=""), "of size ''"),
        (constant(shape="4294967296, 4294967296"), "larger than its data"),
        (constant(shape="1e9"), "of size '1e9'"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        ("<net><layer>", "no OpenVINO graph"),
        ("", "no OpenVINO graph"),
        (b"\xff\xfe\x00", "no OpenVINO graph"),
        ("<html/>", "has no layers"),
    ],
)
def test_graphs_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check(tmp_path, text)


def test_files_that_are_too_large_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_ir, "MAX_BYTES", 20)
    with pytest.raises(BundleError, match="20 at most"):
        check(tmp_path, constant())
    with pytest.raises(BundleError, match="cannot be read"):
        check_ir(tmp_path / "other.xml", tmp_path / "model.bin")
